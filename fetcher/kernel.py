"""Linux system calls that Python does not wrap: fanotify, mounts, cachestat, reflinks.

The only module of the project that uses ctypes. Constants keep the kernel's spelling, one block per uapi header; each
wrapper raises ``OSError(errno, strerror, path)``. Standard library only: the fd holder and the tests use it too.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

c_char_p = ctypes.c_char_p
libc = ctypes.CDLL(None, use_errno=True)

# <sys/mount.h>, include/uapi/linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MNT_FORCE = 0x1
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8
FSOPEN_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 0x1
MOUNT_ATTR_RDONLY = 0x1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_BENEATH = 0x200  # since Linux 6.5 (6ac392815628)

# include/uapi/asm-generic/unistd.h: the same numbers on every architecture since Linux 5.2
SYS_move_mount = 429
SYS_fsopen = 430
SYS_fsconfig = 431
SYS_fsmount = 432
SYS_cachestat = 451  # since Linux 6.5 (cf264e1329fb)

# include/uapi/linux/fanotify.h
FAN_CLOEXEC = 0x1
FAN_NONBLOCK = 0x2
FAN_CLASS_PRE_CONTENT = 0x8
FAN_UNLIMITED_QUEUE = 0x10
FAN_UNLIMITED_MARKS = 0x20
FAN_MARK_ADD = 0x1
FAN_MARK_REMOVE = 0x2
FAN_PRE_ACCESS = 0x0010_0000
FAN_ALLOW = 0x01
FAN_DENY = 0x02
FAN_ERRNO_SHIFT = 24
FAN_NOFD = -1
FAN_EVENT_INFO_TYPE_RANGE = 6
FANOTIFY_METADATA_VERSION = 3

# include/uapi/linux/fs.h: _IOW(0x94, 13, struct file_clone_range)
FICLONERANGE = 0x4020_940D

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000

# include/linux/exportfs.h: file handles of an inode number and a generation; which one EROFS has depends on the kernel
FILEID_INO32_GEN = 0x01
FILEID_INO64_GEN = 0x81
MAX_HANDLE_SZ = 128

#: struct fanotify_event_metadata: event_len, vers, reserved, metadata_len, mask, fd, pid
EVENT_METADATA = struct.Struct("<IBBHQii")
#: struct fanotify_event_info_range: hdr.info_type, hdr.pad, hdr.len, pad, offset, count
EVENT_INFO_RANGE = struct.Struct("<BBHIQQ")
#: struct fanotify_response: fd, response
RESPONSE = struct.Struct("<iI")
#: struct file_handle without f_handle: handle_bytes, handle_type
FILE_HANDLE = struct.Struct("<Ii")
#: f_handle of EROFS, by handle_type: inode and generation, or both halves of the inode, the upper first, and generation
_HANDLE_CONTENT = {FILEID_INO32_GEN: struct.Struct("=II"), FILEID_INO64_GEN: struct.Struct("=III")}
#: struct cachestat_range: off, len; include/uapi/linux/mman.h
CACHESTAT_RANGE = struct.Struct("=QQ")
#: struct cachestat: the fields of CacheStat
CACHESTAT = struct.Struct("=QQQQQ")
#: struct file_clone_range: src_fd, src_offset, src_length, dest_offset
FILE_CLONE_RANGE = struct.Struct("<qQQQ")
assert (EVENT_METADATA.size, EVENT_INFO_RANGE.size, RESPONSE.size) == (24, 24, 8)

libc.mount.argtypes = (c_char_p, c_char_p, c_char_p, ctypes.c_ulong, c_char_p)
libc.mount.restype = ctypes.c_int
libc.umount2.argtypes = (c_char_p, ctypes.c_int)
libc.umount2.restype = ctypes.c_int
libc.fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
libc.fanotify_init.restype = ctypes.c_int
libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, c_char_p)
libc.fanotify_mark.restype = ctypes.c_int
libc.syncfs.argtypes = (ctypes.c_int,)
libc.syncfs.restype = ctypes.c_int
libc.syscall.restype = ctypes.c_long


def _checked(result: int, path: str | os.PathLike[str] | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), None if path is None else os.fspath(path))
    return result


def mount(source: str, target: Path, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2). ``data`` is limited to one page by the kernel."""
    args = (os.fsencode(source), os.fsencode(target), fstype.encode(), flags, data.encode() or None)
    _checked(libc.mount(*args), target)


def umount(target: Path, flags: int = 0) -> None:
    """umount2(2), never following a symbolic link."""
    _checked(libc.umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW), target)


def _fsopen(fstype: str) -> int:
    return _checked(libc.syscall(ctypes.c_long(SYS_fsopen), c_char_p(fstype.encode()), ctypes.c_uint(FSOPEN_CLOEXEC)))


def _fsconfig(fd: int, command: int, key: bytes | None, value: bytes | None) -> None:
    call = (ctypes.c_long(SYS_fsconfig), ctypes.c_int(fd), ctypes.c_uint(command), c_char_p(key), c_char_p(value))
    try:
        _checked(libc.syscall(*call, ctypes.c_int(0)))
    except OSError as error:
        detail = _fs_context_log(fd) or (key or b"create").decode()
        raise OSError(error.errno, f"{error.strerror}: {detail}") from None


