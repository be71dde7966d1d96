"""Which inode a byte of a layer's tar belongs to: kept beside the layer, as the metadata's check finds it anyway."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from layerformat.erofs import BLOCK
from layerformat.erofs_read import Extent

#: The file's name in a layer's directory. It is written once and may be missing: older layers have none.
EXTENTS = "extents"


class Piece(NamedTuple):
    """Bytes [start, end) of the tar, all of one file, whose data begin at ``base``."""

    nid: int
    base: int
    start: int
    end: int


class ExtentMap:
    """The regular files of a layer that have data, in the order of the tar."""

    def __init__(self, starts: Sequence[int], ends: Sequence[int], nids: Sequence[int]) -> None:
        self._starts = starts
        self._ends = ends
        self._nids = nids

    @classmethod
    def load(cls, directory: Path) -> ExtentMap:
        """Of a layer's directory. Raises OSError, or ValueError for a file that is not whole."""
        numbers = array("Q", (directory / EXTENTS).read_bytes())
        if sys.byteorder == "big":
            numbers.byteswap()
        count, rest = divmod(len(numbers), 3)
        if rest:
            raise ValueError(f"{directory.name}/{EXTENTS}: {len(numbers)} numbers")
        return cls(numbers[:count], numbers[count : 2 * count], numbers[2 * count :])

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """The parts of [start, end) that are files' data."""
        place = max(bisect_right(self._starts, start) - 1, 0)
        while place < len(self._starts) and (base := self._starts[place]) < end:
            first, last = max(start, base), min(end, self._ends[place])
            if first < last:
                yield Piece(self._nids[place], base, first, last)
            place += 1


def encode_extents(extents: Sequence[Extent]) -> bytes:
    """Three columns of little-endian 64-bit numbers: start and end in the tar, in bytes; the inode."""
    columns = (
        (extent.first * BLOCK for extent in extents),
        ((extent.first + extent.blocks) * BLOCK for extent in extents),
        (extent.nid for extent in extents),
    )
    numbers = array("Q", (number for column in columns for number in column))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
