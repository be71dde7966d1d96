"""A layer's files out of its layer file: the EROFS metadata says what they are, the tar holds their bytes.

Run as a module: ``python -m fetcher.planes.eager_unpack METADATA TAR TARGET``. The target must not exist; when the
process ends with status 0 the target is whole and on disk, else the status is an errno. Whiteouts are in overlayfs
form already.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fetcher import kernel
from layerformat.entries import Entry
from layerformat.erofs_read import read_metadata
from layerformat.errors import FormatError

COPY_BYTES = 16 << 20
#: Directories within each other. What is made must be removed again, and the tool for that recurses.
MAX_DEPTH = 400


def unpack(metadata: bytes, tar: int, target: Path) -> int:
    """Make every entry below ``target``; returns how many. Blocks; raises FormatError or OSError.

    All names are relative to a descriptor of the target: a path as long as an image may have it would not fit behind a
    prefix. They are those of a validated tree, so none can lead out of it, or through a symbolic link.
    """
    target.mkdir(mode=0o700)
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    directories: list[Entry] = []
    count = 0
    try:
        for entry in read_metadata(metadata):
            count += 1
            if stat.S_ISDIR(entry.mode) and entry.link is None:
                directories.append(entry)
            with _named(entry):
                _make(entry, tar, root)
        # Children first: making a file changes its directory's times, and a mode may forbid making it.
        for entry in reversed(directories):
            with _named(entry):
                _finish_directory(entry, root)
        kernel.syncfs(root)
    finally:
        os.close(root)
    return count


@contextmanager
def _named(entry: Entry) -> Iterator[None]:
    """An error names the file of the image, not a descriptor."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fsdecode(entry.path)) from error


def _make(entry: Entry, tar: int, root: int) -> None:
    if entry.path.count(b"/") > MAX_DEPTH:
        raise OSError(errno.ENAMETOOLONG, f"more than {MAX_DEPTH} directories within each other")
    if entry.link is not None:
        os.link(entry.link, entry.path, src_dir_fd=root, dst_dir_fd=root, follow_symlinks=False)
    elif stat.S_ISDIR(entry.mode):
        if entry.path:
            os.mkdir(entry.path, 0o700, dir_fd=root)
    elif stat.S_ISREG(entry.mode):
        _make_file(entry, tar, root)
    else:
        _make_special(entry, root)


def _make_file(entry: Entry, tar: int, root: int) -> None:
    fd = os.open(entry.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=root)
    try:
        if entry.size:
            _copy(tar, entry.data_offset or 0, fd, entry.size)
        _describe(entry, fd)
    finally:
        os.close(fd)


def _copy(tar: int, offset: int, fd: int, size: int) -> None:
    """In the kernel, and without taking more space where the file system shares blocks: offsets are aligned."""
    done = 0
    while done < size:
        copied = os.copy_file_range(tar, fd, min(size - done, COPY_BYTES), offset + done, done)
        if not copied:
            raise EOFError("the layer file is too short")
        done += copied


def _make_special(entry: Entry, root: int) -> None:
    if stat.S_ISLNK(entry.mode):
        os.symlink(entry.target, entry.path, dir_fd=root)
    else:
        os.mknod(entry.path, stat.S_IFMT(entry.mode) | 0o600, os.makedev(*entry.rdev), dir_fd=root)
    os.chown(entry.path, entry.uid, entry.gid, dir_fd=root, follow_symlinks=False)
    if not stat.S_ISLNK(entry.mode):
        os.chmod(entry.path, stat.S_IMODE(entry.mode), dir_fd=root)
    if entry.xattrs:
        with _anchor(entry.path, root) as path:
            _set_xattrs(path, entry.xattrs)
    os.utime(entry.path, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=root, follow_symlinks=False)


@contextmanager
def _anchor(path: bytes, root: int) -> Iterator[str]:
    """A name for a file that must not be opened or followed (symbolic link, device): of a descriptor of the file."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _finish_directory(entry: Entry, root: int) -> None:
    fd = os.open(entry.path or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        _describe(entry, fd)
    finally:
        os.close(fd)


def _describe(entry: Entry, fd: int) -> None:
    """Owner, attributes, mode, times: in this order, since a change of owner takes capabilities and set-id bits away,
    and an access control list takes part in the mode.
    """
    os.fchown(fd, entry.uid, entry.gid)
    _set_xattrs(fd, entry.xattrs)
    os.fchmod(fd, stat.S_IMODE(entry.mode))
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


def _set_xattrs(file: int | str, xattrs: Mapping[bytes, bytes]) -> None:
    for name, value in xattrs.items():
        os.setxattr(file, name, value)


def main(arguments: list[str]) -> int:
    """Unpack; says on standard error what went wrong, in one line."""
    metadata, tar_path, target = (Path(argument) for argument in arguments)
    os.umask(0)
    tar = os.open(tar_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        unpack(metadata.read_bytes(), tar, target)
    except (OSError, FormatError, EOFError) as error:
        print(error, file=sys.stderr)
        return getattr(error, "errno", None) or errno.EIO
    finally:
        os.close(tar)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
