"""What this kernel's overlayfs wants to be told, found out by trying. Blocks; needs root."""

from __future__ import annotations

import tempfile
from pathlib import Path

import structlog

from fetcher import kernel

log = structlog.get_logger(__name__)

WANTED = (("index=off",), (), ("index=off", "userxattr"), ("userxattr",))
"""In this order. `index=off`: containers share lower directories, an inode index would refuse the second one.
`userxattr`: in a user namespace `trusted.*` is out of reach (kernel 5.11)."""


def overlay_options(root: Path) -> tuple[str, ...]:
    """The options every overlay below `root` gets. Where no overlay mounts at all, none: containerd will say why."""
    with tempfile.TemporaryDirectory(prefix="probe-", dir=root) as scratch:
        for name in ("lower1", "lower2", "upper", "work", "merged"):
            (Path(scratch) / name).mkdir()
        for options in WANTED:
            if _mounts(Path(scratch), options):
                return options
    log.warning("overlay_not_mountable", root=str(root))
    return ()


def _mounts(scratch: Path, options: tuple[str, ...]) -> bool:
    """Whether an overlay with these options mounts and can replace a lower directory, for which it needs xattrs."""
    (scratch / "lower1" / "replaced").mkdir(exist_ok=True)
    merged = scratch / "merged"
    lower = f"lowerdir={scratch}/lower1:{scratch}/lower2"
    data = ",".join((lower, f"upperdir={scratch}/upper", f"workdir={scratch}/work", *options))
    try:
        kernel.mount("overlay", merged, "overlay", 0, data)
    except OSError:
        return False
    try:
        (merged / "replaced").rmdir()
        (merged / "replaced").mkdir()
        return True
    except OSError:
        return False
    finally:
        kernel.umount(merged)
