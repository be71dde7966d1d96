"""What a start touches, and what that costs with the frames an image has: from a recorded profile and the indexes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fetcher.profiles.profile import Profile, decode_profile
from layerformat.annotations import LayerRef
from layerformat.digest import DiffID
from layerformat.frames import FrameTable
from layerformat.index import frame_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """Of one image's start. `document` is the profile as the registry and the converter take it."""

    document: bytes
    plain_bytes: int
    frame_bytes: int
    exact_bytes: int

    def to_json(self) -> dict[str, int]:
        """Bytes: touched, of the frames they are in, and of the frames' touched parts."""
        return {name: getattr(self, name) for name in ("plain_bytes", "frame_bytes", "exact_bytes")}


def frame_tables(root: Path) -> dict[DiffID, FrameTable]:
    """The frames of every layer a daemon's root directory knows."""
    return {ref.diff_id: frame_table(index) for ref, index in _indexes(root)}


def _indexes(root: Path) -> Iterator[tuple[LayerRef, bytes]]:
    for directory in (root / "layers").iterdir():
        reference = json.loads((directory / "ref.json").read_bytes())
        ref = LayerRef.from_annotations(reference["annotations"])
        assert ref is not None
        yield ref, (directory / "index").read_bytes()


def touched_by(document: Any, root: Path) -> Touched:
    """From the profile a daemon recorded (JSON), and the indexes in its root directory."""
    body = json.dumps(document).encode()
    profile: Profile = decode_profile(body)
    tables = frame_tables(root)
    frames = exact = 0.0
    for diff_id, spans in profile.ranges().items():
        whole, parts = compressed(tables[diff_id], spans)
        frames, exact = frames + whole, exact + parts
    return Touched(
        document=body,
        plain_bytes=profile.touched_bytes,
        frame_bytes=round(frames),
        exact_bytes=round(exact),
    )


def compressed(table: FrameTable, spans: tuple[tuple[int, int], ...]) -> tuple[float, float]:
    """Compressed bytes of the frames that `spans` touch; and the part of them that falls to the spans, by length."""
    read: dict[int, int] = {}
    for start, end in spans:
        for number in table.covering(start, end):
            frame = table[number]
            common = min(end, frame.start + frame.length) - max(start, frame.start)
            read[number] = read.get(number, 0) + common
    whole = sum(table[number].size for number in read)
    return whole, sum(table[number].size * count / table[number].length for number, count in read.items())
