"""Start profiles: the bytes of an image's layers that a start reads, in the order of first touch.

Ranges of the layers' tars, keyed by diff id: a profile outlives a conversion that cuts other frames. The JSON is
specified in ``docs/profiles.md``. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from fetcher.profiles.document import (
    ProfileError,
    check_disjoint,
    encode_document,
    parse_document,
    parse_layers,
    parse_rows,
)
from layerformat.digest import DiffID
from layerformat.erofs import MAX_DEVICE_BYTES
from layerformat.frames import FrameTable

#: Of the document, and of the OCI referrer that carries it.
MEDIA_TYPE: Final = "application/vnd.fastpull.profile.v1+json"
MAX_RECORDINGS: Final = 1_000_000
MAX_DURATION_MS: Final = 24 * 3600 * 1000
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class Read(NamedTuple):
    """Bytes [offset, offset + length) of the tar of ``layers[layer]``, read first in ``seen`` of the recordings."""

    layer: int
    offset: int
    length: int
    seen: int = 1

    @property
    def end(self) -> int:
        """Just after the last byte."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What starts of one image read, first touch first. No two reads of one layer overlap."""

    layers: tuple[DiffID, ...]  # of the image, from the bottom up
    reads: tuple[Read, ...]
    recorded_at: datetime  # the end of the latest recording, UTC, whole seconds
    duration_ms: int  # the longest recording
    recordings: int = 1

    @property
    def touched_bytes(self) -> int:
        """Uncompressed bytes named."""
        return sum(read.length for read in self.reads)

    @property
    def created(self) -> str:
        """When, as annotations of the image specification have it (RFC 3339)."""
        return self.recorded_at.isoformat().replace("+00:00", "Z")

    def is_common(self, read: Read) -> bool:
        """Whether at least half of the recordings had the read."""
        return 2 * read.seen >= self.recordings

    def ranges(self) -> dict[DiffID, tuple[tuple[int, int], ...]]:
        """(start, end) of the common reads of each layer: what is worth frames of its own."""
        found: dict[DiffID, list[tuple[int, int]]] = {}
        for read in filter(self.is_common, self.reads):
            found.setdefault(self.layers[read.layer], []).append((read.offset, read.end))
        return {diff_id: tuple(ranges) for diff_id, ranges in found.items()}

    def restricted_to(self, diff_ids: Collection[DiffID]) -> Profile | None:
        """What it says of these layers; None if that is nothing."""
        layers = tuple(diff_id for diff_id in self.layers if diff_id in diff_ids)
        numbers = {self.layers.index(diff_id): number for number, diff_id in enumerate(layers)}
        reads = [read._replace(layer=numbers[read.layer]) for read in self.reads if read.layer in numbers]
        return replace(self, layers=layers, reads=coalesced(reads)) if reads else None

    def check_fits(self, diff_ids: Iterable[DiffID]) -> None:
        """Raise ProfileError when the profile is of an image with other layers than these."""
        strangers = set(self.layers) - set(diff_ids)
        if strangers:
            raise ProfileError(f"is of another image: layer {min(strangers)} is not of this one")


def encode_profile(profile: Profile) -> bytes:
    """The document; equal profiles give equal bytes. Raises ProfileError for what no reader would take."""
    members = {
        "layers": list(profile.layers),
        "reads": [_row(read, profile.recordings) for read in profile.reads],
        "recordedAt": profile.recorded_at.astimezone(UTC).strftime(_TIME),
        "durationMs": profile.duration_ms,
        "recordings": profile.recordings,
    }
    data = encode_document("profile", members)
    decode_profile(data)
    return data


def _row(read: Read, recordings: int) -> list[int]:
    row = [read.layer, read.offset, read.length]
    return row if read.seen == recordings else [*row, read.seen]


def decode_profile(data: bytes) -> Profile:
    """The profile a document holds. Raises ProfileError unless every rule of ``docs/profiles.md`` is kept."""
    document = parse_document("profile", data)
    layers = tuple(map(DiffID, parse_layers(document.get("layers"))))
    recordings = _integer(document.get("recordings"), "recordings", 1, MAX_RECORDINGS)
    rows = parse_rows("reads", document.get("reads"), (3, 4))
    reads = tuple(_read(row, number, len(layers), recordings) for number, row in enumerate(rows))
    check_disjoint("reads", reads)
    return Profile(
        layers=layers,
        reads=reads,
        recorded_at=_time(document.get("recordedAt")),
        duration_ms=_integer(document.get("durationMs"), "durationMs", 0, MAX_DURATION_MS),
        recordings=recordings,
    )


def _read(row: Sequence[int], number: int, layers: int, recordings: int) -> Read:
    layer, offset, length, seen = row if len(row) == 4 else (*row, recordings)
    sound = 0 <= layer < layers and offset >= 0 and length > 0 and offset + length <= MAX_DEVICE_BYTES
    if not sound or not 0 < seen <= recordings:
        raise ProfileError(f"reads[{number}]: out of bounds")
    return Read(layer, offset, length, seen)


def _integer(value: Any, name: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ProfileError(f"{name}: not an integer from {low} to {high}")
    return value


def _time(value: Any) -> datetime:
    try:
        return datetime.strptime(value, _TIME).replace(tzinfo=UTC)
    except (TypeError, ValueError) as error:
        raise ProfileError("recordedAt: not a time such as 2026-01-31T12:00:00Z") from error


def wanted_frames(profile: Profile, tables: Mapping[DiffID, FrameTable]) -> list[tuple[DiffID, int]]:
    """The frames that hold what the profile names, each once, first touch first; layers without a table are left out.

    Raises ProfileError when a read lies outside its layer's tar.
    """
    wanted: dict[tuple[DiffID, int], None] = {}
    for layer, offset, length, _ in profile.reads:
        diff_id = profile.layers[layer]
        table = tables.get(diff_id)
        if table is None:
            continue
        end = offset + length
        if end > table.tar_size:
            raise ProfileError(f"names bytes up to {end} of layer {diff_id}, which has {table.tar_size}")
        for number in table.covering(offset, end):
            wanted[diff_id, number] = None
    return list(wanted)


def coalesced(reads: Sequence[Read]) -> tuple[Read, ...]:
    """The same reads, joined where one follows the other in the list and in the tar, seen equally often."""
    joined: list[Read] = []
    for read in reads:
        last = joined[-1] if joined else None
        if last is not None and (last.layer, last.end, last.seen) == (read.layer, read.offset, read.seen):
            joined[-1] = Read(last.layer, last.offset, last.length + read.length, last.seen)
        else:
            joined.append(read)
    return tuple(joined)
