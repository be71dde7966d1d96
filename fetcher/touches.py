"""What was read while containers started: the raw material of profiles and of ``fastpull report``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fetcher.layer import Layer

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
        self.observer: Callable[[Layer, int, int], None] | None = None  # told of every read: layer, offset, count

    def touch(self, layer: Layer, offset: int, count: int) -> Touch:
        """A read is about to happen."""
        touch = Touch(time.monotonic_ns(), layer.digest, offset, count)
        self.history.append(touch)
        if self.observer is not None:
            self.observer(layer, offset, count)
        return touch
