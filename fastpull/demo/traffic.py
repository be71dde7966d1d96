"""Bytes that came over the link, against time, while something else goes on."""

import bisect
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

PERIOD_S = 0.01
# Less than this in one quiet period is not image data: it is TCP's and HTTP's own keeping alive.
_QUIET_BYTES = 16 * 1024


@dataclass(slots=True)
class Curve:
    """Times (monotonic clock, s) and the bytes received up to each since the first."""

    times_s: list[float] = field(default_factory=list)
    bytes_: list[int] = field(default_factory=list)

    def add(self, time_s: float, received: int) -> None:
        self.times_s.append(time_s)
        self.bytes_.append(received)

    def at(self, time_s: float) -> int:
        """Bytes received up to `time_s`, of the samples around it the later one's."""
        if not self.times_s:
            return 0
        position = min(bisect.bisect_left(self.times_s, time_s), len(self.times_s) - 1)
        return self.bytes_[position] - self.bytes_[0]

    def quiet_since(self) -> float:
        """The time after which nothing worth mentioning came."""
        last = self.bytes_[-1]
        position = bisect.bisect_left(self.bytes_, last - _QUIET_BYTES)
        return self.times_s[position]

    def since(self, start_s: float) -> list[tuple[float, int]]:
        """(seconds since `start_s`, bytes since then), one pair where something changed."""
        base = self.at(start_s)
        pairs: list[tuple[float, int]] = [(0.0, 0)]
        for time_s, total in zip(self.times_s, self.bytes_, strict=True):
            received = total - self.bytes_[0] - base
            if time_s > start_s and received != pairs[-1][1]:
                pairs.append((time_s - start_s, received))
        return pairs


class Sampler:
    """Reads a counter from a thread of its own as long as the `with` lasts. `curve` may be read meanwhile."""

    def __init__(self, counter: Callable[[], int]) -> None:
        self.curve = Curve()
        self._counter = counter
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="traffic", daemon=True)

    def _sample(self) -> None:
        while True:
            self.curve.add(time.monotonic(), self._counter())
            if self._over.wait(PERIOD_S):
                return

    def wait_quiet(self, *, quiet_s: float, timeout_s: float) -> bool:
        """Wait until nothing came for `quiet_s`; False when the time is over first."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            now = time.monotonic()
            watched = now - self.curve.times_s[0] > quiet_s
            if watched and self.curve.at(now) - self.curve.at(now - quiet_s) < _QUIET_BYTES:
                return True
            time.sleep(PERIOD_S * 5)
        return False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
