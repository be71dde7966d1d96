"""The kernel's abilities, found by trying each on the file system that will hold the layers; and free space.

Nothing is concluded from the kernel's version: distributions carry features back, and builds leave them out.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastpull.doctor.check import Check, fail, note, ok
from fetcher import kernel
from layerformat.entries import Entry
from layerformat.erofs_write import build_metadata

AREA = "kernel"
_BLOCK_BYTES = 4096
_LOW_SPACE_BYTES = 5 << 30
_CONTENT = b"fastpull doctor\n"


def host_checks(root: Path) -> list[Check]:
    """All checks of this machine for a daemon whose data is below `root` (which need not exist yet)."""
    base = _existing(root)
    if os.geteuid() != 0:
        return [
            fail(AREA, "root", "not root: the kernel cannot be probed", "run it as root: sudo fastpull doctor"),
            _space(base),
        ]
    with tempfile.TemporaryDirectory(prefix="fastpull-doctor-", dir=base) as scratch:
        place = Path(scratch)
        fanotify, erofs = _fanotify(place, base), _erofs(place)
        return [fanotify, erofs, _overlay(place), _fuse(), _plane(fanotify, erofs), _space(base)]


def _existing(path: Path) -> Path:
    """The nearest directory at or above `path` that exists: what will be made below it is on its file system."""
    return next(above for above in (path.absolute(), *path.absolute().parents) if above.is_dir())


def _tried(action: Callable[[], None]) -> OSError | None:
    try:
        action()
    except OSError as problem:
        return problem
    return None


def _fanotify(place: Path, base: Path) -> Check:
    """Linux 6.14: FAN_PRE_ACCESS on a file of this file system (ext4, xfs, btrfs; not tmpfs)."""
    watched = place / "watched"
    watched.write_bytes(_CONTENT)
    name = "pre-content events"
    problem = _tried(lambda: _mark(watched))
    if problem is None:
        return ok(AREA, name, f"work on {base}")
    return note(
        AREA, name, f"not on {base}: {problem.strerror}", "a kernel of 6.14 or later, and a root on ext4, xfs or btrfs"
    )


def _mark(path: Path) -> None:
    group = kernel.fanotify_init_pre_content()
    try:
        kernel.fanotify_mark(group, path)
    finally:
        os.close(group)


def _erofs(place: Path) -> Check:
    """Mount a file system of one file straight from files, read the file, unmount."""
    target, device, metadata = place / "mnt", place / "device", place / "metadata"
    target.mkdir()
    device.write_bytes(_CONTENT.ljust(_BLOCK_BYTES, b"\0"))
    entry = Entry(path=b"f", mode=0o100644, uid=0, gid=0, mtime_ns=0, size=len(_CONTENT), data_offset=0)
    metadata.write_bytes(build_metadata([entry], device_bytes=_BLOCK_BYTES))
    name = "EROFS from files"
    problem = _tried(lambda: _read_back(metadata, device, target))
    if problem is None:
        return ok(AREA, name, "mounts and reads")
    return note(
        AREA,
        name,
        f"no: {problem.strerror or problem}",
        "a kernel of 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE",
    )


def _read_back(metadata: Path, device: Path, target: Path) -> None:
    with kernel.mounted_erofs(metadata, [device], target):
        if (target / "f").read_bytes() != _CONTENT:
            raise OSError("it reads back wrong")


def _overlay(place: Path) -> Check:
    parts = {name: place / f"overlay-{name}" for name in ("lower", "upper", "work", "merged")}
    for path in parts.values():
        path.mkdir()
    data = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
    problem = _tried(lambda: _mount_once(parts["merged"], data))
    if problem is None:
        return ok(AREA, "overlayfs", "mounts")
    return fail(
        AREA, "overlayfs", f"no: {problem.strerror}", "load the overlay module; the root must not itself be an overlay"
    )


def _mount_once(target: Path, data: str) -> None:
    with _unmounted_after(target):
        kernel.mount("overlay", target, "overlay", 0, data)


@contextmanager
def _unmounted_after(target: Path) -> Iterator[None]:
    yield
    kernel.umount(target)


def _fuse() -> Check:
    problem = _tried(lambda: os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)))
    if problem is None:
        return ok(AREA, "FUSE", "/dev/fuse opens")
    return note(
        AREA,
        "FUSE",
        f"/dev/fuse: {problem.strerror}",
        "modprobe fuse (needed only where pre-content events do not work)",
    )


def _plane(fanotify: Check, erofs: Check) -> Check:
    """What the other findings amount to."""
    name = "lazy loading"
    if erofs.fix:
        return fail(AREA, name, "images will be downloaded whole before they start", erofs.fix)
    if fanotify.fix:
        return note(AREA, name, "works through FUSE, a little slower than with pre-content events", fanotify.fix)
    return ok(AREA, name, "works, served by the kernel")


def _space(base: Path) -> Check:
    free_bytes = shutil.disk_usage(base).free
    found = f"{free_bytes / (1 << 30):.1f} GiB on the file system of {base}"
    if free_bytes >= _LOW_SPACE_BYTES:
        return ok("host", "free space", found)
    return note("host", "free space", found, "make room, or give the daemon another --root")
