"""What was read while containers started: the raw material of profiles and of ``fastpull report``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from fetcher.layers.layer import Layer

#: Reads remembered; the oldest are forgotten first.
HISTORY = 200_000


@dataclass(slots=True)
class Touch:
    """One uncached read of bytes [offset, offset + count) of a layer: when, on the monotonic clock; how it waited."""

    at_ns: int
    layer: str
    offset: int
    count: int
    wait_ns: int = 0  # 0: not at all; -1: it still does
    ahead: bool = False  # no program read it: it was brought into the page cache ahead of one

    def waits(self) -> None:
        """The bytes are not there."""
        self.wait_ns = -1

    def ended(self) -> None:
        """They are now, or never will be."""
        self.wait_ns = time.monotonic_ns() - self.at_ns


class TouchLog:
    """The last reads of all layers, oldest first."""

    def __init__(self) -> None:
        self.history: deque[Touch] = deque(maxlen=HISTORY)
        self.observer: Callable[[Layer, int, int], None] | None = None  # told of programs' reads: layer, offset, count
        self.readers_ahead: Callable[[], Collection[int]] = tuple  # pids of those that read ahead of programs

    def touch(self, layer: Layer, offset: int, count: int, pid: int = 0) -> Touch:
        """A read is about to happen, by the process ``pid`` where that is known."""
        touch = Touch(time.monotonic_ns(), layer.digest, offset, count, ahead=pid in self.readers_ahead())
        self.history.append(touch)
        if self.observer is not None and not touch.ahead:
            self.observer(layer, offset, count)
        return touch
