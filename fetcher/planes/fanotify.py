"""The fanotify data plane: EROFS mounted from files, and pre-content events answered as the bytes arrive.

A layer file that lacks bytes carries a mark. The kernel then asks before every read of it that its page cache cannot
serve, and the reader sleeps, killable, until the group answers. What survives this process's death, and how its
successor goes on, is described in :mod:`fetcher.planes.keeper` and :mod:`fetcher.planes.event_journal`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog

from fetcher import kernel
from fetcher.layers.layer import Layer
from fetcher.model import LayerState
from fetcher.planes.erofs_mount import ErofsMounter
from fetcher.planes.event_journal import SLOTS, Journal, Unanswered
from fetcher.planes.keeper_client import KeeperClient
from fetcher.planes.touches import Touch, TouchLog
from fetcher.scheduler.governor import Governor

log = structlog.get_logger(__name__)

#: Bytes per read(2) of the group: 85 events of 48 bytes.
READ_BYTES = 4096
#: Open files beyond those that a predecessor's lost events may occupy; with fewer than MIN_OPEN_FILES no new event is
#: taken until the lost ones are answered.
OPEN_FILES = 8192
MIN_OPEN_FILES = 1024
#: Events that may wait for bytes; the kernel keeps the others until some are answered.
MAX_WAITING = 4096


class FanotifyPlane:
    """The notification group of one daemon, and the layers it protects."""

    name = "fanotify"
    events = 0

    def __init__(self, governor: Governor, keeper_socket: Path, touches: TouchLog) -> None:
        self._governor = governor
        self._keeper_socket = keeper_socket
        self._touches = touches
        self._mounter = ErofsMounter(file_backed=True)
        self._layers: dict[int, Layer] = {}
        self._complete: set[int] = set()
        self._inherited: set[int] = set()
        self._placeholders: dict[int, int] = {}
        self._lost_wait_for: set[str] = set()
        self._waiting = 0
        self._reading = False
        self._crowded = False
        self._keeper: KeeperClient
        self._journal: Journal
        self._journal_fd = -1
        self._group = -1

    # Starting, and finishing what a predecessor left.

    async def start(self, layers: Iterable[Layer]) -> None:
        """Take over from the keeper, or start one; protect what is mounted and incomplete; then take events.

        Blocks for milliseconds at most. Nothing else of the process should be opened before: numbers of descriptors
        that are in use cannot be kept free of new events.
        """
        self._keeper, found = KeeperClient.attach(self._keeper_socket)
        held = self._keeper.take_over()
        if found and ".group" in held and ".journal" in held:
            self._group, self._journal_fd = held.pop(".group"), held.pop(".journal")
            self._journal = Journal(self._journal_fd)
        else:
            self._new_group()
        self._reserve_numbers()
        self._adopt(layers, held)
        self._answer_predecessors()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._keeper.fileno(), self._keeper_died)
        self._resume()

    def _new_group(self) -> None:
        self._group = kernel.fanotify_init_pre_content()
        self._journal_fd = Journal.create()
        self._journal = Journal(self._journal_fd)
        self._keeper.put(".journal", self._journal_fd)
        self._keeper.put(".group", self._group)

    def _reserve_numbers(self) -> None:
        """Occupy each number that an unanswered event may have, so that no new event gets it."""
        journal = self._journal
        if journal.interrupted:
            journal.floor = max(journal.floor, journal.limit)
            journal.end_read()
            log.warning("events_lost_in_crash", below=journal.floor)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = min(journal.floor + OPEN_FILES, hard, SLOTS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        journal.limit = limit
        numbers = {event.fd for event in journal.unanswered()}
        if limit - journal.floor >= MIN_OPEN_FILES:
            numbers.update(range(journal.floor))
        else:
            self._crowded = True
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for number in sorted(numbers):
            if not _is_open(number):
                self._placeholders[number] = os.dup2(null, number, inheritable=False)
        os.close(null)

    def _adopt(self, layers: Iterable[Layer], held: dict[str, int]) -> None:
        for layer in layers:
            fd = held.pop(_fill_name(layer), None)
            if layer.state is LayerState.COMPLETE:
                self._complete.add(layer.inode)
                if fd is not None:
                    # It became complete while its reads were recorded: the mark was left on.
                    os.close(fd)
                    with suppress(FileNotFoundError):
                        kernel.fanotify_mark(self._group, layer.tar_path, remove=True)
                    self._keeper.drop(_fill_name(layer))
                continue
            if fd is not None:
                layer.adopt_fill_fd(fd)
                self.protect(layer)
            elif layer.mount_point.is_mount():
                # Nobody held the group for a while. What was read then cannot be taken back; what comes now is safe.
                log.error("layer_was_unprotected", layer=layer.digest)
                self.protect(layer)
        for name, fd in held.items():
            os.close(fd)
            self._keeper.drop(name)

    def _answer_predecessors(self) -> None:
        for event in list(self._journal.unanswered()):
            self._finish(event)
        if not self._journal.floor:
            return
        incomplete = [layer for layer in self._layers.values() if layer.state is not LayerState.COMPLETE]
        self._lost_wait_for = {layer.digest for layer in incomplete}
        for layer in incomplete:
            self._governor.fill(layer)
        self._answer_lost()

    def _finish(self, event: Unanswered) -> None:
        layer = self._layers.get(event.inode)
        log.info("event_inherited", layer=layer and layer.digest, offset=event.offset, count=event.count)
        self._waiting += 1
        self._inherited.add(event.fd)
        self._demand(event.fd, event.inode, event.offset, event.count)

    def _answer_lost(self) -> None:
        """Once everything that was incomplete is complete, let pass whoever nobody knows of."""
        floor = self._journal.floor
        if not floor or self._lost_wait_for:
            return
        recorded = {event.fd for event in self._journal.unanswered()}
        answered = sum(kernel.fanotify_respond(self._group, fd) for fd in range(floor) if fd not in recorded)
        log.info("lost_events_answered", count=answered)
        self._journal.floor = 0
        self._crowded = False
        self._resume()
        for number in [number for number in self._placeholders if number not in recorded]:
            os.close(self._placeholders.pop(number))

    def _keeper_died(self) -> None:
        """Only this process holds the group now: start another keeper before anything else happens."""
        asyncio.get_running_loop().remove_reader(self._keeper.fileno())
        self._keeper.close()
        self._keeper, _ = KeeperClient.attach(self._keeper_socket)
        log.error("keeper_replaced")
        self._keeper.put(".journal", self._journal_fd)
        self._keeper.put(".group", self._group)
        for layer in self._layers.values():
            self._keeper.put(_fill_name(layer), layer.fill_fd)
        asyncio.get_running_loop().add_reader(self._keeper.fileno(), self._keeper_died)

    # Layers.

    def protect(self, layer: Layer) -> None:
        """Have the kernel ask before reads of a layer file; must come before the layer is mounted. Idempotent."""
        if layer.inode in self._layers:
            return
        layer.open_for_filling()
        self._keeper.put(_fill_name(layer), layer.fill_fd)
        kernel.fanotify_mark(self._group, layer.tar_path)
        self._layers[layer.inode] = layer
        self._governor.add(layer)

    def unprotect(self, layer: Layer) -> None:
        """The layer is complete, or nobody can read it any more: no more events. Idempotent."""
        if layer.state is LayerState.COMPLETE:
            self._complete.add(layer.inode)
        if self._layers.pop(layer.inode, None) is None:
            return
        kernel.fanotify_mark(self._group, layer.tar_path, remove=True)
        self._keeper.drop(_fill_name(layer))
        self._lost_wait_for.discard(layer.digest)
        self._answer_lost()

    async def mount(self, layer: Layer) -> None:
        """Show the layer's files at its mount point. Idempotent; raises OSError."""
        if layer.state is not LayerState.COMPLETE or layer.watched:
            self.protect(layer)
        over = (layer.metadata_path, layer.tar_path, layer.mount_point)
        if layer.inode in self._layers:
            await asyncio.to_thread(self._mounter.mount, *over, direct=False)
        else:
            await asyncio.to_thread(self._mounter.mount_complete, *over)

    async def unmount(self, layer: Layer) -> None:
        """Take the mount point away. Overlays that already use it go on, and so does the layer's protection."""
        await asyncio.to_thread(kernel.umount_all, layer.mount_point)

    # Events.

    def _resume(self) -> None:
        if not self._reading and not self._crowded:
            asyncio.get_running_loop().add_reader(self._group, self._take_events)
            self._reading = True

    def _pause(self) -> None:
        if self._reading:
            asyncio.get_running_loop().remove_reader(self._group)
            self._reading = False

    def _take_events(self) -> None:
        events = self._read_events()
        self.events += len(events)
        self._waiting += len(events)
        for event, inode in events:
            try:
                self._serve(event, inode)
            except Exception:
                # The others must not wait for this one's sake. It stays in the journal: the next daemon answers it.
                log.exception("event_failed", inode=inode, offset=event.offset, count=event.count)
        if self._waiting > MAX_WAITING:
            self._pause()

    def _read_events(self) -> list[tuple[kernel.PreAccess, int]]:
        """What the kernel asks, each with its file's inode. No statement may come between the read and the records."""
        journal = self._journal
        journal.begin_read()
        try:
            buffer = os.read(self._group, READ_BYTES)
        except BlockingIOError:
            journal.end_read()
            return []
        events = [(event, os.fstat(event.fd).st_ino) for event in kernel.parse_events(buffer)]
        for event, inode in events:
            journal.record(event.fd, inode, event.offset, event.count)
        journal.end_read()
        return events

    def _serve(self, event: kernel.PreAccess, inode: int) -> None:
        layer = self._layers.get(inode)
        touch = self._touches.touch(layer, event.offset, event.count, event.pid) if layer else None
        self._demand(event.fd, inode, event.offset, event.count, touch)
        if layer is not None:
            self._governor.note_read(layer, event.offset, event.count)

    def _demand(self, fd: int, inode: int, offset: int, count: int, touch: Touch | None = None) -> None:
        """Answer the event behind ``fd`` now or when its bytes are there."""
        layer = self._layers.get(inode)
        if layer is None:
            # A mark that nobody knows the layer of: better no bytes than wrong ones.
            self._answer(fd, None, 0 if inode in self._complete else errno.EIO)
        elif absent := layer.absent(offset, count):
            if touch is not None:
                touch.waits()
            self._governor.add(layer)
            self._governor.demand(layer, absent, partial(self._answer, fd, touch))
        else:
            self._answer(fd, None, 0)

    def _answer(self, fd: int, touch: Touch | None, error: int) -> None:
        """Release a reader. The record goes after the answer: answering twice is harmless, not answering is not."""
        if self._group < 0:
            return
        if touch is not None:
            touch.ended()
        self._respond(fd, error)
        self._journal.forget(fd)
        if fd not in self._inherited:
            os.close(fd)
        else:
            self._inherited.discard(fd)
            if fd >= self._journal.floor and fd in self._placeholders:
                os.close(self._placeholders.pop(fd))
        self._waiting -= 1
        if not self._reading and self._waiting < MAX_WAITING // 2:
            self._resume()

    def _respond(self, fd: int, error: int) -> None:
        try:
            kernel.fanotify_respond(self._group, fd, error)
        except OSError as refused:
            if refused.errno != errno.EINVAL or not error:
                raise
            # Linux before 6.14 knows no errno in a denial.
            os.write(self._group, kernel.RESPONSE.pack(fd, kernel.FAN_DENY))

    async def close(self) -> None:
        """Stop taking events; the keeper holds on to everything, readers wait for the next daemon."""
        if self._group >= 0:
            group, self._group = self._group, -1
            if self._reading:
                asyncio.get_running_loop().remove_reader(group)
            asyncio.get_running_loop().remove_reader(self._keeper.fileno())
            self._keeper.close()
            self._journal.close()
            os.close(group)
            os.close(self._journal_fd)
            for fd in self._placeholders.values():
                os.close(fd)


def _fill_name(layer: Layer) -> str:
    return f"fill:{layer.digest}"


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
