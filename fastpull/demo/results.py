"""What the demo measured, summed up: medians and ratios, the printed table, the JSON document. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

MIB = 1 << 20
_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """One start from nothing. Times are seconds since the request, bytes those that came over the link."""

    mode: str
    container_start_s: float
    ready_s: float
    complete_s: float
    bytes_to_ready: int
    bytes_total: int
    daemon_idle_rss_bytes: int
    daemon_peak_rss_bytes: int
    daemon_cpu_s: float
    curve: tuple[tuple[float, int], ...]

    def metrics(self) -> dict[str, float]:
        return {name: float(getattr(self, name)) for name in (*METRICS, *COSTS)}


# What the demo shows; COSTS are in the JSON too.
METRICS = {
    "container_start_s": "container started",
    "ready_s": "ready (HTTP 200)",
    "complete_s": "last byte received",
    "bytes_to_ready": "fetched until ready",
    "bytes_total": "fetched in all",
}
COSTS = {
    "daemon_idle_rss_bytes": "daemon's memory before the start",
    "daemon_peak_rss_bytes": "daemon's memory at most",
    "daemon_cpu_s": "daemon's CPU time",
}


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of one metric over several starts."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All starts of one image behind one link."""

    image: str
    link: str
    starts: tuple[ColdStart, ...]

    @property
    def modes(self) -> list[str]:
        return list(dict.fromkeys(start.mode for start in self.starts))

    def spread(self, mode: str, metric: str) -> Spread:
        return Spread.of([start.metrics()[metric] for start in self.starts if start.mode == mode])

    def ratio(self, metric: str) -> float:
        """How many times less the last mode needs than the first (medians)."""
        first, last = self.modes[0], self.modes[-1]
        return self.spread(first, metric).median / max(self.spread(last, metric).median, 1e-9)

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "link": self.link,
            "summary": {
                mode: {name: _spread_json(self.spread(mode, name)) for name in (*METRICS, *COSTS)}
                for mode in self.modes
            },
            "ratios": {name: round(self.ratio(name), _DIGITS) for name in METRICS},
            "starts": [_start_json(start) for start in self.starts],
        }

    def table(self) -> Table:
        runs = len(self.starts) // max(len(self.modes), 1)
        caption = f"median of {runs} cold starts (least to greatest); {self.link}"
        table = Table(title=f"Benchmark summary: {self.image}", caption=caption)
        table.add_column("")
        for mode in self.modes:
            table.add_column(mode, justify="right")
        table.add_column("ratio", justify="right")
        for name, title in METRICS.items():
            cells = [told(name, self.spread(mode, name)) for mode in self.modes]
            table.add_row(title, *cells, f"{self.ratio(name):.1f}x")
        return table


def told(metric: str, spread: Spread) -> str:
    """A spread in the metric's own unit."""
    if metric.startswith("bytes"):
        return f"{spread.median / MIB:.0f} MiB"
    return f"{spread.median:.2f} s ({spread.least:.2f} to {spread.greatest:.2f})"


def _spread_json(spread: Spread) -> dict[str, float]:
    return {name: round(getattr(spread, name), _DIGITS) for name in ("median", "least", "greatest")}


def _start_json(start: ColdStart) -> dict[str, Any]:
    return {
        "mode": start.mode,
        **{name: round(value, _DIGITS) for name, value in start.metrics().items()},
        "curve": [[round(time_s, 3), received] for time_s, received in start.curve],
    }
