"""`Entry`: one file of a layer, as the EROFS writer takes it and the reader gives it back."""

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from layerformat.errors import FormatError

MAX_NAME_BYTES: Final = 255
MAX_PATH_BYTES: Final = 4095  # PATH_MAX without its NUL; also the longest symlink target
MAX_XATTR_VALUE_BYTES: Final = 0xFFFF
MAX_MAJOR: Final = (1 << 12) - 1  # Linux dev_t: 12 bits of major, 20 of minor
MAX_MINOR: Final = (1 << 20) - 1
MAX_ID: Final = (1 << 32) - 2  # the kernel reads 0xFFFFFFFF as "no id"
FILE_TYPES: Final = frozenset(
    {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
)

OPAQUE_XATTR: Final = b"trusted.overlay.opaque"
OVERLAY_XATTR_PREFIX: Final = b"trusted.overlay."
_PREFIXES: Final = (b"user.", b"trusted.", b"security.")
_ACLS: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of a layer. Sizes are bytes, paths and names are raw bytes."""

    path: bytes  # normalised: no leading or trailing slash, no "." or ".."; b"" is the root
    mode: int  # st_mode, file type included
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0  # regular files
    data_offset: int | None = None  # regular files with size > 0: offset of the data in the tar, multiple of 4096
    rdev: tuple[int, int] = (0, 0)  # major, minor
    target: bytes = b""  # symlinks
    link: bytes | None = None  # hard link: path of the entry that holds the inode; everything else is then ignored
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)  # full names, b"security.capability"


def is_supported_xattr(name: bytes, value: bytes, mode: int) -> bool:
    """Whether the format can carry this attribute; a converter drops the others.

    `trusted.overlay.*` speaks to overlayfs itself: only an opaque directory is let through, so that no layer can make
    the kernel follow redirects or metacopy references.
    """
    if len(value) > MAX_XATTR_VALUE_BYTES or len(name) > MAX_NAME_BYTES or b"\0" in name:
        return False
    if name.startswith(OVERLAY_XATTR_PREFIX):
        return name == OPAQUE_XATTR and value == b"y" and stat.S_ISDIR(mode)
    return name in _ACLS or any(name.startswith(prefix) and len(name) > len(prefix) for prefix in _PREFIXES)


def check_path(path: bytes) -> None:
    """FormatError unless `path` is normalised and no longer than the kernel would take."""
    if not path:
        return
    if len(path) > MAX_PATH_BYTES or b"\0" in path:
        raise FormatError(f"entry {path[:100]!r}: path too long or with a NUL")
    for name in path.split(b"/"):
        if name in (b"", b".", b"..") or len(name) > MAX_NAME_BYTES:
            raise FormatError(f"entry {path[:100]!r}: name {name[:40]!r} is not allowed")


def check_entry(entry: Entry, *, device_bytes: int) -> None:
    """FormatError, naming path and field, unless the format can express `entry`."""
    check_path(entry.path)
    if entry.link is not None:
        check_path(entry.link)
        return
    problem = _common_problem(entry) or _type_problem(entry, device_bytes)
    if problem is not None:
        raise FormatError(f"entry {entry.path[:100]!r}: {problem}")


def _common_problem(entry: Entry) -> str | None:
    mode = entry.mode
    if stat.S_IFMT(mode) not in FILE_TYPES or mode >> 16:
        return f"mode {mode:#o} has no known file type"
    if not (0 <= entry.uid <= MAX_ID and 0 <= entry.gid <= MAX_ID):
        return f"uid {entry.uid} or gid {entry.gid} out of range"
    if not -(1 << 63) <= entry.mtime_ns // 1_000_000_000 < 1 << 63:
        return f"mtime {entry.mtime_ns} ns out of range"
    for name, value in entry.xattrs.items():
        if not is_supported_xattr(name, value, mode):
            return f"extended attribute {name[:100]!r} is not supported"
    return None


def _type_problem(entry: Entry, device_bytes: int) -> str | None:
    mode = entry.mode
    if stat.S_ISREG(mode):
        return _extent_problem(entry, device_bytes)
    if stat.S_ISLNK(mode) and (not 0 < len(entry.target) <= MAX_PATH_BYTES or b"\0" in entry.target):
        return f"symlink target of {len(entry.target)} bytes, or with a NUL"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        major, minor = entry.rdev
        if not (0 <= major <= MAX_MAJOR and 0 <= minor <= MAX_MINOR):
            return f"device number {major}:{minor} out of range"
    return None


def _extent_problem(entry: Entry, device_bytes: int) -> str | None:
    if entry.size == 0:
        return None
    offset = entry.data_offset
    if offset is None or offset < 0 or offset % 4096 or entry.size < 0 or offset + entry.size > device_bytes:
        return f"data at {offset}, {entry.size} bytes, is unaligned or beyond the tar's {device_bytes} bytes"
    return None
