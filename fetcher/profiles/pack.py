"""Packs: the frames that a profile names, copied one after the other into a blob beside the image.

A replay asks for thousands of short ranges of the layers' blobs; of a pack it asks for a few long ones. This is the
table that says which ranges of which blobs a pack consists of; it is specified in ``docs/profiles.md``. Nothing here
does I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, NamedTuple

from fetcher.profiles.document import (
    ProfileError,
    check_disjoint,
    encode_document,
    parse_document,
    parse_layers,
    parse_rows,
)
from fetcher.profiles.profile import Profile, wanted_frames
from layerformat.annotations import LayerRef
from layerformat.digest import Digest
from layerformat.frames import Frame, FrameTable

#: Of the table, and of the OCI referrer that carries it.
MEDIA_TYPE: Final = "application/vnd.fastpull.pack.v1+json"
#: Of the blob with the frames.
DATA_TYPE: Final = "application/vnd.fastpull.pack.data.v1"
_MAX_BLOB_BYTES: Final = 1 << 43


class Range(NamedTuple):
    """Bytes [offset, offset + length) of the blob ``layers[layer]``."""

    layer: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """What the bytes of a pack are, in its order. No two ranges of one layer overlap."""

    layers: tuple[Digest, ...]  # of layer blobs
    ranges: tuple[Range, ...]

    @property
    def size(self) -> int:
        """Bytes of the pack."""
        return sum(each.length for each in self.ranges)

    def places(self) -> Places:
        """For looking frames up."""
        return Places(self)


class Places:
    """Where in a pack bytes of a layer's blob are."""

    def __init__(self, pack: Pack) -> None:
        begins = accumulate((each.length for each in pack.ranges), initial=0)
        rows: dict[Digest, list[tuple[int, int, int]]] = {digest: [] for digest in pack.layers}
        for (layer, offset, length), begin in zip(pack.ranges, begins, strict=False):
            rows[pack.layers[layer]].append((offset, offset + length, begin))
        self._rows = {digest: sorted(found) for digest, found in rows.items()}

    def find(self, digest: Digest, frame: Frame) -> int | None:
        """Offset in the pack of a frame's compressed bytes; None if they are not in it as a whole."""
        rows = self._rows.get(digest, [])
        at = bisect_right(rows, frame.offset, key=lambda row: row[0]) - 1
        if at < 0:
            return None
        start, end, begin = rows[at]
        return begin + frame.offset - start if frame.offset + frame.size <= end else None


def frames_to_pack(profile: Profile, layers: Sequence[tuple[LayerRef, FrameTable]]) -> list[tuple[int, Frame]]:
    """The frames that a start with this profile wants, in its order, each with its layer's number.

    Raises ProfileError for a profile that does not fit or names nothing of these layers.
    """
    tables = {ref.diff_id: table for ref, table in layers}
    numbers = {ref.diff_id: number for number, (ref, _) in enumerate(layers)}
    wanted = wanted_frames(profile, tables)
    if not wanted:
        raise ProfileError("names nothing of this image")
    return [(numbers[diff_id], tables[diff_id][number]) for diff_id, number in wanted]


def pack_of(digests: Iterable[Digest], frames: Iterable[tuple[int, Frame]]) -> Pack:
    """The pack of these frames of these layers, in this order."""
    ranges: list[Range] = []
    for layer, frame in frames:
        last = ranges[-1] if ranges else None
        if last is not None and (last.layer, last.offset + last.length) == (layer, frame.offset):
            ranges[-1] = last._replace(length=last.length + frame.size)
        else:
            ranges.append(Range(layer, frame.offset, frame.size))
    return Pack(layers=tuple(digests), ranges=tuple(ranges))


def encode_pack(pack: Pack) -> bytes:
    """The table; equal packs give equal bytes. Raises ProfileError for what no reader would take."""
    members = {"layers": list(pack.layers), "ranges": [list(each) for each in pack.ranges]}
    data = encode_document("pack", members)
    decode_pack(data)
    return data


def decode_pack(data: bytes) -> Pack:
    """The pack a table describes. Raises ProfileError unless every rule of ``docs/profiles.md`` is kept."""
    document = parse_document("pack", data)
    layers = parse_layers(document.get("layers"))
    rows = parse_rows("ranges", document.get("ranges"), (3,))
    ranges = tuple(_range(row, number, len(layers)) for number, row in enumerate(rows))
    check_disjoint("ranges", ranges)
    return Pack(layers=layers, ranges=ranges)


def _range(row: Sequence[int], number: int, layers: int) -> Range:
    layer, offset, length = row
    if not 0 <= layer < layers or offset < 0 or length <= 0 or offset + length > _MAX_BLOB_BYTES:
        raise ProfileError(f"ranges[{number}]: out of bounds")
    return Range(layer, offset, length)
