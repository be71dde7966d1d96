"""The figures of a start, and what they say should be changed. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastpull.amounts import in_bytes
from fastpull.start_report.trace import FileMap, Read, Trace, distinct_bytes, stalled_s
from fastpull.status_view import ImageLines

_SHOWN_FILES = 15
_MANY_WAITS = 20
_FEW_READ = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class FileUse:
    """What was read of one file: how often, how many distinct bytes, how many of the reads waited and how long."""

    path: str
    layer: int
    reads: int
    bytes: int
    waits: int
    wait_s: float
    first_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileUse:
    """Unpacked bytes: named by the replayed profile and read, read without being named, named and not read.

    The last cannot be known (None) where the profile was read ahead of the program: that finds its pages, unseen.
    """

    hit_bytes: int
    missed_bytes: int
    unread_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The figures. Bytes of `read_bytes` are of the unpacked image; those of `fetched` are compressed, by reason."""

    image: str
    trace: Trace
    layers: ImageLines
    reads: int
    waits: int
    read_bytes: int
    image_bytes: int
    frame_bytes: int
    fetched: Mapping[str, int]
    wait_s: float
    stalled_s: float
    files: tuple[FileUse, ...]
    advice: tuple[str, ...]
    profile: ProfileUse | None = None
    ahead_bytes: int = 0  # of `read_bytes`: brought into the page cache ahead of the program

    @property
    def used(self) -> float | None:
        """Of the (unpacked) bytes of the pieces the start needed, the share it really read; 0 to 1."""
        return self.read_bytes / self.frame_bytes if self.frame_bytes else None

    def to_json(self) -> dict[str, Any]:
        """Everything, the reads included."""
        document = asdict(self)
        document["trace"]["reads"] = [list(asdict(read).values()) for read in self.trace.reads]
        document["trace"]["columns"] = ["at_s", "layer", "offset", "count", "wait_s", "ahead"]
        return {**document, "used": self.used}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the figures are made from. `frame_bytes_of` by layer number; the file maps by layer number too."""

    lines: ImageLines
    files: Mapping[int, FileMap]
    frame_bytes: int
    fetched: Mapping[str, int]
    named: Mapping[int, Sequence[tuple[int, int]]] | None = None  # what a replayed profile names, by layer number


def find(trace: Trace, inputs: Inputs) -> Findings:
    """The figures of one start."""
    ranges = _by_layer(trace.reads)
    ahead = _by_layer(read for read in trace.reads if read.ahead)
    read_bytes = sum(distinct_bytes(rows) for rows in ranges.values())
    waits = sum(read.waited for read in trace.reads)
    return Findings(
        image=inputs.lines.name,
        trace=trace,
        layers=inputs.lines,
        reads=sum(not read.ahead for read in trace.reads),
        waits=waits,
        read_bytes=read_bytes,
        image_bytes=sum(layer.total_bytes for layer in inputs.lines.layers),
        frame_bytes=inputs.frame_bytes,
        fetched=inputs.fetched,
        wait_s=sum(max(read.wait_s, 0.0) for read in trace.reads),
        stalled_s=stalled_s(trace.reads, trace.seconds),
        profile=None if inputs.named is None else _profile_use(ranges, inputs.named, seen=not ahead),
        ahead_bytes=sum(distinct_bytes(rows) for rows in ahead.values()),
        files=_files(trace, inputs.files),
        advice=tuple(_advice(inputs, waits, read_bytes)),
    )


def _profile_use(
    read: Mapping[int, Sequence[tuple[int, int]]], named: Mapping[int, Sequence[tuple[int, int]]], *, seen: bool
) -> ProfileUse:
    """How a start's reads and a profile's cover each other."""
    hit = read_bytes = named_bytes = 0
    for layer in {*read, *named}:
        ours, theirs = list(read.get(layer, ())), list(named.get(layer, ()))
        of_ours, of_theirs = distinct_bytes(ours), distinct_bytes(theirs)
        hit += of_ours + of_theirs - distinct_bytes(ours + theirs)
        read_bytes, named_bytes = read_bytes + of_ours, named_bytes + of_theirs
    return ProfileUse(hit_bytes=hit, missed_bytes=read_bytes - hit, unread_bytes=named_bytes - hit if seen else None)


def _by_layer(reads: Iterable[Read]) -> Mapping[int, list[tuple[int, int]]]:
    ranges: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for read in reads:
        ranges[read.layer].append((read.offset, read.offset + read.count))
    return ranges


def _files(trace: Trace, maps: Mapping[int, FileMap]) -> tuple[FileUse, ...]:
    """The files that were waited for longest, then those with most bytes."""
    grouped: dict[tuple[int, str], list[Any]] = defaultdict(list)
    for read in trace.reads:
        path = maps[read.layer].at(read.offset) if read.layer in maps else None
        grouped[read.layer, path or "(directories and names)"].append(read)
    uses = [
        FileUse(
            path=path,
            layer=layer,
            reads=len(reads),
            bytes=distinct_bytes((read.offset, read.offset + read.count) for read in reads),
            waits=sum(read.waited for read in reads),
            wait_s=sum(max(read.wait_s, 0.0) for read in reads),
            first_s=reads[0].at_s,
        )
        for (layer, path), reads in grouped.items()
    ]
    uses.sort(key=lambda use: (use.wait_s, use.bytes), reverse=True)
    return tuple(uses[:_SHOWN_FILES])


def _advice(inputs: Inputs, waits: int, read_bytes: int) -> Sequence[str]:
    said = []
    ordinary = [layer for layer in inputs.lines.layers if not layer.lazy]
    if ordinary:
        size = in_bytes(sum(layer.size for layer in ordinary))
        why = ordinary[0].why
        said.append(
            f"{len(ordinary)} layers ({size}) were not lazy ({why}). Convert the image: fastpull convert SRC DST"
        )
    prefetched = inputs.fetched.get("prefetch", 0)
    if waits > _MANY_WAITS and not prefetched:
        said.append(
            f"{waits} reads waited for the network, and no profile told what comes next. The first start here "
            f"is recorded by itself; attach that for the other nodes: fastpull profile push {inputs.lines.name}"
        )
    elif waits > _MANY_WAITS:
        said.append(
            f"{waits} reads waited although a profile was used: it is of another start. Record one like it: "
            f"fastpull profile record {inputs.lines.name}"
        )
    if inputs.frame_bytes and read_bytes / inputs.frame_bytes < _FEW_READ:
        share = f"{read_bytes / inputs.frame_bytes * 100:.0f} %"
        said.append(
            f"Only {share} of the frames that these reads lie in was read. Convert the image along its profile: "
            f"fastpull convert --profile auto {inputs.lines.name} DST"
        )
    return said or ["Nothing stands out: this start read what it fetched, and seldom waited."]
