"""The process that reads ahead of a program: what a profile names, through the layers' mounts, into the page cache.

A frame that is on the disk still costs its first reader an event: the reader sleeps until the daemon has said that it
may go on, once for each page where the kernel has given up reading around (``MMAP_LOTSAMISS``, mm/filemap.c). Read
ahead of the program, in large steps, they cost the program nothing. This must be a process of its own: the daemon
would wait for itself.

Run as a module, it takes one JSON object on standard input: ``reads``, ``[layer, offset, length]`` in order, as in a
profile; ``layers``, the directory of each; ``limit_bytes``, how much to read at most. It ends when it is through, when
nothing has come for a while, when a mount goes away, or with its parent.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fetcher import kernel
from fetcher.layers.bitmap import PresentBits
from fetcher.layers.extents import ExtentMap, Piece
from layerformat.frames import FrameTable
from layerformat.index import frame_table

#: How long it waits for a mount, or for the next frame, before it gives up.
PATIENCE_S = 30.0
POLL_S = 0.002
#: Reads of one frame that are no further apart are one: a page is cheaper than an event.
GAP_BYTES = 32 << 10
#: The kernel's read-ahead window of a file it is told to read from front to back: twice that of its mount.
STEP_BYTES = 256 << 10
OPEN_FILES = 256


class Step(NamedTuple):
    """A part of one file, within one frame of a layer."""

    layer: int
    frame: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class Source:
    """What must be known of a layer to read its files."""

    directory: Path
    frames: FrameTable
    extents: ExtentMap

    @classmethod
    def load(cls, directory: Path) -> Source:
        """Raises OSError, or ValueError where a file is not what it should be."""
        return cls(directory, frame_table((directory / "index").read_bytes()), ExtentMap.load(directory))


def plan(reads: Iterable[Sequence[int]], sources: Mapping[int, Source]) -> Iterator[Step]:
    """The steps for a profile's reads: frame by frame, in the order in which the frames are first touched."""
    touched: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for layer, offset, length, *_ in reads:
        source = sources.get(layer)
        if source is None:
            continue
        for number in source.frames.covering(offset, offset + length):
            touched.setdefault((layer, number), []).append((offset, offset + length))
    for (layer, number), ranges in touched.items():
        frame = sources[layer].frames[number]
        for start, end in _merged(ranges):
            for piece in sources[layer].extents.pieces(max(start, frame.start), min(end, frame.end)):
                yield Step(layer, number, piece)


def _merged(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Sorted, and one where no more than a small gap lies between."""
    ranges.sort()
    start, end = ranges[0]
    for following, stop in ranges[1:]:
        if following - end > GAP_BYTES:
            yield start, end
            start = following
        end = max(end, stop)
    yield start, end


class Mounted:
    """A layer's mount, its files by inode number, and which of its frames are there."""

    def __init__(self, present: PresentBits, directory: int) -> None:
        self._present = present
        self._opener = kernel.InodeOpener(directory)
        self._files: OrderedDict[int, int] = OrderedDict()

    @classmethod
    def wait_for(cls, source: Source, patience: Patience) -> Mounted:
        """Once the layer is mounted. Raises TimeoutError or OSError."""
        outside = source.directory.stat().st_dev
        while (source.directory / "fs").stat().st_dev == outside:
            patience.wait()
        fd = os.open(source.directory / "fs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return cls(PresentBits(source.directory, len(source.frames)), fd)

    def has(self, frame: int) -> bool:
        """Whether the frame's bytes are in the layer file."""
        return frame in self._present

    def read(self, piece: Piece) -> None:
        """Have a part of a file in the page cache. Raises OSError."""
        fd = self._file(piece.nid)
        position, end = piece.start - piece.base, piece.end - piece.base
        while position < end:
            os.posix_fadvise(fd, position, min(STEP_BYTES, end - position), os.POSIX_FADV_WILLNEED)
            position += STEP_BYTES

    def _file(self, nid: int) -> int:
        fd = self._files.get(nid)
        if fd is None:
            fd = self._files[nid] = self._opener.open(nid)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            if len(self._files) > OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        return fd


class Patience:
    """How long nothing may happen, while the parent lives."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._until = time.monotonic() + PATIENCE_S

    def renew(self) -> None:
        """Something happened."""
        self._until = time.monotonic() + PATIENCE_S

    def wait(self) -> None:
        """A moment. Raises TimeoutError when it was too long, or nobody wants it any more."""
        if time.monotonic() > self._until or os.getppid() != self._parent:
            raise TimeoutError
        time.sleep(POLL_S)


def warm(order: Mapping[str, Any]) -> int:
    """Carry an order out; returns the bytes that were read. Raises TimeoutError, OSError or ValueError."""
    patience = Patience()
    sources = {number: Source.load(Path(path)) for number, path in enumerate(order["layers"]) if path is not None}
    steps = list(plan(order["reads"], sources))
    needed = {step.layer for step in steps}
    mounts = {number: Mounted.wait_for(sources[number], patience) for number in needed}
    done = 0
    for layer, frame, piece in steps:
        if done >= order["limit_bytes"]:
            break
        while not mounts[layer].has(frame):
            patience.wait()
        mounts[layer].read(piece)
        patience.renew()
        done += piece.end - piece.start
    return done


def main() -> int:
    """The program. On standard output: ``{"bytes": N}``, or ``{"error": WHY}`` and status 1."""
    try:
        told: dict[str, object] = {"bytes": warm(json.load(sys.stdin))}
    except (OSError, ValueError) as error:  # TimeoutError is one of the former
        told = {"error": str(error) or "nothing came for a while"}
    with suppress(OSError):  # whoever wanted to know is gone
        os.write(sys.stdout.fileno(), json.dumps(told).encode())
    return int("error" in told)


if __name__ == "__main__":
    sys.exit(main())
