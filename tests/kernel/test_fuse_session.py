"""The FUSE session by itself: its journal, its wire format as the kernel reads it, its end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fetcher import kernel
from fetcher.planes import fuse_journal
from fetcher.planes import fuse_protocol as protocol
from fetcher.planes.fuse_journal import FuseJournal
from fetcher.planes.fuse_protocol import Opcode, Request
from fetcher.planes.fuse_session import MAX_READ_BYTES, FuseSession, is_alive, open_device

pytestmark = pytest.mark.root

SIZE = (3 << 20) + 4096
NODE = 77


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """A FUSE mount that nobody answers yet, and the descriptors a keeper would hold."""

    point: Path
    device: int
    journal: int


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    point = tmp_path / "fuse"
    point.mkdir()
    device, journal = open_device(), FuseJournal.create()
    kernel.mount("test", point, "fuse", kernel.MS_RDONLY, f"fd={device},rootmode=40000,user_id=0,group_id=0")
    try:
        yield Mounted(point=point, device=device, journal=journal)
    finally:
        kernel.umount(point, kernel.MNT_DETACH)
        os.close(device)
        os.close(journal)


class OneFile:
    """Serves ``file``, SIZE bytes; READs are kept waiting in ``reads`` until :meth:`release`."""

    def __init__(self, mounted: Mounted, content: Path) -> None:
        self.content = content
        self.reads: list[Request] = []
        self.ended = 0
        self.session = FuseSession(mounted.device, mounted.journal, self.serve, self.end)

    def serve(self, request: Request) -> None:
        attributes = protocol.attributes(NODE, mode=stat.S_IFREG | 0o444, size=SIZE)
        match request.opcode:
            case Opcode.INIT:
                answer = protocol.init_reply(request.body, max_read_bytes=MAX_READ_BYTES, max_background=64)
                self.session.answer(request, answer)
            case Opcode.LOOKUP:
                self.session.answer(request, protocol.entry_reply(NODE, attributes))
            case Opcode.GETATTR:
                self.session.answer(request, protocol.attr_reply(attributes))
            case Opcode.OPEN:
                self.session.answer(request, protocol.open_reply())
            case Opcode.RELEASE:
                self.session.answer(request)
            case Opcode.READ:
                self.reads.append(request)
            case Opcode.FORGET | Opcode.BATCH_FORGET:
                self.session.forget(request)
            case _:
                self.session.answer(request, error=errno.ENOSYS)

    def end(self) -> None:
        self.ended += 1

    def release(self) -> None:
        for request in self.reads:
            offset, size = request.extent
            self.session.answer_file(request, self.content, offset, min(size, SIZE - offset))
        self.reads.clear()


@pytest.fixture
def content(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
async def server(mounted: Mounted, content: Path) -> AsyncIterator[OneFile]:
    served = OneFile(mounted, content)
    served.session.start()
    yield served
    await served.session.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@contextmanager
def reading(path: Path, *, kill: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """Another process copies the file to its output, one read of 128 KiB after the other."""
    with subprocess.Popen(["dd", f"if={path}", "bs=128k", "status=none"], stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            if kill:
                process.kill()


async def finish(server: OneFile, reader: subprocess.Popen[bytes]) -> bytes:
    """Release every read as it comes, until the reader has it all."""
    output = asyncio.ensure_future(asyncio.to_thread(lambda: reader.communicate()[0]))
    async with asyncio.timeout(10):
        while not output.done():
            server.release()
            await asyncio.sleep(0.005)
    return output.result()


async def test_the_journal_is_where_requests_are_read_to(mounted: Mounted, content: Path, server: OneFile) -> None:
    """What was taken is in the memory file, before any statement of ours could put it there."""
    with reading(mounted.point / "file") as reader:
        await until(lambda: server.reads)
        successor = FuseJournal(mounted.journal)
        found = {request.unique: request for request in successor.unanswered()}
        successor.close()
        assert {request.unique for request in server.reads} <= set(found)
        assert all(found[request.unique].extent == request.extent for request in server.reads)
        assert await finish(server, reader) == content.read_bytes()
    leftover = FuseJournal(mounted.journal)
    assert not [request for request in leftover.unanswered() if request.opcode == Opcode.READ]
    leftover.close()


async def test_a_successor_answers_what_was_taken(mounted: Mounted, content: Path) -> None:
    first = OneFile(mounted, content)
    first.session.start()
    with reading(mounted.point / "file") as reader:
        await until(lambda: first.reads)
        await first.session.close()
        taken = {request.unique for request in first.reads}
        first.release()  # after close nothing is answered any more
        second = OneFile(mounted, content)
        second.session.start()
        assert taken <= {request.unique for request in second.reads}
        assert await finish(second, reader) == content.read_bytes()
        await second.session.close()


async def test_an_answer_given_twice_is_harmless(mounted: Mounted, content: Path, server: OneFile) -> None:
    with reading(mounted.point / "file") as reader:
        await until(lambda: server.reads)
        again = server.reads[0]
        payload = content.read_bytes()[again.extent[0] :][: again.extent[1]]
        os.writev(mounted.device, [protocol.OUT_HEADER.pack(16 + len(payload), 0, again.unique), payload])
        assert await finish(server, reader) == content.read_bytes()


async def test_a_full_journal_leaves_requests_with_the_kernel(
    mounted: Mounted, content: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuse_journal, "SLOTS", 1)
    server = OneFile(mounted, content)
    server.session.start()
    with reading(mounted.point / "file") as reader:
        await until(lambda: server.reads)
        other = asyncio.ensure_future(asyncio.to_thread((mounted.point / "other").stat))
        await asyncio.sleep(0.2)
        assert not other.done()
        assert len(server.reads) == 1
        assert await finish(server, reader) == content.read_bytes()
        assert (await other).st_size == SIZE
    await server.session.close()


async def test_an_error_is_told_to_the_reader(mounted: Mounted, server: OneFile) -> None:
    with reading(mounted.point / "file") as reader:
        await until(lambda: server.reads)
        while reader.poll() is None:
            for request in server.reads:
                server.session.answer(request, error=errno.EIO)
            server.reads.clear()
            await asyncio.sleep(0.005)
        assert reader.returncode == 1


async def test_a_file_that_is_too_short_is_an_error_not_zeros(mounted: Mounted, content: Path, server: OneFile) -> None:
    os.truncate(content, 4096)
    with reading(mounted.point / "file") as reader:
        output = await finish(server, reader)
        assert len(output) < SIZE
        assert reader.returncode == 1


async def test_a_waiting_reader_can_be_killed(mounted: Mounted, server: OneFile) -> None:
    with reading(mounted.point / "file", kill=False) as reader:
        await until(lambda: server.reads)
        reader.send_signal(signal.SIGKILL)
        async with asyncio.timeout(5):
            await asyncio.to_thread(reader.wait)
    server.release()


async def test_the_end_of_the_session_is_noticed(mounted: Mounted, server: OneFile) -> None:
    assert await asyncio.to_thread((mounted.point / "file").exists)
    assert is_alive(mounted.device)
    kernel.umount(mounted.point, kernel.MNT_DETACH)
    await until(lambda: server.ended == 1)
    assert not is_alive(mounted.device)
    kernel.mount("none", mounted.point, "tmpfs")  # for the fixture to take away
