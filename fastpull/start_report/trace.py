"""What was read during a start. Pure."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastpull.daemon_client import Touch
from layerformat.entries import Entry

#: Reads further apart than this belong to two starts.
QUIET_S = 30.0
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Read:
    """One read: seconds since the start's first, the layer's number (0 is the lowest), bytes of its tar, its wait."""

    at_s: float
    layer: int
    offset: int
    count: int
    wait_s: float = 0.0
    ahead: bool = False  # not the program's: fastpull brought it into the page cache before the program asked

    @property
    def waited(self) -> bool:
        """Whether its bytes had to come over the network first."""
        return self.wait_s != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One start: its reads in order. `number` counts the starts since the daemon came up, from 1 to `of`."""

    number: int
    of: int
    reads: tuple[Read, ...]

    @property
    def seconds(self) -> float:
        """From the first read to the last."""
        return self.reads[-1].at_s if self.reads else 0.0


class FileMap:
    """Which file a byte of a layer's tar belongs to."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        rows = sorted(
            (entry.data_offset, entry.data_offset + entry.size, entry.path)
            for entry in entries
            if entry.data_offset is not None and entry.size and entry.link is None
        )
        self._starts = [start for start, _, _ in rows]
        self._rows = rows

    def at(self, offset: int) -> str | None:
        """The path of the file whose data holds the byte, with a leading slash; None between files."""
        place = bisect_right(self._starts, offset) - 1
        if place < 0 or offset >= self._rows[place][1]:
            return None
        return "/" + self._rows[place][2].decode(errors="backslashreplace")


def starts(touches: Mapping[str, Sequence[Touch]], layers: Sequence[str]) -> list[Trace]:
    """The starts that the touches of an image's layers tell of: divided where nothing was read for `QUIET_S`.

    Args:
        touches: by layer digest, as the daemon remembers them.
        layers: digests of the image's layers, from the lowest.
    """
    rows = [(touch, number) for number, digest in enumerate(layers) for touch in touches.get(digest, ())]
    rows.sort(key=lambda row: row[0].at_ns)
    groups: list[list[tuple[Touch, int]]] = []
    for touch, number in rows:
        if not groups or touch.at_ns - groups[-1][-1][0].at_ns > QUIET_S * _NS:
            groups.append([])
        groups[-1].append((touch, number))
    return [Trace(number=n, of=len(groups), reads=_reads(group)) for n, group in enumerate(groups, start=1)]


def _reads(group: Sequence[tuple[Touch, int]]) -> tuple[Read, ...]:
    begin = group[0][0].at_ns
    return tuple(
        Read((t.at_ns - begin) / _NS, number, t.offset, t.count, t.wait_ns / _NS, bool(t.ahead)) for t, number in group
    )


def stalled_s(reads: Iterable[Read], until_s: float) -> float:
    """Seconds in which at least one read waited; one that still does has waited until `until_s`."""
    waits = [read for read in reads if read.waited]
    ends = [read.at_s + read.wait_s if read.wait_s > 0 else max(until_s, read.at_s) for read in waits]
    spans = ((round(read.at_s * _NS), round(end * _NS)) for read, end in zip(waits, ends, strict=True))
    return distinct_bytes(spans) / _NS


def distinct_bytes(ranges: Iterable[tuple[int, int]]) -> int:
    """How many bytes the ranges [start, end) cover, each counted once."""
    covered, reached = 0, 0
    for start, end in sorted(ranges):
        covered += max(0, end - max(start, reached))
        reached = max(reached, end)
    return covered
