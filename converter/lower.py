"""Attributes that a layer takes over from the layers below it.

A layer may hold `tmp/x` without `tmp`: extractors then make the directory like the one that is seen there (containerd:
pkg/archive, mkparent), because on top of an overlayfs its attributes are the ones that count.
"""

import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from layerformat.entries import OPAQUE_XATTR, Entry

Load = Callable[[], Awaitable[Iterable[Entry]]]


class LayerFiles:
    """The files of one layer, loaded when somebody asks."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._table: dict[bytes, Entry] | None = None

    async def find(self, path: bytes) -> Entry | None:
        """The entry at `path` in this layer alone."""
        if self._table is None:
            self._table = {entry.path: entry for entry in await self._load()}
        return self._table.get(path)


def loaded(entries: Iterable[Entry]) -> LayerFiles:
    """Files that are at hand."""

    async def load() -> Iterable[Entry]:
        return entries

    return LayerFiles(load)


async def directories_below(
    paths: Iterable[bytes], layers: Sequence[Callable[[], Awaitable[LayerFiles]]]
) -> Mapping[bytes, Entry]:
    """For each path, the directory that the uppermost of `layers` (lowest first) with anything there has, if it is
    one.
    """
    found: dict[bytes, Entry] = {}
    pending = set(paths)
    for layer in reversed(layers):
        if not pending:
            break
        files = await layer()
        for path in sorted(pending):
            entry = await files.find(path)
            if entry is None:
                continue
            pending.discard(path)
            if entry.link is None and stat.S_ISDIR(entry.mode):
                xattrs = {key: value for key, value in entry.xattrs.items() if key != OPAQUE_XATTR}
                found[path] = replace(entry, xattrs=xattrs)
    return found
