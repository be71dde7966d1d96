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
from fetcher.scheduler.reuse import copy_frame
from layerformat.errors import FormatError
from layerformat.frames import Frame, decode_parts

#: Frames nobody waits for are handed to a worker in batches of about this many uncompressed bytes.
BATCH_BYTES = 1 << 20

#: Compressed bytes of a frame.
Data = bytes | memoryview


class FrameAssembler:
    """Cuts a run of neighbouring frames out of a stream of chunks, copying what lies in more than one of them."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._frames = frames
        self._next = 0
        self._pieces: list[memoryview] = []  # what has come of the next frame
        self._come = 0

    @property
    def received_to(self) -> int:
        """Offset in the blob up to which bytes have come."""
        if self._next == len(self._frames):
            return self._frames[-1].offset + self._frames[-1].size
        return self._frames[self._next].offset + self._come

    def feed(self, chunk: bytes) -> list[tuple[Frame, Data]]:
        """The frames that are whole now, each with its compressed bytes."""
        rest = memoryview(chunk)
        whole: list[tuple[Frame, Data]] = []
        while rest and self._next < len(self._frames):
            frame = self._frames[self._next]
            piece, rest = rest[: frame.size - self._come], rest[frame.size - self._come :]
            self._pieces.append(piece)
            self._come += len(piece)
            if self._come < frame.size:
                break
            whole.append((frame, self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)))
            self._pieces, self._come = [], 0
            self._next += 1
        return whole


#: A frame to copy: which, from which layer, and which frame of that.
Local = tuple[Frame, Layer, Frame]


@dataclass(slots=True)
class Decoded:
    """What became of a batch: frames written, frames whose bytes were wrong, and the disk's complaint, if any."""

    written: list[Frame] = field(default_factory=list)
    wrong: list[Frame] = field(default_factory=list)
    disk_error: OSError | None = None


class DecodePool:
    """Threads that decompress, verify and write frames; the interpreter's lock is free during all three."""

    def __init__(self, workers: int) -> None:
        self._executor = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), "decode")
        self._local = threading.local()

    async def decode(self, layer: Layer, batch: Sequence[tuple[Frame, Data]]) -> Decoded:
        """Bring a batch into the layer file. Does not mark the frames present: that is the event loop's."""
        return await self._in_worker(self._decode, layer, batch)

    def _decode(self, layer: Layer, batch: Sequence[tuple[Frame, Data]]) -> Decoded:
        result = Decoded()
        for frame, compressed in batch:
            try:
                parts = decode_parts(frame, compressed, self._decompressor())
            except FormatError:
                result.wrong.append(frame)
                continue
            try:
                layer.write_frame(frame, parts)
            except OSError as error:
                result.disk_error = error
                break
            result.written.append(frame)
        return result

    async def copy(self, layer: Layer, batch: Sequence[Local]) -> Decoded:
        """Bring frames that other layers hold into the layer file; those that are not what they should be are wrong."""
        return await self._in_worker(self._copy, layer, batch)

    async def _in_worker(self, work: Callable[[Layer, Any], Decoded], layer: Layer, batch: Sequence[Any]) -> Decoded:
        """Cancelled or not, it returns only when the worker has: the caller may close the layer file after it."""
        done = asyncio.get_running_loop().run_in_executor(self._executor, work, layer, batch)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait([done])
            raise

    def _copy(self, layer: Layer, batch: Sequence[Local]) -> Decoded:
        result = Decoded()
        for frame, source, there in batch:
            try:
                copied = copy_frame(source, there, layer, frame)
            except OSError as error:
                if is_disk_full(error):
                    result.disk_error = error
                    break
                copied = False
            (result.written if copied else result.wrong).append(frame)
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
