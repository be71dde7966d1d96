"""The daemon's end of one FUSE session: requests in, answers out, nothing about what they mean."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from mmap import mmap
from pathlib import Path

import structlog

from fetcher.planes.fuse_journal import FuseJournal, map_locked
from fetcher.planes.fuse_protocol import OUT_HEADER, Request

log = structlog.get_logger(__name__)

#: The longest READ the kernel is told it may ask.
MAX_READ_BYTES = 1 << 20
#: Requests taken before the event loop gets its turn again.
BATCH = 16
#: Threads for reads that the page cache cannot serve at once.
READ_THREADS = 4


def open_device() -> int:
    """A new session's device, not mounted yet. Raises OSError where the kernel has no FUSE."""
    return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def is_alive(device: int) -> bool:
    """Whether the session behind a device is mounted or still has users. Takes no request."""
    poll = select.poll()
    poll.register(device, select.POLLIN)
    return all(not events & select.POLLERR for _, events in poll.poll(0))


class FuseSession:
    """Takes requests on the event loop and hands each to ``serve``, which answers it now or later.

    The descriptors stay the caller's. After :meth:`close` nothing is answered any more: what is open stays in the
    journal.
    """

    def __init__(
        self, device: int, journal_fd: int, serve: Callable[[Request], None], ended: Callable[[], None]
    ) -> None:
        self._device = device
        self._journal = FuseJournal(journal_fd)
        self._serve = serve
        self._ended = ended
        self._reading = False
        self._closed = False
        self._threads = ThreadPoolExecutor(READ_THREADS, "fuse-read")
        self._buffers = threading.local()

    def start(self) -> None:
        """Serve what a predecessor left, then what comes."""
        for request in list(self._journal.unanswered()):
            log.info("fuse_request_inherited", opcode=request.opcode, node=f"{request.node:016x}")
            self._dispatch(request)
        self._resume()

    def _resume(self) -> None:
        if not self._reading and not self._closed:
            asyncio.get_running_loop().add_reader(self._device, self._take)
            self._reading = True

    def _pause(self) -> None:
        if self._reading:
            asyncio.get_running_loop().remove_reader(self._device)
            self._reading = False

    def _take(self) -> None:
        for _ in range(BATCH):
            if self._journal.full:
                self._pause()
                return
            try:
                request = self._journal.take(self._device)
            except BlockingIOError:
                return
            except FileNotFoundError:
                continue  # the request was withdrawn meanwhile
            except OSError as error:
                self._end(error)
                return
            self._dispatch(request)

    def _dispatch(self, request: Request) -> None:
        try:
            self._serve(request)
        except Exception:
            # A reader that is never answered cannot even be killed.
            log.exception("fuse_request_failed", opcode=request.opcode, node=f"{request.node:016x}")
            self.answer(request, error=errno.EIO)

    def _end(self, error: OSError) -> None:
        self._pause()
        log.error("fuse_session_ended", error=str(error))
        self._ended()

    # Answering.

    def answer(self, request: Request, payload: bytes = b"", *, error: int = 0) -> None:
        """Answer with a payload, or with an errno."""
        if not self._closed:
            self._send(request, [OUT_HEADER.pack(OUT_HEADER.size + len(payload), -error, request.unique), payload])
            self.forget(request)

    def forget(self, request: Request) -> None:
        """The request was answered, or needs no answer."""
        self._journal.forget(request)
        self._resume()

    def _send(self, request: Request, parts: list[bytes | memoryview]) -> None:
        """Write an answer; from any thread."""
        try:
            os.writev(self._device, parts)
        except FileNotFoundError:
            pass  # answered by a predecessor, or withdrawn
        except OSError as error:
            # With ENODEV the session is gone. With all others the kernel has failed the request with EIO.
            log.error("fuse_answer_refused", opcode=request.opcode, error=str(error))

    def answer_file(self, request: Request, file: Path, offset: int, count: int) -> None:
        """Answer a READ with bytes of a file that can be read without waiting for the network.

        At once where the page cache has them, else from a thread.
        """
        if self._closed:
            return
        try:
            done = self._copy(request, file, offset, count, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                self._answer_failure(request, file, error)
                return
            done = False
        if done:
            self.forget(request)
            return
        copied = asyncio.get_running_loop().run_in_executor(self._threads, self._copy, request, file, offset, count)
        copied.add_done_callback(partial(self._copied, request, file))

    def _copied(self, request: Request, file: Path, copied: asyncio.Future[bool]) -> None:
        if self._closed or copied.cancelled():
            return
        failure = copied.exception()
        if failure is None and copied.result():
            self.forget(request)
        else:
            self._answer_failure(request, file, failure or EOFError("file is too short"))

    def _answer_failure(self, request: Request, file: Path, failure: BaseException) -> None:
        log.error("layer_file_unreadable", file=str(file), error=str(failure))
        self.answer(request, error=errno.EIO)

    def _copy(self, request: Request, file: Path, offset: int, count: int, flags: int = 0) -> bool:
        """Read and send; tells whether all bytes were there, and sends nothing if not. From any thread.

        The file is opened for each read: no descriptor keeps the space of a layer that was evicted.
        """
        buffer = self._buffer()
        end = OUT_HEADER.size + count
        position = OUT_HEADER.size
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while position < end:
                got = os.preadv(fd, [buffer[position:end]], offset + position - OUT_HEADER.size, flags)
                if not got:
                    return False
                position += got
        finally:
            os.close(fd)
        OUT_HEADER.pack_into(buffer, 0, end, 0, request.unique)
        self._send(request, [buffer[:end]])
        return True

    def _buffer(self) -> memoryview:
        """This thread's buffer: locked, as answers are copied as requests are (:mod:`fetcher.planes.fuse_journal`)."""
        try:
            buffer: memoryview = self._buffers.view
        except AttributeError:
            mapping: mmap = map_locked(-1, OUT_HEADER.size + MAX_READ_BYTES)
            buffer = self._buffers.view = memoryview(mapping)
        return buffer

    async def close(self) -> None:
        """Stop; what is not answered waits for the next daemon."""
        self._pause()
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown)
        self._journal.close()