def _fs_context_log(fd: int) -> str:
    """What the kernel has to say about a mount that failed (fsopen(2): messages are read from the context's fd)."""
    lines = []
    with suppress(OSError):
        while True:
            lines.append(os.read(fd, 4096).decode(errors="replace").strip())
    return "; ".join(lines)


def umount_all(target: Path) -> None:
    """Take everything away that is mounted at ``target``; whoever uses it in another way goes on."""
    while target.is_mount():
        umount(target, MNT_DETACH)


def mount_new(
    fstype: str,
    target: Path,
    options: Sequence[tuple[str, str | os.PathLike[str] | None]],
    *,
    beneath: bool = False,
) -> None:
    """Mount read-only by fsopen(2), fsconfig(2), fsmount(2), move_mount(2): no limit on the length of the options.

    ``options`` are set in order; a value of ``None`` makes a flag. ``beneath``: under what is mounted at ``target``,
    seen when that goes. Raises OSError with the kernel's own message.
    """
    context = _fsopen(fstype)
    try:
        for key, value in options:
            command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
            _fsconfig(context, command, key.encode(), None if value is None else os.fsencode(value))
        _fsconfig(context, FSCONFIG_SET_FLAG, b"ro", None)
        _fsconfig(context, FSCONFIG_CMD_CREATE, None, None)
        attributes = ctypes.c_uint(MOUNT_ATTR_RDONLY)
        call = (ctypes.c_long(SYS_fsmount), ctypes.c_int(context), ctypes.c_uint(FSMOUNT_CLOEXEC), attributes)
        mounted = _checked(libc.syscall(*call), target)
    finally:
        os.close(context)
    try:
        _move_mount(mounted, target, MOVE_MOUNT_BENEATH if beneath else 0)
    finally:
        os.close(mounted)


def _move_mount(mounted: int, target: Path, flags: int) -> None:
    source = (ctypes.c_int(mounted), c_char_p(b""))
    destination = (ctypes.c_int(AT_FDCWD), c_char_p(os.fsencode(target)))
    how = ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH | flags)
    _checked(libc.syscall(ctypes.c_long(SYS_move_mount), *source, *destination, how), target)


def mount_erofs(metadata: Path, devices: Sequence[Path], target: Path) -> None:
    """Mount an EROFS image from files (Linux >= 6.12), read-only; ``devices`` are its extra devices, in slot order.

    mount(8) would put a loop device in between, hence the system call. A pre-content mark on a device must be there
    before this opens the device: the kernel decides at open(2) whether a file raises such events.
    """
    mount_new("erofs", target, [("source", metadata), *(("device", device) for device in devices)])


@dataclass(frozen=True, slots=True)
class PreAccess:
    """A reader waits: bytes [offset, offset + count) of the file behind ``fd`` are about to be read."""

    fd: int
    pid: int
    offset: int
    count: int


