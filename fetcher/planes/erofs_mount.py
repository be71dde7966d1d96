"""Mounts EROFS over a layer file, whatever the kernel wants it to lie on, past caches that would only cost.

``docs/design/0002-data-planes.md``, "Which cache", has the figures.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog

from fetcher import kernel
from fetcher.planes.loop_device import loop_device
from layerformat.erofs import EROFS_SUPER_OFFSET, SUPER_BLOCK

log = structlog.get_logger(__name__)

#: A complete layer with less than this share of its file's pages in memory is read by direct I/O...
WARM_SHARE = 0.25
#: ...if its files are of this size on average. Small ones gain more by read-ahead in the tar: the next ones come along.
LARGE_FILE_BYTES = 1 << 20
#: What is looked at to tell: 8 MiB at most, 0.2 ms.
SAMPLES = 64
SAMPLE_BYTES = 128 << 10
DIRECT = "directio"
#: What EROFS reads at a time, at most, of large files: they are read in order, and each time is a question while bytes
#: are missing. Elsewhere 128 KiB, as Linux does: it reads around a mapping's faults, too, and a profile names all that.
READ_AHEAD_KIB = 512
BACKING_DEVICES = Path("/sys/class/bdi")
_mounting = threading.Lock()


class ErofsMounter:
    """Mounts from files where the kernel can (Linux >= 6.12), else through loop devices; finds out by trying."""

    def __init__(self, *, file_backed: bool | None = None) -> None:
        self._file_backed = file_backed
        self._settled: dict[Path, int] = {}  # st_dev of mounts that need not be looked at again

    def mount(self, metadata: Path, device: Path, target: Path, *, direct: bool) -> None:
        """Mount unless it is mounted. Raises OSError.

        ``direct``: the device's own pages are bypassed. For a file of the FUSE session, which is cached where it comes
        from and above EROFS; not for a layer file that is being written, whose pages are the quickest way.
        Blocks, on answers of the FUSE session too: not for the thread that gives them.
        """
        _fetch_metadata(metadata)
        if not target.is_mount():
            self._mount(metadata, device, target, direct=direct)

    def _mount(self, metadata: Path, device: Path, target: Path, *, direct: bool) -> None:
        self._settled.pop(target, None)
        if self._file_backed is not False and self._mount_files(metadata, device, target, direct=direct):
            return
        with ExitStack() as stack:
            lower = stack.enter_context(loop_device(metadata, direct=False))
            extra = stack.enter_context(loop_device(device, direct=direct))
            kernel.mount_erofs(lower, [extra], target)

    def mount_complete(self, metadata: Path, tar: Path, target: Path) -> None:
        """The same over a complete layer file without a mark: large files that left the page cache by direct I/O.

        A mount from before that time is replaced once the file has left the page cache, if nobody uses it: one that was
        made while there was a mark stays slower, by a fifth. Raises OSError; blocks.
        """
        _fetch_metadata(metadata)
        mounted = target.is_mount()
        if mounted and self._settled.get(target) == target.stat().st_dev:
            return
        if not is_cold(tar):
            if not mounted:
                self._mount(metadata, tar, target, direct=False)
            return
        direct = has_large_files(metadata, tar)
        if not mounted:
            self._mount(metadata, tar, target, direct=direct)
        elif self._file_backed is False or not _is_replaced(metadata, tar, target, direct=direct):
            return
        self._settled[target] = target.stat().st_dev

    def _mount_files(self, metadata: Path, device: Path, target: Path, *, direct: bool) -> bool:
        try:
            _mount_from_files(metadata, device, target, direct=direct)
        except OSError as error:
            if error.errno != errno.ENOTBLK or self._file_backed:
                raise
            log.info("erofs_needs_block_devices")
            self._file_backed = False
            return False
        self._file_backed = True
        return True


def _fetch_metadata(metadata: Path) -> None:
    """Have the metadata in the page cache soon: the kernel reads them block by block, each when it is needed.

    A tree walk with stat of 41,000 files whose metadata were on disk took 0.65 of ext4's time, and so 0.44.
    """
    fd = os.open(metadata, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(fd)


def _mount_from_files(metadata: Path, device: Path, target: Path, *, direct: bool) -> None:
    if direct:
        try:
            _mount_anew(metadata, device, target, direct=True)
        except OSError as error:
            # EROFS has the option since Linux 6.13 (6422cde1b0d5).
            if error.errno != errno.EINVAL:
                raise
        else:
            return
    with _read_ahead(metadata, device):
        kernel.mount_erofs(metadata, [device], target)


def _mount_anew(metadata: Path, device: Path, target: Path, *, direct: bool, beneath: bool = False) -> None:
    options = [("source", metadata), ("device", device), *([(DIRECT, None)] if direct else [])]
    with _read_ahead(metadata, device):
        kernel.mount_new("erofs", target, options, beneath=beneath)


@contextmanager
def _read_ahead(metadata: Path, device: Path) -> Iterator[None]:
    """Set the read-ahead of the mount that is made within, where it has large files.

    A mount from files has a backing device of its own, `erofs-<number>`; nothing tells which but that it is new. Where
    there is none, or it is not to be written, the mount does without.
    """
    with _mounting:
        before = set(BACKING_DEVICES.glob("erofs-*"))
        yield
        new = set(BACKING_DEVICES.glob("erofs-*")) - before
    if has_large_files(metadata, device):
        for backing in new:
            try:
                (backing / "read_ahead_kb").write_text(str(READ_AHEAD_KIB))
            except OSError as error:
                log.info("read_ahead_not_set", device=backing.name, error=str(error))


def has_large_files(metadata: Path, tar: Path) -> bool:
    """Whether a layer's files, directories and links counted, are large on average. Raises OSError."""
    with metadata.open("rb") as image:
        image.seek(EROFS_SUPER_OFFSET)
        inodes: int = SUPER_BLOCK.unpack(image.read(SUPER_BLOCK.size))[6]
    return tar.stat().st_size >= inodes * LARGE_FILE_BYTES


