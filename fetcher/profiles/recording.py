"""One recording: which bytes of an image's layers were read, each once, in the order of first touch."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from fetcher.model import ImageHint
from fetcher.profiles.document import MAX_ROWS
from fetcher.profiles.profile import MAX_DURATION_MS, Profile, Read
from layerformat.digest import DiffID, Digest

#: A recording that sees no read for so long is given up.
ARMED_S = 3600.0


class RangeSet:
    """Integers as sorted, disjoint, non-adjacent ranges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> list[tuple[int, int]]:
        """Take [start, end) in; gives the parts that were not in it, in order."""
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        new, position = [], start
        for known_start, known_end in zip(self._starts[first:last], self._ends[first:last], strict=True):
            if position < known_start:
                new.append((position, known_start))
            position = max(position, known_end)
        if position < end:
            new.append((position, end))
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        return new


class Recording:
    """The reads of one start. Runs from the first read; the owner decides when it is over."""

    def __init__(self, image: ImageHint, *, requested: bool, partial: bool, window_s: float) -> None:
        """``partial``: a layer was in use before, so that what is in the page cache is missing here."""
        self.image = image
        self.requested = requested
        self.partial = partial
        self.window_s = window_s
        self.timer: asyncio.Timeout | None = None
        self.keep = True
        self.begun = asyncio.Event()  # the first read came, or there will be none
        self.stopped = asyncio.Event()
        self.saved: asyncio.Future[Profile | None] = asyncio.get_running_loop().create_future()
        self._diff_ids: tuple[DiffID, ...] = tuple(dict.fromkeys(ref.diff_id for ref in image.layers))
        self._numbers = {ref.digest: self._diff_ids.index(ref.diff_id) for ref in image.layers}
        self._known = [RangeSet() for _ in self._diff_ids]
        self._reads: list[Read] = []
        self._first_s = self._last_s = time.monotonic()

    @property
    def digests(self) -> Sequence[Digest]:
        """Of the layers' blobs."""
        return tuple(self._numbers)

    @property
    def read_count(self) -> int:
        """Ranges so far."""
        return len(self._reads)

    def has(self, digest: str) -> bool:
        """Whether the layer belongs to the image."""
        return digest in self._numbers

    def touch(self, digest: str, offset: int, end: int) -> None:
        """Bytes [offset, end) of a layer's tar are read."""
        number = self._numbers.get(Digest(digest))
        if number is None or self.stopped.is_set() or offset >= end:
            return
        self._last_s = time.monotonic()
        if not self.begun.is_set():
            self._first_s = self._last_s
            self.begun.set()
        for start, stop in self._known[number].add(offset, end):
            self._append(number, start, stop)

    def _append(self, layer: int, start: int, end: int) -> None:
        last = self._reads[-1] if self._reads else None
        if last is not None and last.layer == layer and last.end == start:
            self._reads[-1] = Read(layer, last.offset, last.length + end - start)
        elif len(self._reads) < MAX_ROWS:
            self._reads.append(Read(layer, start, end - start))

    def request(self, window_s: float) -> None:
        """Somebody asks for what began by itself; it may take so long from now on."""
        self.requested, self.window_s = True, window_s
        if self.timer is not None and not self.timer.expired():
            self.timer.reschedule(asyncio.get_running_loop().time() + window_s)

    async def over(self) -> None:
        """Returns when it is stopped or its time is up. The time runs from the first read: a pull may come before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ARMED_S):
                await self.begun.wait()
            async with asyncio.timeout(self.window_s) as self.timer:
                await self.stopped.wait()

    def stop(self) -> None:
        """Nothing more is taken in."""
        self._last_s = time.monotonic()
        self.stopped.set()
        self.begun.set()

    def profile(self) -> Profile | None:
        """What was recorded; None if nothing was read."""
        if not self._reads:
            return None
        return Profile(
            layers=self._diff_ids,
            reads=tuple(self._reads),
            recorded_at=datetime.now(UTC).replace(microsecond=0),
            duration_ms=min(MAX_DURATION_MS, round((self._last_s - self._first_s) * 1000)),
        )