def fanotify_init_pre_content() -> int:
    """A notification group for pre-content events; its fd is non-blocking, close-on-exec."""
    flags = FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS
    return _checked(libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_LARGEFILE", 0)))


def fanotify_mark(group: int, path: Path, *, remove: bool = False) -> None:
    """Set or remove the FAN_PRE_ACCESS mark of one file."""
    action = FAN_MARK_REMOVE if remove else FAN_MARK_ADD
    _checked(libc.fanotify_mark(group, action, FAN_PRE_ACCESS, AT_FDCWD, os.fsencode(path)), path)


def parse_events(buffer: bytes) -> Iterator[PreAccess]:
    """The pre-access events in what read(2) on a group returned. An event without a range asks for the whole file."""
    position = 0
    while position + EVENT_METADATA.size <= len(buffer):
        length, version, _, header, mask, fd, pid = EVENT_METADATA.unpack_from(buffer, position)
        if version != FANOTIFY_METADATA_VERSION or length < header:
            raise OSError(errno.EPROTO, f"fanotify event of version {version}, length {length}")
        if mask & FAN_PRE_ACCESS and fd != FAN_NOFD:
            offset, count = _event_range(buffer, position + header, position + length)
            yield PreAccess(fd, pid, offset, count)
        position += length


def _event_range(buffer: bytes, position: int, end: int) -> tuple[int, int]:
    while position + 4 <= end:
        kind, _, length = struct.unpack_from("<BBH", buffer, position)
        if kind == FAN_EVENT_INFO_TYPE_RANGE and length >= EVENT_INFO_RANGE.size:
            return EVENT_INFO_RANGE.unpack_from(buffer, position)[4:6]
        position += max(length, 4)
    return 0, 1 << 62


def fanotify_respond(group: int, fd: int, error: int = 0) -> bool:
    """Let the reader behind an event's ``fd`` go on, or fail its read with ``error`` (an errno).

    False when the group has no such event: it was answered before.
    """
    answer = FAN_DENY | (error & 0xFF) << FAN_ERRNO_SHIFT if error else FAN_ALLOW
    try:
        os.write(group, RESPONSE.pack(fd, answer))
    except FileNotFoundError:
        return False
    return True


def clone_range(source: int, source_offset: int, destination: int, destination_offset: int, length: int) -> None:
    """Share blocks between two files (FICLONERANGE); OSError where the file system cannot."""
    fcntl.ioctl(destination, FICLONERANGE, FILE_CLONE_RANGE.pack(source, source_offset, length, destination_offset))


def has_other_opens(path: Path) -> bool:
    """Whether anything has a file open: a process, or a file system mounted from it, even where no path shows it.

    A write lease is granted only to a file's sole opener (fcntl(2), F_SETLEASE).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class InodeOpener:
    """Opens files of a mounted EROFS by inode number, whatever they are called (open_by_handle_at(2), privileged)."""

    def __init__(self, directory: int) -> None:
        """For the mount that ``directory`` is a descriptor of, which must stay open. Raises OSError."""
        handle = ctypes.create_string_buffer(FILE_HANDLE.pack(MAX_HANDLE_SZ, 0), FILE_HANDLE.size + MAX_HANDLE_SZ)
        mount_id = ctypes.c_int()
        call = (ctypes.c_int(directory), c_char_p(b""), handle, ctypes.byref(mount_id), ctypes.c_int(AT_EMPTY_PATH))
        _checked(libc.name_to_handle_at(*call))
        _, self._kind = FILE_HANDLE.unpack_from(handle)
        if self._kind not in _HANDLE_CONTENT:
            raise OSError(errno.EOPNOTSUPP, f"file handles of type {self._kind:#x}")
        self._directory = directory

    def open(self, inode: int) -> int:
        """A descriptor to read the file through; OSError (ESTALE) where there is none."""
        halves = (inode,) if self._kind == FILEID_INO32_GEN else (inode >> 32, inode & 0xFFFF_FFFF)
        content = _HANDLE_CONTENT[self._kind].pack(*halves, 0)  # EROFS inodes are of generation 0
        handle = ctypes.create_string_buffer(FILE_HANDLE.pack(len(content), self._kind) + content)
        flags = ctypes.c_int(os.O_RDONLY | os.O_CLOEXEC)
        return _checked(libc.open_by_handle_at(ctypes.c_int(self._directory), handle, flags))


def syncfs(fd: int) -> None:
    """Have the disk hold everything that was written to the file system behind ``fd``."""
    _checked(libc.syncfs(fd))


@dataclass(frozen=True, slots=True)
class CacheStat:
    """Pages of a file: in the page cache, dirty, being written, evicted, evicted so recently that it was too soon."""

    nr_cache: int
    nr_dirty: int
    nr_writeback: int
    nr_evicted: int
    nr_recently_evicted: int


def cachestat(fd: int, offset: int, length: int) -> CacheStat:
    """What of a range of a file, in bytes, is in the page cache: cachestat(2); OSError (ENOSYS) before Linux 6.5.

    Takes up to 80 ns for each page that is.
    """
    asked, found = CACHESTAT_RANGE.pack(offset, length), ctypes.create_string_buffer(CACHESTAT.size)
    call = (ctypes.c_long(SYS_cachestat), ctypes.c_uint(fd), c_char_p(asked), found, ctypes.c_uint(0))
    _checked(libc.syscall(*call))
    return CacheStat(*CACHESTAT.unpack(found))


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo, proc_pid_mountinfo(5). ``options`` are those of the super block."""

    device: int  # as st_dev
    point: Path
    kind: str
    options: tuple[str, ...]


def mounts(containing: str = "") -> list[Mount]:
    """The mounts of this process's namespace; to be quick, only those whose line has a text in it."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return [_mount_of(line) for line in lines if containing in line]


def _mount_of(line: str) -> Mount:
    fields = line.split(" ")
    major, _, minor = fields[2].partition(":")
    kind, _, options = fields[fields.index("-") + 1 :][:3]
    split = tuple(_unescape(option) for option in options.split(","))
    return Mount(os.makedev(int(major), int(minor)), Path(_unescape(fields[4])), kind, split)


def mounts_below(directory: Path) -> list[tuple[Path, str]]:
    """(mount point, file system type) of every mount at or below a directory, the deepest last in mount order."""
    top = Path(os.path.realpath(directory))
    return [(mount.point, mount.kind) for mount in mounts() if mount.point.is_relative_to(top)]


def _unescape(field: str) -> str:
    """Undo mountinfo's octal escapes of blank, tab, newline and backslash."""
    if "\\" not in field:
        return field
    for code in ("040", "011", "012", "134"):
        field = field.replace("\\" + code, chr(int(code, 8)))
    return field


@contextmanager
def mounted_erofs(metadata: Path, devices: Sequence[Path], target: Path) -> Iterator[Path]:
    """:func:`mount_erofs` for the length of a ``with`` block."""
    mount_erofs(metadata, devices, target)
    try:
        yield target
    finally:
        umount(target)
