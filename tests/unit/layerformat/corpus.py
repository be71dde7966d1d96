"""A layer with every kind of file the format knows, and the tar-like device that holds its data."""

import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from layerformat.entries import Entry

BLOCK = 4096
FILLER = b"\xa5"  # what lies between files: never zero, so that a wrong offset or length shows
NO_ID = 0xFFFFFFFF

# struct vfs_cap_data, revision 2, effective: cap_net_bind_service
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
# struct posix_acl_xattr_header and entries: u::rwx, u:1000:r-x, g::r-x, m::rwx, o::r-x
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *row) for row in ((1, 7, NO_ID), (2, 5, 1000), (4, 5, NO_ID), (16, 7, NO_ID), (32, 5, NO_ID))
)


@dataclass
class Corpus:
    """Entries and their data, laid out as a converter would: each file at the next multiple of 4096."""

    entries: list[Entry] = field(default_factory=list)
    contents: dict[bytes, bytes] = field(default_factory=dict)
    device: bytearray = field(default_factory=lambda: bytearray(FILLER * BLOCK))

    def add(self, path: bytes, mode: int, **fields: Any) -> None:
        """A file without data."""
        self.entries.append(Entry(path=path, mode=mode, **{"uid": 0, "gid": 0, "mtime_ns": 0, **fields}))

    def add_file(self, path: bytes, content: bytes, perm: int = 0o644, **fields: Any) -> None:
        """A regular file."""
        offset = len(self.device) if content else None
        self.contents[path] = content
        self.device += content.ljust(-(-len(content) // BLOCK) * BLOCK, FILLER)
        self.add(path, stat.S_IFREG | perm, size=len(content), data_offset=offset, **fields)

    @property
    def device_bytes(self) -> int:
        """Size of the device, a multiple of 4096."""
        return len(self.device)


def make_corpus() -> Corpus:
    """Every inode type and every edge of it."""
    corpus = Corpus()
    corpus.add(b"", stat.S_IFDIR | 0o755, mtime_ns=1_700_000_000_123_456_789)
    _add_files(corpus)
    _add_names(corpus)
    _add_links(corpus)
    _add_special(corpus)
    _add_xattrs(corpus)
    _add_directories(corpus)
    return corpus


def _pattern(length: int, seed: int) -> bytes:
    return bytes((n * 7 + n // 251 + seed) % 251 + 1 for n in range(length))


def _add_files(corpus: Corpus) -> None:
    for size in (0, 1, 511, 512, 4095, 4096, 4097, 8192, 8193, 100_000):
        corpus.add_file(b"files/%d" % size, _pattern(size, size), mtime_ns=size * 1_000_000_001)
    corpus.add_file(b"files/before-1970", b"old", mtime_ns=-1)
    corpus.add_file(b"files/far-past", b"older", mtime_ns=-(10**18) - 999_999_999)
    corpus.add_file(b"files/far-future", b"later", mtime_ns=2**34 * 10**9 + 1)
    corpus.add_file(b"files/setuid", b"#!", 0o4755, uid=0, gid=65534)
    corpus.add_file(b"files/setgid", b"#!", 0o2711)
    corpus.add_file(b"files/large-ids", b"ids", 0o600, uid=70_000, gid=4_294_967_294)
    corpus.add_file(b"files/no-permissions", b"secret", 0)


def _add_names(corpus: Corpus) -> None:
    corpus.add_file(b"names/" + b"n" * 255, b"longest name")
    corpus.add_file(b"names/\xff\xfe\x80not-utf8\x01\n", b"bytes")
    corpus.add_file(b"names/!sorts before dot", b"!")
    corpus.add_file(b"names/...", b"three dots")
    corpus.add_file(b"names/.hidden", b"hidden")
    corpus.add_file(b"names/-dash", b"dash")
    corpus.add_file("names/päth ✓".encode(), b"utf-8")
    deep = b"/".join(b"%d" % (n % 10) for n in range(1200))
    corpus.add_file(b"deep/" + deep, b"bottom")


def _add_links(corpus: Corpus) -> None:
    corpus.add_file(b"links/z-original", b"shared" * 1000, 0o640, uid=1, xattrs={b"user.linked": b"yes"})
    for name in (b"links/a-first", b"links/zz-last", b"other/elsewhere"):
        corpus.add(name, 0, link=b"links/z-original")
    corpus.add(b"links/to-a-link", 0, link=b"links/a-first")
    corpus.add(b"links/fifo", stat.S_IFIFO | 0o600)
    corpus.add(b"links/fifo-too", 0, link=b"links/fifo")
    for length in (1, 59, 60, 3000, 4000, 4032, 4033, 4095):
        corpus.add(b"links/symlink-%d" % length, stat.S_IFLNK | 0o777, target=b"t" * length, uid=length)
    corpus.add(b"links/symlink-bytes", stat.S_IFLNK | 0o777, target=b"../\xff\xfe/x")
    corpus.add(b"links/symlink-hard", 0, link=b"links/symlink-59")


def _add_special(corpus: Corpus) -> None:
    corpus.add(b"dev/null", stat.S_IFCHR | 0o666, rdev=(1, 3))
    corpus.add(b"dev/large-char", stat.S_IFCHR | 0o600, rdev=(4095, 1_048_575), mtime_ns=5)
    corpus.add(b"dev/block", stat.S_IFBLK | 0o660, rdev=(259, 300), gid=6)
    corpus.add(b"dev/fifo", stat.S_IFIFO | 0o644)
    corpus.add(b"dev/socket", stat.S_IFSOCK | 0o755)
    corpus.add(b"dev/whiteout", stat.S_IFCHR, rdev=(0, 0))


def _add_xattrs(corpus: Corpus) -> None:
    every: Mapping[bytes, bytes] = {
        b"user.empty": b"",
        b"user.\xff": b"\0binary\0",
        b"user." + b"n" * 250: b"longest name",
        b"trusted.t": b"1",
        b"security.capability": CAPABILITY,
        b"system.posix_acl_access": ACL,
    }
    corpus.add_file(b"xattrs/every", b"data", 0o755, xattrs=every)
    corpus.add_file(b"xattrs/many", b"data", xattrs={b"user.%03d" % n: b"v" * n for n in range(200)})
    corpus.add_file(b"xattrs/large", b"data", xattrs={b"user.large": _pattern(65535, 3)})
    corpus.add_file(b"xattrs/empty-file", b"", xattrs={b"user.a": b"b"})
    corpus.add(b"xattrs/dir", stat.S_IFDIR | 0o755, xattrs={b"system.posix_acl_default": ACL, b"user.d": b"x" * 5000})
    corpus.add(b"xattrs/link", stat.S_IFLNK | 0o777, target=b"t" * 3000, xattrs={b"trusted.big": b"x" * 1100})
    corpus.add(b"xattrs/fifo", stat.S_IFIFO | 0o600, xattrs={b"trusted.f": b"f"})
    corpus.add(b"opaque", stat.S_IFDIR | 0o755, xattrs={b"trusted.overlay.opaque": b"y"})
    corpus.add_file(b"opaque/upper-only", b"upper")


def _add_directories(corpus: Corpus) -> None:
    corpus.add(b"dirs/empty", stat.S_IFDIR | 0o1777, uid=5, gid=6, mtime_ns=77)
    for count in (1, 100, 254, 300, 3000):  # inline; inline; nearly a block; a block and a tail; many blocks
        for number in range(count):
            corpus.add(b"dirs/%d/%04d" % (count, number), stat.S_IFREG | 0o644)
    for number in range(40):
        corpus.add(b"dirs/sub/%02d" % number, stat.S_IFDIR | 0o700)
    # "." and ".." take 27 bytes and each name 12 + 207: the second block is exactly full, so nothing is left to inline.
    for number in range(18 + 18):
        corpus.add(b"dirs/exact/%03d" % number + b"x" * 204, stat.S_IFREG | 0o644)
