"""The snapshots' directories. Everything here blocks: it runs on the database's thread or in an executor."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from snapshotter.model import Kind, Layout, Owner, Usage

_SKIPPED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


def make_directory(layout: Layout, kind: Kind, owner: Owner | None) -> Path:
    """A new snapshot's directory under a temporary name: `fs`, and `work` if it is to be written to.

    The modes are set whatever the umask: `fs` is the root directory of the container.
    """
    made = Path(tempfile.mkdtemp(prefix="new-", dir=layout.snapshots))
    try:
        _make(made / "fs", 0o755)
        if kind is Kind.ACTIVE:
            _make(made / "work", 0o711)
        if owner is not None:
            os.lchown(made / "fs", owner.uid, owner.gid)
    except BaseException:
        remove_tree(made)
        raise
    return made


def _make(path: Path, mode: int) -> None:
    path.mkdir()
    path.chmod(mode)


def owner_of(path: Path) -> Owner:
    status = path.stat()
    return Owner(uid=status.st_uid, gid=status.st_gid)


def orphans(layout: Layout, ids: Iterable[int]) -> list[Path]:
    """What belongs to no snapshot. To be called where none can be in the making: inside a write transaction."""
    known = {str(snapshot) for snapshot in ids}
    return [path for path in layout.snapshots.iterdir() if path.name not in known]


def remove_tree(root: Path) -> None:
    """Remove a directory and all below it. Raises OSError; a file system mounted below it is an error, never emptied.

    A container may have nested its directories deeper than paths, stacks or open files reach. So the tree is flattened:
    directories move up to `root` before they are emptied, and nothing is ever handled more than two levels down.
    """
    if not root.is_dir() or root.is_symlink():
        root.unlink(missing_ok=True)
        return
    device, top = root.stat().st_dev, os.fsencode(root)
    number = itertools.count()
    queue = list(_empty(top, top, device, number))
    while queue:
        directory = queue.pop()
        queue += _empty(directory, top, device, number)
        os.rmdir(directory)  # noqa: PTH106 (names that are not UTF-8 are handled as bytes)
    root.rmdir()


def _empty(directory: bytes, top: bytes, device: int, number: Iterator[int]) -> list[bytes]:
    """Unlink the files of a directory and move its directories up to `top`; gives where they are now."""
    if os.lstat(directory).st_dev != device:
        raise OSError(f"{os.fsdecode(directory)} is a mount point")
    moved: list[bytes] = []
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)  # noqa: PTH108
                continue
            target = _free_name(top, number)
            os.rename(entry.path, target)  # noqa: PTH104
            moved.append(target)
    return moved


def _free_name(top: bytes, number: Iterator[int]) -> bytes:
    while True:
        name = os.path.join(top, b".%d" % next(number))  # noqa: PTH118
        if not os.path.lexists(name):
            return name


def disk_usage(root: Path) -> Usage:
    """Blocks and inodes below `root`, itself included; hard links count once.

    What vanishes meanwhile is not counted, nor what lies deeper than a path can name.
    """
    seen: set[tuple[int, int]] = set()
    size = 0
    stack = [os.fsencode(root)]
    while stack:
        path = stack.pop()
        try:
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                stack += [os.path.join(path, name) for name in os.listdir(path)]  # noqa: PTH118
        except OSError as exc:
            if exc.errno not in _SKIPPED:
                raise
            continue
        identity = (status.st_dev, status.st_ino)
        if identity not in seen:
            seen.add(identity)
            size += status.st_blocks * 512
    return Usage(size=size, inodes=len(seen))
