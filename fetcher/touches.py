"""What was read while containers started: the raw material of profiles and of ``fastpull report``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fetcher.layer import Layer

#: Reads remembered; the oldest are forgotten first.
HISTORY = 200_000


@dataclass(frozen=True, slots=True)
class Touch:
    """One uncached read of a layer: nanoseconds of the monotonic clock, bytes [offset, offset + count), did it wait."""

    at_ns: int
    layer: str
    offset: int
    count: int
    waited: bool


class TouchLog:
    """The last reads of all layers, and per layer the order in which its frames were first read."""

    def __init__(self) -> None:
        self.history: deque[Touch] = deque(maxlen=HISTORY)
        self._first: dict[str, dict[int, int]] = {}
        self.observer: Callable[[Layer, int, int], None] | None = None  # told of every read: layer, offset, count

    def touch(self, layer: Layer, offset: int, count: int, *, waited: bool) -> None:
        """A read is about to happen."""
        now = time.monotonic_ns()
        self.history.append(Touch(now, layer.digest, offset, count, waited))
        first = self._first.setdefault(layer.digest, {})
        for number in layer.frames.covering(offset, min(offset + count, layer.frames.tar_size)):
            first.setdefault(number, now)
        if self.observer is not None:
            self.observer(layer, offset, count)

    def first_touches(self, digest: str) -> list[tuple[int, int]]:
        """(nanoseconds, frame) in the order of first touch."""
        return sorted((at, number) for number, at in self._first.get(digest, {}).items())

    def forget(self, digest: str) -> None:
        """Start a layer's record afresh."""
        self._first.pop(digest, None)
