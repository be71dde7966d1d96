"""The FUSE wire protocol, as much of it as a flat read-only directory needs. No I/O.

Spelled as in include/uapi/linux/fuse.h, which is the specification; native byte order, as the kernel writes it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

FUSE_KERNEL_VERSION = 7
#: The newest minor version whose structures are laid out below; the kernel talks no newer one than it is told.
FUSE_KERNEL_MINOR_VERSION = 36
FUSE_ROOT_ID = 1
#: read(2) of the device fails with EINVAL for less.
FUSE_MIN_READ_BUFFER = 8192

FUSE_ASYNC_READ = 1 << 0
FUSE_ASYNC_DIO = 1 << 15
FUSE_PARALLEL_DIROPS = 1 << 18
FUSE_MAX_PAGES = 1 << 22
FUSE_EXPLICIT_INVAL_DATA = 1 << 25
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NOFLUSH = 1 << 5

IN_HEADER = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
OUT_HEADER = struct.Struct("=IiQ")  # len, error, unique
INIT_IN = struct.Struct("=IIII")  # major, minor, max_readahead, flags; what newer kernels append is not needed
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
# map_alignment, flags2, unused
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
READ_IN = struct.Struct("=QQIIQII")  # fh, offset, size, read_flags, lock_owner, flags, padding
# ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags
ATTR = struct.Struct("=6Q3I7I")
ENTRY_OUT = struct.Struct("=QQQQII")  # nodeid, generation, entry_valid, attr_valid, their nanoseconds; then ATTR
ATTR_OUT = struct.Struct("=QII")  # attr_valid, attr_valid_nsec, dummy; then ATTR
OPEN_OUT = struct.Struct("=QII")  # fh, open_flags, padding
STATFS_OUT = struct.Struct("=5QIIII24x")  # blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding, spare
DIRENT = struct.Struct("=QQII")  # ino, off, namelen, type; then the name, padded to 8 bytes
SIZES = (IN_HEADER.size, OUT_HEADER.size, INIT_OUT.size, READ_IN.size, ATTR.size, ENTRY_OUT.size, STATFS_OUT.size)
assert SIZES == (40, 16, 64, 40, 88, 40, 80)

#: A READ request, the longest that has to be kept over the daemon's death.
READ_REQUEST_BYTES = IN_HEADER.size + READ_IN.size
#: Names and attributes never change: what a name stands for is fixed by the digest it is made of.
FOREVER_S = 1 << 31
BLOCK = 4096


class Opcode(IntEnum):
    """Requests that are understood; all others are answered with ENOSYS, and most of them never come back then."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    INIT = 26
    READDIR = 28
    DESTROY = 38
    BATCH_FORGET = 42


#: The kernel expects no answer to these.
UNANSWERED = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of the kernel: where the journal keeps it, its header, and what follows the header."""

    slot: int
    opcode: int
    unique: int
    node: int
    body: bytes

    @classmethod
    def parse(cls, slot: int, record: bytes) -> Request:
        """From the first bytes of what read(2) returned. The body may be cut off at the journal's slot size."""
        length, opcode, unique, node, *_ = IN_HEADER.unpack_from(record)
        return cls(slot=slot, opcode=opcode, unique=unique, node=node, body=record[IN_HEADER.size : length])

    @property
    def extent(self) -> tuple[int, int]:
        """Offset and size of a READ or READDIR, in bytes."""
        _, offset, size, *_ = READ_IN.unpack_from(self.body)
        return int(offset), int(size)

    @property
    def name(self) -> bytes:
        """Of a LOOKUP."""
        return self.body.partition(b"\0")[0]


def init_reply(body: bytes, *, max_read_bytes: int, max_background: int) -> bytes:
    """The answer to INIT: large reads, many of them at a time."""
    _, minor, max_readahead, offered = INIT_IN.unpack_from(body)
    wanted = FUSE_ASYNC_READ | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_EXPLICIT_INVAL_DATA
    return INIT_OUT.pack(
        FUSE_KERNEL_VERSION,
        min(minor, FUSE_KERNEL_MINOR_VERSION),
        max_readahead,
        wanted & offered,
        max_background,
        max_background * 3 // 4,
        BLOCK,  # max_write, which also sizes the smallest buffer the kernel accepts: nothing is ever written
        1,
        max_read_bytes // BLOCK,
        0,
        0,
    )


def attributes(node: int, *, mode: int, size: int) -> bytes:
    """struct fuse_attr of a file or directory of root's, times 0."""
    blocks = -(-size // 512)
    return ATTR.pack(node, size, blocks, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, BLOCK, 0)


def entry_reply(node: int, attr: bytes) -> bytes:
    """The answer to LOOKUP."""
    return ENTRY_OUT.pack(node, 0, FOREVER_S, FOREVER_S, 0, 0) + attr


def attr_reply(attr: bytes) -> bytes:
    """The answer to GETATTR."""
    return ATTR_OUT.pack(FOREVER_S, 0, 0) + attr


def open_reply() -> bytes:
    """The answer to OPEN: keep what is cached of the file, and do not ask when it is closed.

    A file that stays open over fork(2) is closed by the child before it calls exec(2), and that would wait for an
    answer to FLUSH: for ever, if its parent is the one that answers, and itself waits for the child (vfork(2), and
    subprocess with it). FOPEN_NOFLUSH is of Linux 5.16, as are EROFS's extra devices. RELEASE is not waited for.
    """
    return OPEN_OUT.pack(0, FOPEN_KEEP_CACHE | FOPEN_NOFLUSH, 0)


def statfs_reply(files: int) -> bytes:
    """The answer to STATFS: nothing is free."""
    return STATFS_OUT.pack(0, 0, 0, files, 0, BLOCK, 255, BLOCK, 0)


def readdir_reply(entries: Sequence[tuple[int, bytes, int]], offset: int, size: int) -> bytes:
    """The answer to READDIR: (node, name, S_IFMT mode) from ``offset``, a position in ``entries``, on."""
    reply = b""
    for position, (node, name, mode) in enumerate(entries[offset:], start=offset + 1):
        record = DIRENT.pack(node, position, len(name), mode >> 12) + name
        record += bytes(-len(record) % 8)
        if len(reply) + len(record) > size:
            break
        reply += record
    return reply
