"""An image's files as its containers see them: the layers' trees, one upon the other."""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from layerformat.entries import OPAQUE_XATTR, Entry

#: Bytes [offset, offset + length) of the tar of a layer, by its number.
ReadTar = Callable[[int, int, int], bytes]

#: Of one way to a file; the kernel's bound (path_resolution(7)).
MAX_SYMLINKS = 40


@dataclass(frozen=True, slots=True)
class File:
    """A regular file: `size` bytes of the tar of layer number `layer`, from `offset` on."""

    path: str  # the one it really has
    layer: int
    offset: int
    size: int


@dataclass(slots=True, eq=False)
class _Node:
    layer: int
    entry: Entry
    children: dict[str, _Node] = field(default_factory=dict)  # of a directory


class ImageFiles:
    """Paths start at the root and may lead over symbolic links. What is absent raises nothing."""

    def __init__(self, layers: Sequence[Iterable[Entry]], read: ReadTar) -> None:
        """The entries of each layer, from the bottom up; of each, parents come before their children."""
        self._read = read
        self._root = _Node(0, Entry(path=b"", mode=stat.S_IFDIR | 0o755, uid=0, gid=0, mtime_ns=0))
        for number, entries in enumerate(layers):
            self._add(number, entries)

    def _add(self, layer: int, entries: Iterable[Entry]) -> None:
        """What overlayfs makes of an upper layer."""
        named: dict[bytes, Entry] = {}
        for entry in entries:
            named[entry.path] = inode = entry if entry.link is None else named[entry.link]
            directory, name = posixpath.split(_text(entry.path))
            above = self._node(directory)
            if not name or above is None:
                continue
            if stat.S_ISCHR(inode.mode) and inode.rdev == (0, 0):
                above.children.pop(name, None)  # a whiteout
                continue
            below = above.children.get(name)
            node = above.children[name] = _Node(layer, inode)
            if below is not None and stat.S_ISDIR(inode.mode) and OPAQUE_XATTR not in inode.xattrs:
                node.children = below.children

    def _node(self, path: str) -> _Node | None:
        """Where no symbolic link is followed."""
        node = self._root
        for name in filter(None, path.split("/")):
            found = node.children.get(name)
            if found is None:
                return None
            node = found
        return node

    def _find(self, path: str) -> tuple[str, _Node] | None:
        """The node that a path leads to, and its own path."""
        names = list(reversed(path.split("/")))
        way = [("", self._root)]
        links = 0
        while names:
            name = names.pop()
            if name in ("", "."):
                continue
            if name == "..":
                way = way[:-1] or way
                continue
            parent, node = way[-1]
            found = node.children.get(name)
            if found is None:
                return None
            if stat.S_ISLNK(found.entry.mode):
                links += 1
                if links > MAX_SYMLINKS:
                    return None
                target = _text(found.entry.target)
                names += reversed(target.split("/"))
                if target.startswith("/"):
                    del way[1:]
                continue
            way.append((f"{parent}/{name}", found))
        return way[-1]

    def resolve(self, path: str) -> str | None:
        """The absolute path without symbolic links; "" is the root."""
        found = self._find(path)
        return None if found is None else found[0]

    def is_directory(self, path: str) -> bool:
        found = self._find(path)
        return found is not None and stat.S_ISDIR(found[1].entry.mode)

    def names(self, path: str) -> Iterator[str]:
        """In a directory, sorted; nothing for what is none."""
        found = self._find(path)
        return iter(sorted(found[1].children) if found is not None else ())

    def file(self, path: str) -> File | None:
        """The regular file at a path."""
        found = self._find(path)
        if found is None or not stat.S_ISREG(found[1].entry.mode):
            return None
        return _file(*found)

    def walk(self, path: str) -> Iterator[File]:
        """The regular files below a directory, by name; no symbolic link below it is followed."""
        found = self._find(path)
        stack = [found] if found is not None else []
        while stack:
            where, node = stack.pop()
            if stat.S_ISREG(node.entry.mode):
                yield _file(where, node)
            stack += [(f"{where}/{name}", child) for name, child in sorted(node.children.items(), reverse=True)]

    def read(self, file: File, offset: int = 0, length: int | None = None) -> bytes:
        """As much of bytes [offset, offset + length) as the file has. Raises what the reading function raises."""
        end = file.size if length is None else min(file.size, offset + length)
        return self._read(file.layer, file.offset + offset, end - offset) if offset < end else b""


def _file(path: str, node: _Node) -> File:
    return File(path, node.layer, node.entry.data_offset or 0, node.entry.size)


def _text(path: bytes) -> str:
    return path.decode(errors="surrogateescape")
