"""Which frames of a layer are on the node: one bitmap for this boot, one that outlives a power cut.

``present`` is mapped and its header holds the kernel's boot id. While the machine runs, what was written to the layer
file is in the page cache whoever dies, so every set bit is true; after a reboot nothing in it is believed.
``durable`` is written only after fdatasync(2) of the layer file and claims no more than was set before that call; it
is what counts after a reboot.
"""

from __future__ import annotations

import mmap
import os
import struct
from functools import cache
from pathlib import Path

_HEADER = struct.Struct("<8s36s20x")
_MAGIC = b"fpframes"
_DURABLE_HEADER = struct.Struct("<8sQ")
_COUNT = bytes(byte.bit_count() for byte in range(256))


@cache
def boot_id() -> bytes:
    """The kernel's identity of this boot, 36 characters."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:36]


class PresentBits:
    """What another process's :class:`FrameBitmap` says now; read-only."""

    def __init__(self, directory: Path, frames: int) -> None:
        """Raises OSError, or ValueError for a file of another size."""
        fd = os.open(directory / "present", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(fd, _HEADER.size + (frames + 7) // 8, prot=mmap.PROT_READ)
        finally:
            os.close(fd)

    def __contains__(self, number: int) -> bool:
        return bool(self._map[_HEADER.size + (number >> 3)] & (1 << (number & 7)))


class FrameBitmap:
    """A bit per frame, mapped from ``present``. Bits are set by one thread only."""

    def __init__(self, directory: Path, frames: int) -> None:
        """Open or make the bitmaps of a layer directory; what ``present`` may not claim is taken from ``durable``."""
        self._frames = frames
        self.directory = directory  # whoever renames it says so here
        size = _HEADER.size + (frames + 7) // 8
        fd = os.open(directory / "present", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            header = os.pread(fd, _HEADER.size, 0)
            valid = header == _HEADER.pack(_MAGIC, boot_id()) and os.fstat(fd).st_size == size
            if not valid:
                # The header comes last: a half-made file is never taken for a valid one.
                os.ftruncate(fd, 0)
                # Allocated, not a hole: a store into a mapped hole on a full disk would be a fatal signal.
                os.posix_fallocate(fd, 0, size)
                os.pwrite(fd, self._read_durable(), _HEADER.size)
                os.pwrite(fd, _HEADER.pack(_MAGIC, boot_id()), 0)
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._bits = memoryview(self._map)[_HEADER.size :]
        self._count = sum(bytes(self._bits).translate(_COUNT))

    def _read_durable(self) -> bytes:
        size = (self._frames + 7) // 8
        try:
            data = (self.directory / "durable").read_bytes()
        except FileNotFoundError:
            return bytes(size)
        header, bits = data[: _DURABLE_HEADER.size], data[_DURABLE_HEADER.size :]
        if header != _DURABLE_HEADER.pack(_MAGIC, self._frames) or len(bits) != size:
            return bytes(size)
        return bits

    def __len__(self) -> int:
        return self._frames

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int)
        return bool(self._bits[number >> 3] & (1 << (number & 7)))

    @property
    def count(self) -> int:
        """How many frames are present."""
        return self._count

    @property
    def complete(self) -> bool:
        """Whether every frame is present."""
        return self._count == self._frames

    def add(self, number: int) -> None:
        """The frame's bytes are verified and written."""
        bit = 1 << (number & 7)
        if not self._bits[number >> 3] & bit:
            self._bits[number >> 3] |= bit
            self._count += 1

    def first_absent(self, start: int) -> int:
        """The first frame from ``start`` on that is not present; ``len(self)`` when there is none."""
        number = start
        while number < self._frames:
            if not number & 7 and self._bits[number >> 3] == 0xFF:
                number += 8
            elif number in self:
                number += 1
            else:
                return number
        return self._frames

    def snapshot(self) -> bytes:
        """The bits as they are now; take it before fdatasync(2) of the layer file."""
        return bytes(self._bits)

    def write_durable(self, bits: bytes) -> None:
        """Claim ``bits`` for after a reboot; call after the layer file's fdatasync(2) returned. Blocks."""
        draft = self.directory / "durable.new"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, _DURABLE_HEADER.pack(_MAGIC, self._frames) + bits)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        draft.rename(self.directory / "durable")

    def close(self) -> None:
        """Unmap."""
        self._bits.release()
        self._map.close()
