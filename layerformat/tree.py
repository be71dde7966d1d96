"""Entries, in any order, made into one checked tree of inodes."""

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from layerformat.entries import Entry, check_entry
from layerformat.errors import FormatError


@dataclass(slots=True, eq=False)
class Node:
    """One inode. Hard links are several names of one node."""

    entry: Entry
    nlink: int
    parent: "Node | None" = None  # of a directory; the root is its own
    children: list[tuple[bytes, "Node"]] = field(default_factory=list)  # of a directory, sorted by name

    @property
    def is_dir(self) -> bool:
        """Whether the node is a directory."""
        return stat.S_ISDIR(self.entry.mode)


def build_tree(entries: Iterable[Entry], *, device_bytes: int) -> Node:
    """The root of the tree that `entries` describe.

    Missing parents are made (0755 root:root, mtime 0); the last entry of a path wins. Raises FormatError, naming the
    path, for an entry the format cannot express, a parent that is no directory, a hard link that leads nowhere, or two
    files that share bytes of the tar.
    """
    by_path: dict[bytes, Entry] = {}
    for entry in entries:
        check_entry(entry, device_bytes=device_bytes)
        by_path[entry.path] = entry
    _add_parents(by_path)
    nodes = {path: Node(entry, _first_nlink(entry)) for path, entry in by_path.items() if entry.link is None}
    if b"" not in nodes or not nodes[b""].is_dir:
        raise FormatError("entry b'': the root is not a directory")
    _check_extents(nodes.values())
    _attach(by_path, nodes)
    return nodes[b""]


def walk_layout(root: Node) -> Iterator[Node]:
    """Every node once: the root, then each directory's children together, in name order, directory by directory.

    What `ls -l` reads of one directory is then contiguous, and a subtree's directories are close to each other.
    """
    yield root
    seen: set[int] = set()
    stack = [root]
    while stack:
        subdirs = []
        for _, node in stack.pop().children:
            if node.is_dir:
                subdirs.append(node)
            elif node.nlink > 1:
                if id(node) in seen:
                    continue
                seen.add(id(node))
            yield node
        stack.extend(reversed(subdirs))


def _first_nlink(entry: Entry) -> int:
    return 2 if stat.S_ISDIR(entry.mode) else 0


def _add_parents(by_path: dict[bytes, Entry]) -> None:
    for path in [*by_path, b"/"]:  # the last one makes the root where there is no entry at all
        while path and (path := _parent(path)) not in by_path:
            by_path[path] = Entry(path=path, mode=stat.S_IFDIR | 0o755, uid=0, gid=0, mtime_ns=0)


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _attach(by_path: dict[bytes, Entry], nodes: dict[bytes, Node]) -> None:
    """Give every name to its directory. One sort of all names: each directory's list comes out sorted."""
    nodes[b""].parent = nodes[b""]
    for path in sorted(by_path, key=_name):
        if not path:
            continue
        parent = nodes.get(_parent(path))
        if parent is None or not parent.is_dir:
            raise FormatError(f"entry {path[:100]!r}: its parent is not a directory")
        node = nodes.get(path) or _resolve_link(path, by_path, nodes)
        parent.children.append((_name(path), node))
        if node.is_dir:
            node.parent = parent
            parent.nlink += 1
        else:
            node.nlink += 1


def _name(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _resolve_link(path: bytes, by_path: dict[bytes, Entry], nodes: dict[bytes, Node]) -> Node:
    """The node that the hard link at `path` stands for; links may lead to links."""
    seen = {path}
    current = path
    while (entry := by_path.get(current)) is not None and entry.link is not None:
        current = entry.link
        if current in seen:
            raise FormatError(f"entry {path[:100]!r}: hard link to itself")
        seen.add(current)
    node = nodes.get(current)
    if node is None or node.is_dir:
        raise FormatError(f"entry {path[:100]!r}: hard link to {current[:100]!r}, which is no file of the layer")
    return node


def _check_extents(nodes: Iterable[Node]) -> None:
    """Files own their blocks of the tar: checked by readers too, so never written."""
    extents = sorted(
        (entry.data_offset or 0, entry.size, entry.path)
        for entry in (node.entry for node in nodes)
        if stat.S_ISREG(entry.mode) and entry.size
    )
    free_from = 0
    for offset, size, path in extents:
        if offset < free_from:
            raise FormatError(f"entry {path[:100]!r}: shares bytes of the tar with another file")
        free_from = offset + size
