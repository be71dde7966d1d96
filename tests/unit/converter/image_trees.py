"""Images in memory for predictions: layers as dictionaries, and a part of this machine as an image."""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.prediction.files import ImageFiles
from layerformat.entries import OPAQUE_XATTR, Entry

BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True)
class Hard:
    """Another name of a file of the same layer."""

    path: str


class Gone:
    """A whiteout."""


class Opaque:
    """A directory that hides what is below it."""


Layer = Mapping[str, bytes | str | Link | Hard | type[Gone] | type[Opaque]]


def image(*layers: Layer) -> ImageFiles:
    """From the bottom up. Directories that are not named are made."""
    tars: list[bytearray] = []
    entries = []
    for layer in layers:
        tar = bytearray()
        entries.append(_entries(layer, tar))
        tars.append(tar)
    return ImageFiles(entries, lambda number, offset, length: bytes(tars[number][offset : offset + length]))


def _entries(layer: Layer, tar: bytearray) -> list[Entry]:
    made: dict[str, Entry] = {}
    for path, content in layer.items():
        for directory in reversed(Path(path).parents[:-1]):
            made.setdefault(str(directory), _entry(str(directory), stat.S_IFDIR | 0o755))
        made[path] = _of(path, content, tar)
    return list(made.values())


def _of(path: str, content: object, tar: bytearray) -> Entry:
    match content:
        case Link(target):
            return _entry(path, stat.S_IFLNK | 0o777, target=target.encode())
        case Hard(first):
            return _entry(path, stat.S_IFREG | 0o644, link=first.encode())
        case bytes() | str():
            data = content.encode() if isinstance(content, str) else content
            offset = len(tar)
            tar += data + bytes(-len(data) % BLOCK)
            return _entry(path, stat.S_IFREG | 0o755, size=len(data), data_offset=offset if data else None)
    if content is Gone:
        return _entry(path, stat.S_IFCHR, rdev=(0, 0))
    return _entry(path, stat.S_IFDIR | 0o755, xattrs={OPAQUE_XATTR: b"y"})


def _entry(path: str, mode: int, **more: object) -> Entry:
    return Entry(path=path.encode(), mode=mode, uid=0, gid=0, mtime_ns=0, **more)  # type: ignore[arg-type]


def this_machine(directories: Sequence[str]) -> ImageFiles:
    """One layer: these directories of this machine, and the symbolic links on the way to them."""
    entries: dict[str, Entry] = {}
    places: dict[int, Path] = {}
    end = 0

    def add(path: Path) -> None:
        nonlocal end
        status = path.lstat()
        name = str(path).lstrip("/")
        if stat.S_ISLNK(status.st_mode):
            entries[name] = _entry(name, status.st_mode, target=os.fsencode(path.readlink()))
        elif stat.S_ISDIR(status.st_mode):
            entries[name] = _entry(name, status.st_mode)
        elif stat.S_ISREG(status.st_mode):
            entries[name] = _entry(name, status.st_mode, size=status.st_size, data_offset=end)
            places[end] = path
            end += -(-status.st_size // BLOCK) * BLOCK + BLOCK

    def read(_: int, offset: int, length: int) -> bytes:
        start = max(place for place in places if place <= offset)
        with places[start].open("rb") as file:
            file.seek(offset - start)
            return file.read(length)

    for directory in map(Path, directories):
        for above in reversed(directory.parents[:-1]):
            add(above)
        if directory.is_symlink() or not directory.is_dir():
            if directory.exists():
                add(directory)
            continue
        for where, names, files in os.walk(directory):
            add(Path(where))
            for name in (*names, *files):
                if (path := Path(where) / name).is_symlink() or name in files:
                    add(path)
    return ImageFiles([entries.values()], read)
