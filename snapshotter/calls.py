"""What was asked of the service, how it ended and how long it took: for metrics and the debug log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from grpc import StatusCode

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class CallStats:
    count: int = 0
    seconds: float = 0.0


class Outcome:
    """How the call at hand ends. One that nobody told about was given up by its client."""

    def __init__(self) -> None:
        self.status = StatusCode.CANCELLED


class CallLog:
    """Sums by method and status since the daemon started."""

    def __init__(self) -> None:
        self.stats: dict[tuple[str, str], CallStats] = {}

    @contextmanager
    def call(self, method: str, subject: str) -> Iterator[Outcome]:
        """Time a call. `subject` is the snapshot's key or name, for the log."""
        outcome, began = Outcome(), time.monotonic()
        try:
            yield outcome
        finally:
            seconds = time.monotonic() - began
            stats = self.stats.setdefault((method, outcome.status.name), CallStats())
            stats.count += 1
            stats.seconds += seconds
            log.debug("call", method=method, subject=subject, status=outcome.status.name, ms=round(seconds * 1000, 1))