def is_cold(file: Path) -> bool:
    """Whether most of what a file occupies is out of the page cache; no where the kernel cannot tell. Raises OSError.

    A large file is judged by samples. Holes are not counted. What was evicted for want of memory a moment ago counts as
    in memory: pages of EROFS that were made of it may be there still, and a new mount would be without them.
    """
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        step = max(SAMPLE_BYTES, status.st_size // SAMPLES)
        samples = [kernel.cachestat(fd, offset, SAMPLE_BYTES) for offset in range(0, status.st_size, step)]
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):  # the latter from a filter of system calls
            raise
        return False
    finally:
        os.close(fd)
    warm = sum(sample.nr_cache + sample.nr_recently_evicted for sample in samples)
    return warm * os.sysconf("SC_PAGE_SIZE") < status.st_blocks * 512 * SAMPLE_BYTES / step * WARM_SHARE


def _is_replaced(metadata: Path, tar: Path, target: Path, *, direct: bool) -> bool:
    """Have a new mount instead of one that nobody uses and that is not direct; whether there is none to replace now.

    The new one goes beneath the old one, so there is no moment without: whoever was told of the mount point a moment
    ago may be about to make an overlay of it. Killed in between, or with a file open on the old one, both stay, and the
    next call finds the new one there. What fails leaves what is there.
    """
    point = Path(os.path.realpath(target))
    mounts = kernel.mounts(containing=point.parent.name)
    here = {mount.device: mount for mount in mounts if mount.point == point}
    shown = here.get(point.stat().st_dev)
    if shown is not None and DIRECT in shown.options:
        return True
    if shown is None or is_used(point, mounts):
        return False
    try:
        if len(here) == 1:
            _mount_anew(metadata, tar, point, direct=direct, beneath=True)
        kernel.umount(point)
    except OSError as error:
        log.info("mount_not_replaced", target=str(point), error=str(error))
        return False
    return True


def is_used(point: Path, mounts: Iterable[kernel.Mount]) -> bool:
    """Whether an overlay lies on a layer's mount point, or its mount is bound elsewhere, as far as ``mounts`` tell.

    containerd shortens the paths of long chains to relative ones, so only their ends are compared. An overlay of
    another mount namespace is not seen: it goes on with the super block it has. Pure.
    """
    mounts = list(mounts)
    devices = {mount.device for mount in mounts if mount.point == point}
    tail = f"{point.parent.name}/{point.name}"
    return any(
        any(option.startswith("lowerdir") and tail in option for option in mount.options)
        if mount.kind == "overlay"
        else mount.device in devices and mount.point != point
        for mount in mounts
    )
