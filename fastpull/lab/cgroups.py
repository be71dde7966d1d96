"""The control groups that runtimes leave behind: empty directories, below none of those that they are given."""

import contextlib
import os
from pathlib import Path

_TOP = Path("/sys/fs/cgroup")


def remove_named(name: str) -> None:
    """Remove the groups below the group `name`, and it: of the one hierarchy, or of each (cgroups(7), version 1)."""
    for directory in [*sorted(_TOP.glob(f"*/{name}")), _TOP / name]:
        remove_empty_tree(directory)


def remove_empty_tree(directory: Path) -> None:
    """Remove a directory whose subdirectories hold no files of their own (cgroup files go with their directory)."""
    for top, names, _ in os.walk(directory, topdown=False):
        for name in names:
            with contextlib.suppress(OSError):
                (Path(top) / name).rmdir()
    with contextlib.suppress(OSError):
        directory.rmdir()
