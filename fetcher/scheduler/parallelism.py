"""How many connections the fill uses: more, for as long as more of them bring more.

One connection to a registry is often slower than the node's link: object stores limit each, and a long round trip
leaves each idle between two requests. Neither can be known beforehand, so it is tried: twice as many, and if a second
of that was not clearly faster than the second before it, as many as before.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S = 1.0
#: Twice the connections must bring this much more to be kept.
GAIN = 1.15
#: A node's link does not change often, and a trial asks for the same bytes in shorter pieces.
RETRY_S = 30.0


@dataclass(slots=True)
class Parallelism:
    """The number of connections, ``streams``, between ``least`` and ``most``. Times are of the monotonic clock."""

    least: int
    most: int
    streams: int = 0
    _began: tuple[float, int] | None = None  # the window: when, and the bytes by then
    _rate_before: float | None = None  # bytes/s of half as many connections, while twice as many are tried
    _next_trial: float = 0.0

    def __post_init__(self) -> None:
        self.streams = self.least

    def note(self, now: float, received: int, *, busy: bool) -> None:
        """``received``: bytes so far; ``busy``: all connections are in use, and by nothing else but the fill."""
        if not busy:
            self._began = None
            return
        if self._began is None:
            self._began = now, received
            return
        began, before = self._began
        if now - began < WINDOW_S:
            return
        self._began = now, received
        self._judge(now, (received - before) / (now - began))

    def _judge(self, now: float, rate: float) -> None:
        rate_before, self._rate_before = self._rate_before, None
        if rate_before is not None and rate < GAIN * rate_before:
            self.streams = max(self.streams // 2, self.least)
            self._next_trial = now + RETRY_S
        elif now >= self._next_trial and self.streams < self.most:
            self.streams = min(2 * self.streams, self.most)
            self._rate_before = rate
