"""Events taken from the kernel and not answered yet, kept where a successor finds them.

A pre-content event is taken by read(2) and answered by its descriptor's *number*; a daemon that dies in between
leaves a reader that nobody answers. The journal is a memory file shared with the keeper: slot *n* describes the event
whose descriptor was *n*. The successor answers those events by number, and keeps each number occupied until then, so
that no new event can be given it.

One gap is left: between the return of read(2) and the stores below. ``reading`` is set around it; a successor that
finds it set knows that there may be events of unknown numbers, all below the limit of open files its predecessor had
(``floor``). It occupies every number below it, and answers them all when each layer that was incomplete at that time
is complete: late, but never wrongly.

Layout, native byte order: a header of 4096 bytes (magic, reading, floor, limit: u64 each), then SLOTS slots of 24 bytes
(inode, offset, count: u64 each); inode 0 marks a free slot.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC = 0x6661_7374_6A72_6E31
HEADER_BYTES = 4096
SLOTS = 1 << 18
_HEADER = struct.Struct("=QQQQ")
_SLOT = struct.Struct("=QQQ")
_WORD = struct.Struct("=Q")
_READING_AT, _FLOOR_AT, _LIMIT_AT = 8, 16, 24


@dataclass(frozen=True, slots=True)
class Unanswered:
    """An event of a predecessor: descriptor number, inode of the layer file, bytes [offset, offset + count)."""

    fd: int
    inode: int
    offset: int
    count: int


class Journal:
    """The slots, mapped from a memory file. Only one daemon at a time writes."""

    def __init__(self, fd: int) -> None:
        """Map the journal behind ``fd``, which stays the caller's; ValueError when it is none of this version."""
        self._fd = fd
        self._map = mmap.mmap(fd, HEADER_BYTES + SLOTS * _SLOT.size)
        magic, *_ = _HEADER.unpack_from(self._map)
        if magic != MAGIC:
            raise ValueError(f"event journal: magic {magic:#x}")

    @staticmethod
    def create() -> int:
        """A new, empty journal: its descriptor. Pages that are never written take no memory."""
        fd = os.memfd_create("fastpull-journal", os.MFD_CLOEXEC)
        os.ftruncate(fd, HEADER_BYTES + SLOTS * _SLOT.size)
        os.pwrite(fd, _HEADER.pack(MAGIC, 0, 0, 0), 0)
        return fd

    def begin_read(self) -> None:
        """Call right before read(2) on the group."""
        _WORD.pack_into(self._map, _READING_AT, 1)

    def end_read(self) -> None:
        """Call when every event that read(2) returned has been recorded."""
        _WORD.pack_into(self._map, _READING_AT, 0)

    @property
    def interrupted(self) -> bool:
        """Whether the predecessor died between reading events and recording them."""
        return bool(_WORD.unpack_from(self._map, _READING_AT)[0])

    @property
    def floor(self) -> int:
        """Numbers below this may belong to events that nobody recorded; 0 when there are none."""
        return int(_WORD.unpack_from(self._map, _FLOOR_AT)[0])

    @floor.setter
    def floor(self, number: int) -> None:
        _WORD.pack_into(self._map, _FLOOR_AT, number)

    @property
    def limit(self) -> int:
        """The limit of open files of the daemon that last wrote: every event it took has a number below."""
        return int(_WORD.unpack_from(self._map, _LIMIT_AT)[0])

    @limit.setter
    def limit(self, number: int) -> None:
        _WORD.pack_into(self._map, _LIMIT_AT, number)

    def record(self, fd: int, inode: int, offset: int, count: int) -> None:
        """An event was taken."""
        _SLOT.pack_into(self._map, HEADER_BYTES + fd * _SLOT.size, inode, offset, count)

    def forget(self, fd: int) -> None:
        """The event was answered; call after the answer was written."""
        _WORD.pack_into(self._map, HEADER_BYTES + fd * _SLOT.size, 0)

    def unanswered(self) -> Iterator[Unanswered]:
        """What a predecessor left, by descriptor number."""
        # By read, not through the mapping: that would have memory allocated for every slot that was never used.
        slots = os.pread(self._fd, SLOTS * _SLOT.size, HEADER_BYTES)
        for fd, (inode, offset, count) in enumerate(_SLOT.iter_unpack(slots)):
            if inode:
                yield Unanswered(fd, inode, offset, count)

    def close(self) -> None:
        """Unmap; the keeper's copy stays."""
        self._map.close()
