"""What a tree looks like in every attribute, taken with an image's snapshot mounted on the host."""

import contextlib
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastpull.lab.containerd import Containerd
from fastpull.lab.process import CommandFailed, run


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One path. `links` are the other paths with its inode, below the same top; `content` is a hash or a target."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int
    content: str
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[str, ...]


def _xattrs(path: str) -> tuple[tuple[str, bytes], ...]:
    """Extended attributes, those of overlayfs excepted: a lower layer may show them, a container may not."""
    names = sorted(os.listxattr(path, follow_symlinks=False))
    own = [name for name in names if not name.startswith(("trusted.overlay.", "user.overlay."))]
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in own)


def _content(path: str, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return str(Path(path).readlink())
    if not stat.S_ISREG(mode):
        return ""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(top: Path) -> dict[str, Node]:
    """Every path below `top` (itself as ""), read in full."""
    found = {"": os.lstat(top)}
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = str(Path(directory) / name)
            found[os.path.relpath(path, top)] = os.lstat(path)
    together: dict[tuple[int, int], list[str]] = {}
    for name, status in found.items():
        if not stat.S_ISDIR(status.st_mode):
            together.setdefault((status.st_dev, status.st_ino), []).append(name)
    return {name: _node(top, name, status, together) for name, status in found.items()}


def _node(top: Path, name: str, status: os.stat_result, together: dict[tuple[int, int], list[str]]) -> Node:
    path = str(top / name) if name else str(top)
    same = together.get((status.st_dev, status.st_ino), [])
    return Node(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        # A directory's size is the file system's own affair.
        size=0 if stat.S_ISDIR(status.st_mode) else status.st_size,
        mtime_ns=status.st_mtime_ns,
        rdev=status.st_rdev,
        content=_content(path, status.st_mode),
        xattrs=_xattrs(path),
        links=tuple(sorted(other for other in same if other != name)),
    )


def differences(left: dict[str, Node], right: dict[str, Node]) -> list[str]:
    """In words, one line a path; empty when both trees are equal."""
    lines = [f"{name!r}: only in the first" for name in sorted(left.keys() - right.keys())]
    lines += [f"{name!r}: only in the second" for name in sorted(right.keys() - left.keys())]
    common = sorted(left.keys() & right.keys())
    return lines + [f"{name!r}: {left[name]} / {right[name]}" for name in common if left[name] != right[name]]


def chain_id(diff_ids: Sequence[str]) -> str:
    """Name of the snapshot of a stack of layers (image-spec, config.md, "Layer ChainID")."""
    chain, *rest = diff_ids
    for diff_id in rest:
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}"
    return chain


@contextlib.contextmanager
def mounted(containerd: Containerd, reference: str, snapshotter: str, point: Path) -> Iterator[Path]:
    """A pulled image of one platform, mounted at `point` by what the snapshotter says, read-only.

    Not by `ctr images mount`: containerd 2.x keeps a mount of its own behind until its next garbage collection.
    """
    row = next(line for line in containerd.ctr("images", "ls").splitlines() if line.split()[:1] == [reference])
    manifest = json.loads(containerd.ctr("content", "get", row.split()[2]))
    config = json.loads(containerd.ctr("content", "get", manifest["config"]["digest"]))
    key = f"look-{secrets.token_hex(4)}"
    chain = chain_id(config["rootfs"]["diff_ids"])
    point.mkdir()
    snapshots = ["snapshots", "--snapshotter", snapshotter]
    # Nothing roots a view that ctr made, so garbage collection may come at any time: one call makes it and tells how
    # to mount it. What is mounted are the image's own layers, and those stay.
    run(["sh", "-c", containerd.ctr(*snapshots, "view", "--target", str(point), key, chain)])
    try:
        yield point
    finally:
        run(["umount", str(point)])
        point.rmdir()
        with contextlib.suppress(CommandFailed):
            containerd.ctr(*snapshots, "remove", key)
