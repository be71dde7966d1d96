"""From the bytes of a range request to verified frames in a layer file."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import zstandard

from fetcher.layers.layer import Layer, is_disk_full
from fetcher.scheduler.queues import Piece
from fetcher.scheduler.reuse import copy_frame
from layerformat.errors import FormatError
from layerformat.frames import Frame, decode_parts

#: Frames nobody waits for are handed to a worker in batches of about this many uncompressed bytes.
BATCH_BYTES = 1 << 20

#: Compressed bytes of a frame.
Data = bytes | memoryview


class FrameAssembler:
    """Cuts frames that follow one another out of a stream of chunks, copying what lies in more than one of them."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._next = 0
        self._parts: list[memoryview] = []  # what has come of the next frame
        self._come = 0

    def feed(self, chunk: bytes) -> list[tuple[Piece, Data]]:
        """The frames that are whole now, each with its compressed bytes."""
        rest = memoryview(chunk)
        whole: list[tuple[Piece, Data]] = []
        while rest and self._next < len(self._pieces):
            piece = self._pieces[self._next]
            missing = piece.frame.size - self._come
            part, rest = rest[:missing], rest[missing:]
            self._parts.append(part)
            self._come += len(part)
            if self._come < piece.frame.size:
                break
            whole.append((piece, self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)))
            self._parts, self._come = [], 0
            self._next += 1
        return whole


#: A frame to copy: from which layer, and which frame of that.
Local = tuple[Piece, Layer, Frame]


@dataclass(slots=True)
class Decoded:
    """What became of a batch: frames written, frames whose bytes were wrong, and the disk's complaint, if any."""

    written: list[Piece] = field(default_factory=list)
    wrong: list[Piece] = field(default_factory=list)
    disk_error: OSError | None = None


class DecodePool:
    """Threads that decompress, verify and write frames; the interpreter's lock is free during all three.

    As many again are for what readers wait for: behind the megabytes of a replay they would wait as long again.
    """

    def __init__(self, workers: int) -> None:
        workers = workers or len(os.sched_getaffinity(0))
        self._executor = ThreadPoolExecutor(workers, "decode")
        self._urgent = ThreadPoolExecutor(workers, "decode-urgent")
        self._local = threading.local()

    async def decode(self, batch: Sequence[tuple[Piece, Data]], *, urgent: bool) -> Decoded:
        """Bring a batch into its layer files. Does not mark the frames present: that is the event loop's."""
        return await self._in_worker(self._urgent if urgent else self._executor, self._decode, batch)

    def _decode(self, batch: Sequence[tuple[Piece, Data]]) -> Decoded:
        result = Decoded()
        for piece, compressed in batch:
            try:
                parts = decode_parts(piece.frame, compressed, self._decompressor())
            except FormatError:
                result.wrong.append(piece)
                continue
            try:
                piece.queue.layer.write_frame(piece.frame, parts)
            except OSError as error:
                result.disk_error = error
                break
            result.written.append(piece)
        return result

    async def copy(self, batch: Sequence[Local]) -> Decoded:
        """Bring frames that other layers hold into their layer; those that are not what they should be are wrong."""
        return await self._in_worker(self._executor, self._copy, batch)

    async def _in_worker(
        self, executor: ThreadPoolExecutor, work: Callable[[Any], Decoded], batch: Sequence[Any]
    ) -> Decoded:
        """Cancelled or not, it returns only when the worker has: the caller may close the layer file after it."""
        done = asyncio.get_running_loop().run_in_executor(executor, work, batch)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait([done])
            raise

    def _copy(self, batch: Sequence[Local]) -> Decoded:
        result = Decoded()
        for piece, source, there in batch:
            try:
                copied = copy_frame(source, there, piece.queue.layer, piece.frame)
            except OSError as error:
                if is_disk_full(error):
                    result.disk_error = error
                    break
                copied = False
            (result.written if copied else result.wrong).append(piece)
        return result

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        try:
            decompressor: zstandard.ZstdDecompressor = self._local.decompressor
        except AttributeError:
            decompressor = self._local.decompressor = zstandard.ZstdDecompressor()
        return decompressor

    def close(self) -> None:
        """Wait for what is under way, then end the threads."""
        self._executor.shutdown()
        self._urgent.shutdown()
