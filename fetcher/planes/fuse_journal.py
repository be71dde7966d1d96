"""FUSE requests taken from the kernel and not answered yet, kept where a successor finds them.

A request that read(2) of the device has returned is the reader's to answer: no other read returns it again (before
FUSE_NOTIFY_RESEND of Linux 6.9), and its issuer waits, mostly in a sleep that no signal ends. So the journal is not
written after the read: the journal *is* the buffer of the read. It is a memory file shared with the keeper, and each
readv(2) is given the free slot that the request shall occupy. The kernel copies a request into the buffer before it
counts it as sent, and a process is killed before a system call or after it, not inside; so at any moment a request is
either still the kernel's or whole in its slot. A successor answers what it finds in the slots first. Answering twice is
harmless, a request identifier is never used again and the kernel says ENOENT; hence a slot is freed after its answer.

What remains: the kernel copies through pinned pages, and pinning a page that is not mapped fails when a SIGKILL is
pending, which fails the request with EIO. The mapping is therefore populated and locked, so that pinning does not have
to wait for a page; only a page under migration at the very moment of the kill is left.

Layout: a header page (magic u64), FUSE_MIN_READ_BUFFER bytes for the rest of long requests, then SLOTS slots of
SLOT_BYTES, each with the first bytes of its request as the kernel wrote them. A request starts with its length: 0
marks a free slot.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

from fetcher.planes.fuse_protocol import FUSE_MIN_READ_BUFFER, READ_REQUEST_BYTES, Request

MAGIC = 0x6661_7374_6675_7331
HEADER_BYTES = 4096
SLOTS = 8192
SLOT_BYTES = 128
#: include/uapi/asm-generic/mman.h
MAP_LOCKED = 0x2000
_SLOTS_AT = HEADER_BYTES + FUSE_MIN_READ_BUFFER
_SIZE = _SLOTS_AT + SLOTS * SLOT_BYTES
_MAGIC = struct.Struct("=Q")
_LENGTH = struct.Struct("=I")
assert SLOT_BYTES >= READ_REQUEST_BYTES


class FuseJournal:
    """The slots, mapped from a memory file. Only one daemon at a time, and of it one thread."""

    def __init__(self, fd: int) -> None:
        """Map the journal behind ``fd``, which stays the caller's; ValueError when it is none of this version."""
        if os.fstat(fd).st_size != _SIZE:
            raise ValueError("request journal: wrong size")
        self._map = map_locked(fd, _SIZE)
        self._view = memoryview(self._map)
        if _MAGIC.unpack_from(self._map)[0] != MAGIC:
            self.close()
            raise ValueError("request journal: wrong magic")
        self._rest = self._view[HEADER_BYTES:_SLOTS_AT]
        self._free = [slot for slot in reversed(range(SLOTS)) if not self._length(slot)]

    @staticmethod
    def create() -> int:
        """A new, empty journal: its descriptor."""
        fd = os.memfd_create("fastpull-fuse-journal", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SIZE)
        os.pwrite(fd, _MAGIC.pack(MAGIC), 0)
        return fd

    @property
    def full(self) -> bool:
        """Whether no more requests can be taken until one is answered."""
        return not self._free

    def take(self, device: int) -> Request:
        """Take the next request of the kernel. BlockingIOError when there is none; OSError when the session ended.

        Call only while the journal is not full.
        """
        slot = self._free[-1]
        os.readv(device, [self._slot(slot), self._rest])  # a read that fails leaves the slot free
        self._free.pop()
        return Request.parse(slot, bytes(self._slot(slot)))

    def forget(self, request: Request) -> None:
        """The request was answered, or needs no answer."""
        _LENGTH.pack_into(self._map, _SLOTS_AT + request.slot * SLOT_BYTES, 0)
        self._free.append(request.slot)

    def unanswered(self) -> Iterator[Request]:
        """What a predecessor left."""
        for slot in range(SLOTS):
            if self._length(slot):
                yield Request.parse(slot, bytes(self._slot(slot)))

    def _length(self, slot: int) -> int:
        return int(_LENGTH.unpack_from(self._map, _SLOTS_AT + slot * SLOT_BYTES)[0])

    def _slot(self, slot: int) -> memoryview:
        start = _SLOTS_AT + slot * SLOT_BYTES
        return self._view[start : start + SLOT_BYTES]

    def close(self) -> None:
        """Unmap; the keeper's copy stays."""
        if hasattr(self, "_rest"):
            self._rest.release()
        self._view.release()
        self._map.close()


def map_locked(fd: int, size: int) -> mmap.mmap:
    """Map ``size`` bytes, resident from the start and for good where the process may lock memory; -1: anonymous."""
    flags = (mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) | mmap.MAP_POPULATE
    try:
        return mmap.mmap(fd, size, flags=flags | MAP_LOCKED)
    except OSError:
        return mmap.mmap(fd, size, flags=flags)
