"""A profile as people read it: what it names of each layer, and what a start would fetch for it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastpull.amounts import in_bytes
from fetcher.profiles.packs import FoundPack
from fetcher.profiles.profile import Profile, wanted_frames
from layerformat.annotations import LayerRef
from layerformat.digest import DiffID
from layerformat.frames import FrameTable


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCoverage:
    """One layer. Without its frames, what they would tell is None."""

    diff_id: DiffID
    reads: int
    touched_bytes: int
    frames: int | None = None
    frame_bytes: int | None = None  # uncompressed, of the frames that hold what is named
    fetch_bytes: int | None = None  # the same, compressed: what a start downloads
    requests: int | None = None  # stretches of neighbouring frames
    blob_bytes: int | None = None  # compressed, of the whole layer


def coverage(profile: Profile, tables: Mapping[DiffID, FrameTable]) -> list[LayerCoverage]:
    """Per layer of the profile. Raises ProfileError where the profile does not fit the frames."""
    wanted: dict[DiffID, list[int]] = {}
    for diff_id, number in wanted_frames(profile, tables):
        wanted.setdefault(diff_id, []).append(number)
    rows = []
    for number, diff_id in enumerate(profile.layers):
        reads = [read for read in profile.reads if read.layer == number]
        plain = LayerCoverage(diff_id=diff_id, reads=len(reads), touched_bytes=sum(read.length for read in reads))
        table = tables.get(diff_id)
        rows.append(plain if table is None else _with_frames(plain, table, sorted(wanted.get(diff_id, []))))
    return rows


def _with_frames(row: LayerCoverage, table: FrameTable, numbers: list[int]) -> LayerCoverage:
    frames = [table[number] for number in numbers]
    return LayerCoverage(
        diff_id=row.diff_id,
        reads=row.reads,
        touched_bytes=row.touched_bytes,
        frames=len(frames),
        frame_bytes=sum(frame.length for frame in frames),
        fetch_bytes=sum(frame.size for frame in frames),
        requests=sum(before + 1 != number for before, number in zip([-2, *numbers], numbers, strict=False)),
        blob_bytes=table.data_size,
    )


def packed_bytes(
    profile: Profile, layers: Iterable[LayerRef], tables: Mapping[DiffID, FrameTable], pack: FoundPack
) -> int:
    """Compressed bytes of what the profile names that come from the pack. Raises ProfileError as `coverage` does."""
    digests = {ref.diff_id: ref.digest for ref in layers}
    frames = ((digests[diff_id], tables[diff_id][number]) for diff_id, number in wanted_frames(profile, tables))
    return sum(frame.size for digest, frame in frames if pack.place(digest, frame) is not None)


def show(console: Console, title: str, profile: Profile, rows: list[LayerCoverage], in_pack: int | None = None) -> None:
    """Print it. ``in_pack``: how much of it is in a pack, if there is one."""
    console.print(Group(Text(title, style="bold"), _summary(profile, rows, in_pack), _table(rows)))


def _summary(profile: Profile, rows: list[LayerCoverage], in_pack: int | None) -> RenderableType:
    rare = sum(not profile.is_common(read) for read in profile.reads)
    text = Text()
    text.append(f"recorded   {profile.recorded_at:%Y-%m-%d %H:%M:%S} UTC, {profile.duration_ms / 1000:.1f} s")
    text.append(f", {profile.recordings} recordings merged\n" if profile.recordings > 1 else "\n")
    text.append(f"reads      {len(profile.reads)} ranges, {in_bytes(profile.touched_bytes)}")
    text.append(f"; {rare} of them in a minority of the recordings\n" if rare else "\n")
    known = [row for row in rows if row.fetch_bytes is not None]
    if known:
        fetch, whole = sum(row.fetch_bytes or 0 for row in known), sum(row.blob_bytes or 0 for row in known)
        text.append(f"download   {in_bytes(fetch)} of {in_bytes(whole)}")
        text.append(f" ({fetch / whole:.1%})" if whole else "")
        text.append(f", in {sum(row.requests or 0 for row in known)} stretches\n")
        text.append(f"pack       {in_bytes(in_pack)} of that, one after the other\n" if in_pack is not None else "")
    return text


def _table(rows: list[LayerCoverage]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("", "layer", "ranges", "read", "frames", "unpacked", "download", "of"):
        table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=True)
    for number, row in enumerate(rows):
        table.add_row(str(number), row.diff_id[7:19], str(row.reads), in_bytes(row.touched_bytes), *_frames(row))
    return table


def _frames(row: LayerCoverage) -> list[str]:
    if row.frames is None:
        return ["", "", "", ""]
    sizes = (row.frame_bytes, row.fetch_bytes, row.blob_bytes)
    return [str(row.frames), *(in_bytes(size or 0) for size in sizes)]
