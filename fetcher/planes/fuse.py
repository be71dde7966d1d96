"""The fuse data plane, for kernels without pre-content events: layer files behind a FUSE server, EROFS on top.

One FUSE mount for the node shows each known layer's tar as a file of a flat, read-only directory. A read of bytes that
are absent is answered when the governor has them. What is read stays in the kernel's caches, so the server sees each
byte of a mount about once. How the session outlives this process is described in :mod:`fetcher.planes.keeper` and
:mod:`fetcher.planes.fuse_journal`.

This process must never look at its own FUSE mount from the event loop, nor at anything that makes the kernel read from
it: that call would wait for an answer that only the loop can give.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import structlog

from fetcher import kernel
from fetcher.layers.layer import Layer
from fetcher.model import LayerState
from fetcher.planes import fuse_protocol as protocol
from fetcher.planes.erofs_mount import ErofsMounter
from fetcher.planes.fuse_journal import FuseJournal
from fetcher.planes.fuse_protocol import UNANSWERED, Opcode, Request
from fetcher.planes.fuse_session import MAX_READ_BYTES, FuseSession, is_alive, open_device
from fetcher.planes.keeper_client import KeeperClient
from fetcher.planes.touches import Touch, TouchLog
from fetcher.scheduler.governor import Governor

log = structlog.get_logger(__name__)

#: Names in the keeper. The session keeps the keeper alive, as fanotify's descriptors do: readers may depend on it.
SESSION_NAME = "fuse"
JOURNAL_NAME = ".fuse-journal"
#: Reads ahead of need that the kernel may have under way.
MAX_BACKGROUND = 512
#: How long an unmount may wait for reads that are under way.
UNMOUNT_PATIENCE_S = 1.0


class FusePlane:
    """The FUSE session of one daemon, and the layers it shows."""

    name = "fuse"
    events = 0

    def __init__(
        self,
        governor: Governor,
        keeper_socket: Path,
        mount_point: Path,
        touches: TouchLog,
        mounter: ErofsMounter | None = None,
    ) -> None:
        self._governor = governor
        self._keeper_socket = keeper_socket
        self._mount_point = mount_point
        self._touches = touches
        self._mounter = mounter or ErofsMounter()
        self._layers: dict[int, Layer] = {}
        self._keeper: KeeperClient
        self._session: FuseSession | None = None
        self._session_lost = False
        self._renewing = asyncio.Lock()
        self._unmounting: set[asyncio.Future[None]] = set()
        self._device = self._journal_fd = -1

    # Starting, and finishing what a predecessor left.

    async def start(self, layers: Iterable[Layer]) -> None:
        """Take over the predecessor's session from the keeper, or start one. Raises OSError."""
        layers = list(layers)
        self._layers = {_node(layer): layer for layer in layers}
        self._keeper, _ = KeeperClient.attach(self._keeper_socket)
        adopted = self._adopt(self._keeper.take_over())
        mounted = await asyncio.to_thread(_mounted, layers)
        for layer in mounted:
            if layer.state is not LayerState.COMPLETE:
                self.protect(layer)
        if not adopted:
            self._new_session()
        asyncio.get_running_loop().add_reader(self._keeper.fileno(), self._keeper_died)
        self._serve_session()
        if not adopted:
            await self._mount_again(mounted)

    def _adopt(self, held: dict[str, int]) -> bool:
        device, journal = held.pop(SESSION_NAME, -1), held.pop(JOURNAL_NAME, -1)
        alive = device >= 0 and journal >= 0 and is_alive(device)
        if alive:
            self._device, self._journal_fd = device, journal
        else:
            held |= {name: fd for name, fd in ((SESSION_NAME, device), (JOURNAL_NAME, journal)) if fd >= 0}
        for name, fd in held.items():
            os.close(fd)
            self._keeper.drop(name)
        return alive

    def _new_session(self) -> None:
        """Held before it is mounted: nobody can wait for an answer of a session that may vanish.

        Touches nothing that could ask the session; the keeper's connection belongs to this thread.
        """
        self._mount_point.parent.mkdir(mode=0o700, exist_ok=True)
        detach(self._mount_point)
        self._mount_point.mkdir(mode=0o700, exist_ok=True)
        self._device, self._journal_fd = open_device(), FuseJournal.create()
        self._put_session()
        options = f"fd={self._device},rootmode={stat.S_IFDIR:o},user_id={os.geteuid()},group_id={os.getegid()}"
        options += f",default_permissions,max_read={MAX_READ_BYTES}"
        flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("fastpull", self._mount_point, "fuse", flags, options)

    def _put_session(self) -> None:
        self._keeper.put(JOURNAL_NAME, self._journal_fd)
        self._keeper.put(SESSION_NAME, self._device)

    def _serve_session(self) -> None:
        self._session = FuseSession(self._device, self._journal_fd, self._serve, self._session_ended)
        self._session.start()

    async def _renew_session(self) -> None:
        """In place of a session that ended under us, start another."""
        async with self._renewing:
            if not self._session_lost or self._session is None:
                return
            await self._session.close()
            os.close(self._device)
            os.close(self._journal_fd)
            self._new_session()
            self._session_lost = False
            self._serve_session()
            await self._mount_again(await asyncio.to_thread(_mounted, list(self._layers.values())))

    async def _mount_again(self, layers: Iterable[Layer]) -> None:
        """The session under these mounts ended while nobody held it: their readers get errors; new ones shall not."""
        for layer in layers:
            log.error("layer_session_was_lost", layer=layer.digest)
            await self.unmount(layer)
            await self.mount(layer)

    def _keeper_died(self) -> None:
        """Only this process holds the session now: start another keeper before anything else happens."""
        asyncio.get_running_loop().remove_reader(self._keeper.fileno())
        self._keeper.close()
        self._keeper, _ = KeeperClient.attach(self._keeper_socket)
        log.error("keeper_replaced")
        self._put_session()
        asyncio.get_running_loop().add_reader(self._keeper.fileno(), self._keeper_died)

    def _session_ended(self) -> None:
        """The FUSE mount was taken away, by hand or by a forced abort; the next mount of a layer starts a new one."""
        self._session_lost = True

    # Layers.

    def protect(self, layer: Layer) -> None:
        """Show the layer's file and be ready to fetch for it. Idempotent."""
        self._layers[_node(layer)] = layer
        layer.open_for_filling()
        self._governor.add(layer)

    def unprotect(self, layer: Layer) -> None:
        """The layer is complete, or nobody can read it any more. Idempotent.

        A complete layer stays known: mounts made before go on reading through the session.
        """
        if layer.state is not LayerState.COMPLETE:
            self._layers.pop(_node(layer), None)

    async def mount(self, layer: Layer) -> None:
        """Show the layer's files at its mount point. Idempotent; raises OSError."""
        if self._session_lost:
            await self._renew_session()
        await asyncio.to_thread(self._forget_evicted)
        served = layer.state is not LayerState.COMPLETE or layer.watched
        if not served:
            over = (layer.metadata_path, layer.tar_path, layer.mount_point)
            await asyncio.to_thread(self._mounter.mount_complete, *over)
            return
        self.protect(layer)
        device = self._mount_point / layer.directory.name
        await asyncio.to_thread(self._mounter.mount, layer.metadata_path, device, layer.mount_point, direct=True)

    def _forget_evicted(self) -> None:
        for node, layer in list(self._layers.items()):
            if layer.state is LayerState.COMPLETE and not layer.tar_path.exists():
                self._layers.pop(node, None)

    async def unmount(self, layer: Layer) -> None:
        """Take the mount point away. Overlays that already use it go on, and so do the answers to them.

        The mount point is gone at once, but the kernel then waits for the pages that killed readers left unanswered;
        that must not keep the caller from telling the governor that nobody wants them any more.
        """
        unmounting = asyncio.ensure_future(asyncio.to_thread(kernel.umount_all, layer.mount_point))
        self._unmounting.add(unmounting)
        unmounting.add_done_callback(self._unmounting.discard)
        done, _ = await asyncio.wait({unmounting}, timeout=UNMOUNT_PATIENCE_S)
        for ended in done:
            ended.result()

    # Requests.

    def _serve(self, request: Request) -> None:
        session = self._session
        assert session is not None
        if request.opcode == Opcode.READ:
            self._read(session, request)
        elif request.opcode in UNANSWERED:
            session.forget(request)
        else:
            answer = self._describe(request)
            if isinstance(answer, int):
                session.answer(request, error=answer)
            else:
                session.answer(request, answer)

    def _describe(self, request: Request) -> bytes | int:
        """The answer to a request that is not about data, or the errno to fail it with."""
        match request.opcode:
            case Opcode.INIT:
                return protocol.init_reply(request.body, max_read_bytes=MAX_READ_BYTES, max_background=MAX_BACKGROUND)
            case Opcode.LOOKUP:
                return self._lookup(request.name)
            case Opcode.GETATTR:
                attributes = self._attributes(request.node)
                return errno.ESTALE if attributes is None else protocol.attr_reply(attributes)
            case Opcode.READDIR:
                return self._list(*request.extent)
            case Opcode.STATFS:
                return protocol.statfs_reply(len(self._layers))
            case Opcode.OPEN:
                return protocol.open_reply()
            case Opcode.RELEASE | Opcode.DESTROY:
                return b""
        return errno.ENOSYS

    def _lookup(self, name: bytes) -> bytes | int:
        found = [node for node, layer in self._layers.items() if os.fsencode(layer.directory.name) == name]
        attributes = self._attributes(found[0]) if found else None
        return errno.ENOENT if attributes is None else protocol.entry_reply(found[0], attributes)

    def _attributes(self, node: int) -> bytes | None:
        if node == protocol.FUSE_ROOT_ID:
            return protocol.attributes(node, mode=stat.S_IFDIR | 0o500, size=0)
        layer = self._layers.get(node)
        if layer is None:
            return None
        return protocol.attributes(node, mode=stat.S_IFREG | 0o400, size=layer.frames.tar_size)

    def _list(self, offset: int, size: int) -> bytes:
        layers = sorted(self._layers.items())
        entries = [(node, os.fsencode(layer.directory.name), stat.S_IFREG) for node, layer in layers]
        return protocol.readdir_reply(entries, offset, size)

    def _read(self, session: FuseSession, request: Request) -> None:
        self.events += 1
        offset, size = request.extent
        layer = self._layers.get(request.node)
        if layer is None:
            session.answer(request, error=errno.EIO)
            return
        count = max(0, min(size, layer.frames.tar_size - offset))
        # A complete layer may have been evicted, and its bitmap with it.
        absent = [] if layer.state is LayerState.COMPLETE else layer.absent(offset, count)
        touch = self._touches.touch(layer, offset, count)
        if absent:
            touch.waits()
            self.protect(layer)
            self._governor.demand(layer, absent, partial(self._arrived, session, request, layer, touch))
        else:
            session.answer_file(request, layer.tar_path, offset, count)
        self._governor.note_read(layer, offset, count)

    def _arrived(self, session: FuseSession, request: Request, layer: Layer, touch: Touch, error: int) -> None:
        """The governor's answer: the bytes of the read are there, or an errno."""
        touch.ended()
        if error:
            session.answer(request, error=error)
        else:
            session.answer_file(request, layer.tar_path, touch.offset, touch.count)

    async def close(self) -> None:
        """Stop answering; the keeper holds on to the session, readers wait for the next daemon."""
        session, self._session = self._session, None
        if session is not None:
            asyncio.get_running_loop().remove_reader(self._keeper.fileno())
            await session.close()
            self._keeper.close()
            os.close(self._device)
            os.close(self._journal_fd)


def detach(point: Path) -> None:
    """Take a FUSE mount away without looking at it: a session that nobody serves never answers."""
    resolved = Path(os.path.realpath(point.parent)) / point.name
    if point.parent.exists() and (resolved, "fuse") in kernel.mounts_below(point.parent):
        kernel.umount(resolved, kernel.MNT_FORCE | kernel.MNT_DETACH)


def _node(layer: Layer) -> int:
    """The layer's FUSE inode: of its digest, so that what the kernel has cached under a number stays true for ever."""
    return int(layer.directory.name, 16)


def _mounted(layers: list[Layer]) -> list[Layer]:
    """The layers whose mount point is one, found without touching any."""
    points = {point for top in {layer.directory.parent for layer in layers} for point, _ in kernel.mounts_below(top)}
    return [layer for layer in layers if Path(os.path.realpath(layer.directory)) / layer.mount_point.name in points]
