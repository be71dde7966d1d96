"""One profile from several recordings of the same image. Pure.

The order is by the median, over the recordings that have a byte, of how many bytes they had read before it: recordings
that went on for different times agree at their beginning, where order matters. What only a minority has goes last:
there it delays nothing that most starts need, and still comes before the rest of the image. What less than a quarter
has is dropped, or chance reads would pile up for ever. ``docs/design/0003-profiles.md`` has the reasons.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fetcher.profiles.document import MAX_ROWS, ProfileError
from fetcher.profiles.profile import MAX_DURATION_MS, MAX_RECORDINGS, Profile, Read, coalesced
from layerformat.digest import DiffID

#: A range must be in one of so many recordings to be kept.
DROP_BELOW = 4


@dataclass(frozen=True, slots=True)
class _Sample:
    """A range as one profile has it: bytes read before it, and in how many recordings it was."""

    start: int
    end: int
    position: int
    weight: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """A range that no profile divides."""

    read: Read
    rank: int


def merge(profiles: Sequence[Profile]) -> Profile:
    """The profiles as one, whatever their order in the list. Raises ProfileError for none."""
    if not profiles:
        raise ProfileError("there is nothing to merge")
    total = sum(profile.recordings for profile in profiles)
    layers = _layers(profiles)
    pieces = [
        piece
        for number, diff_id in enumerate(layers)
        for piece in _pieces(number, _samples(profiles, diff_id))
        if piece.read.seen * DROP_BELOW >= total
    ]
    pieces.sort(key=lambda piece: (2 * piece.read.seen < total, piece.rank, piece.read.layer, piece.read.offset))
    return Profile(
        layers=layers,
        reads=coalesced([piece.read for piece in pieces])[:MAX_ROWS],
        recorded_at=max(profile.recorded_at for profile in profiles),
        duration_ms=min(MAX_DURATION_MS, max(profile.duration_ms for profile in profiles)),
        recordings=min(MAX_RECORDINGS, total),
    )


def _layers(profiles: Sequence[Profile]) -> tuple[DiffID, ...]:
    """All layers; in the image's order if the profiles agree on it."""
    first = profiles[0].layers
    if all(profile.layers == first for profile in profiles):
        return first
    return tuple(sorted({diff_id for profile in profiles for diff_id in profile.layers}))


def _samples(profiles: Iterable[Profile], diff_id: DiffID) -> list[_Sample]:
    samples = []
    for profile in profiles:
        position = 0
        for read in profile.reads:
            if profile.layers[read.layer] == diff_id:
                samples.append(_Sample(read.offset, read.end, position, read.seen))
            position += read.length
    return samples


def _pieces(layer: int, samples: Sequence[_Sample]) -> list[_Piece]:
    """The samples' union, divided wherever a sample begins or ends."""
    bounds = sorted({bound for sample in samples for bound in (sample.start, sample.end)})
    held: list[list[tuple[int, int]]] = [[] for _ in bounds]
    for sample in samples:
        for number in range(bisect_left(bounds, sample.start), bisect_left(bounds, sample.end)):
            held[number].append((sample.position + bounds[number] - sample.start, sample.weight))
    return [
        _Piece(Read(layer, start, end - start, sum(weight for _, weight in ranks)), _median(ranks))
        for start, end, ranks in zip(bounds, bounds[1:], held, strict=False)
        if ranks
    ]


def _median(ranks: list[tuple[int, int]]) -> int:
    """The weighted lower median: of two recordings that disagree the one that needs it sooner is heard."""
    ranks.sort()
    half = sum(weight for _, weight in ranks) / 2
    reached = 0
    for rank, weight in ranks:
        reached += weight
        if reached >= half:
            return rank
    raise AssertionError("unreachable")
