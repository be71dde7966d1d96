"""The mounts of this mount namespace, read from /proc/self/mountinfo (proc(5))."""

import re
from dataclasses import dataclass
from pathlib import Path

from fastpull.lab.process import CommandFailed, run

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo: where, what kind, from what."""

    point: str
    kind: str
    source: str


def _plain(field: str) -> str:
    """A mountinfo field with its octal escapes (space, tab, newline, backslash) undone."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), field)


def parse_mountinfo(text: str) -> list[Mount]:
    """All mounts, in the kernel's order. Fields 5 and, after the lone dash, the type and the source."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        kind, source = right.split(" ")[:2]
        mounts.append(Mount(_plain(left.split(" ")[4]), kind, _plain(source)))
    return mounts


def mounts() -> list[Mount]:
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def below(directory: Path) -> list[Mount]:
    """What is mounted on `directory` or below it, the last mounted first (the order to unmount in)."""
    top = str(directory)
    inside = [mount for mount in mounts() if mount.point == top or mount.point.startswith(top + "/")]
    return list(reversed(inside))


def unmount_below(directory: Path) -> list[Mount]:
    """Unmount everything below `directory`; what is busy is detached. Returns what was mounted."""
    found = below(directory)
    for mount in found:
        try:
            run(["umount", "--no-canonicalize", mount.point])
        except CommandFailed:
            run(["umount", "--no-canonicalize", "--lazy", mount.point])
    return found
