"""The kernel's abilities, found by trying each on the file system that will hold the layers; and free space.

Nothing is concluded from the kernel's version: distributions carry features back, and builds leave them out.
"""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from fastpull.doctor.check import Check, fail, note, ok
from fetcher import kernel
from fetcher.planes import selection

AREA = "kernel"
_LOW_SPACE_BYTES = 5 << 30


def host_checks(root: Path) -> list[Check]:
    """All checks of this machine for a daemon whose data is below `root` (which need not exist yet)."""
    base = _existing(root)
    if os.geteuid() != 0:
        return [
            fail(AREA, "root", "not root: the kernel cannot be probed", "run it as root: sudo fastpull doctor"),
            _space(base),
        ]
    can = selection.probe(base)
    return [
        _ability("pre-content events", can.pre_content, "Linux 6.14 or later, and a root on ext4, xfs or btrfs"),
        _ability("EROFS from files", can.erofs_files, "Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE"),
        _ability("EROFS on loop devices", can.erofs_loop, "modprobe erofs loop"),
        _ability("FUSE", can.fuse, "modprobe fuse (needed only where pre-content events do not work)"),
        _overlay(base),
        _plane(can),
        _space(base),
    ]


def _existing(path: Path) -> Path:
    """The nearest directory at or above `path` that exists: what will be made below it is on its file system."""
    return next(above for above in (path.absolute(), *path.absolute().parents) if above.is_dir())


def _ability(name: str, problem: str | None, fix: str) -> Check:
    return ok(AREA, name, "works") if problem is None else note(AREA, name, f"no: {problem}", fix)


def _plane(can: selection.Capabilities) -> Check:
    """What the other findings amount to."""
    name = "lazy loading"
    match selection.choose("auto", can):
        case "fanotify":
            return ok(AREA, name, "works, served by the kernel")
        case "fuse":
            why = can.obstacle("fanotify")
            return note(AREA, name, f"works through FUSE, a little slower ({why})", "see the abilities above")
        case _:
            why = can.obstacle("fuse")
            return fail(AREA, name, f"images will be downloaded whole before they start ({why})", "a kernel with EROFS")


def _overlay(base: Path) -> Check:
    with tempfile.TemporaryDirectory(prefix=".fastpull-doctor-", dir=base) as scratch:
        parts = {name: Path(scratch) / name for name in ("lower", "upper", "work", "merged")}
        for path in parts.values():
            path.mkdir()
        data = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
        try:
            kernel.mount("overlay", parts["merged"], "overlay", 0, data)
        except OSError as problem:
            fix = "load the overlay module; the root must not itself be an overlay"
            return fail(AREA, "overlayfs", f"no: {problem.strerror}", fix)
        finally:
            with suppress(OSError):
                kernel.umount(parts["merged"])
    return ok(AREA, "overlayfs", "mounts")


def _space(base: Path) -> Check:
    free_bytes = shutil.disk_usage(base).free
    found = f"{free_bytes / (1 << 30):.1f} GiB on the file system of {base}"
    if free_bytes >= _LOW_SPACE_BYTES:
        return ok("host", "free space", found)
    return note("host", "free space", found, "make room, or give the daemon another --root")
