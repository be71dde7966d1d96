"""Where a tar is cut into frames. Pure decisions: positions in, cuts out.

A file of a frame's size or more starts a frame of its own, its frames hold nothing but its data, and their lengths
depend on nothing else: equal files give equal frames in every image. Everything else (headers, smaller files) shares
frames of at most the frame size. A smaller file that would straddle a cut starts a new frame if the current one is at
least half full: then one fault reads it. Cuts fall on multiples of 4096 except at the end of a large file, so that no
page needs two frames more often than it must.

With a profile, the tar's hot ranges are cut out exactly, and what is between them, cold, is cut large.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from layerformat.frames import MAX_FRAME_LENGTH

PAGE: Final = 4096
DEFAULT_FRAME_SIZE: Final = 256 << 10
DEFAULT_COLD_SIZE: Final = 4 << 20
MIN_FRAME_SIZE: Final = 4 * PAGE

Range = tuple[int, int]
"""Start and end, in bytes of the padded tar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutPlan:
    """`frame_size` is the longest frame where there is no profile or a range is hot, `cold_size` elsewhere.

    `hot` ranges are merged, in order and page aligned; see `hot_ranges`.
    """

    frame_size: int = DEFAULT_FRAME_SIZE
    cold_size: int = DEFAULT_COLD_SIZE
    hot: tuple[Range, ...] = ()

    def __post_init__(self) -> None:
        for size in (self.frame_size, self.cold_size):
            if size % PAGE or not MIN_FRAME_SIZE <= size <= MAX_FRAME_LENGTH:
                raise ValueError(
                    f"frame size {size} is not a multiple of {PAGE} from {MIN_FRAME_SIZE} to {MAX_FRAME_LENGTH}"
                )


def hot_ranges(ranges: Iterable[Range], *, gap: int = 0) -> tuple[Range, ...]:
    """Ranges widened to whole pages, sorted, and merged where at most `gap` bytes are between them."""
    merged: list[Range] = []
    for start, end in sorted(
        (start // PAGE * PAGE, -(-end // PAGE) * PAGE) for start, end in ranges if 0 <= start < end
    ):
        if merged and start <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


class Cutter:
    """Walks over the tar once. `room` is how far the current frame may still grow."""

    def __init__(self, plan: CutPlan) -> None:
        self._plan = plan
        self._bounds = [bound for edges in plan.hot for bound in edges]
        self._start = self._position = 0
        self._own = 0  # bytes left of the large file that this frame is part of
        self._size, self._limit, self._forced = self._window(0)

    def begin_file(self, size: int) -> bool:
        """The data of a file of `size` bytes begins here; whether to cut in front of it."""
        if size >= self._size:
            self._own = size
        elif self._forced or self._position + size <= self._limit or self._position - self._start < self._size // 2:
            return False
        if self._position == self._start:
            return False
        self._cut()
        return True

    def room(self) -> int:
        """Bytes until the next cut, at least 1."""
        rest = self._limit - self._position
        return min(rest, self._own) if self._own else rest

    def advance(self, count: int) -> bool:
        """`count` bytes (at most `room`) go into the frame; whether to cut behind them."""
        self._position += count
        finished = 0 < self._own == count
        self._own = max(0, self._own - count)
        if finished or self._position == self._limit:
            self._cut()
            return True
        return False

    def _cut(self) -> None:
        self._start = self._position
        self._size, self._limit, self._forced = self._window(self._position)

    def _window(self, start: int) -> tuple[int, int, bool]:
        """Longest frame here, where the frame from `start` must end, and whether the profile says so."""
        number = bisect_right(self._bounds, start)
        hot = number % 2 == 1
        size = self._plan.frame_size if hot or not self._bounds else self._plan.cold_size
        # A frame that starts off a page boundary (behind a large file) ends on one.
        limit = start + size if self._own else (start + size) // PAGE * PAGE
        if number < len(self._bounds) and self._bounds[number] <= limit:
            return size, self._bounds[number], True
        return size, limit, False


def cuts(files: Iterable[Range], tar_size: int, plan: CutPlan) -> list[int]:
    """Ends of all frames of a tar whose regular files have their data at `files` (start, end), in order."""
    cutter = Cutter(plan)
    found: list[int] = []
    position = 0

    def walk(end: int) -> None:
        nonlocal position
        while position < end:
            step = min(end - position, cutter.room())
            position += step
            if cutter.advance(step):
                found.append(position)

    for start, end in files:
        walk(start)
        if cutter.begin_file(end - start):
            found.append(position)
        walk(end)
    walk(tar_size)
    return found if found[-1:] == [tar_size] else [*found, tar_size]
