"""What a measured start is, how several are summed up, and how they are written down. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

MILESTONES: dict[str, str] = {
    "container_created_time": "Time to Container Created",
    "container_start_time": "Time to Container Start",
    "readiness_time": "Time to Readiness",
    "completion_time": "Time to Completion",
    "total_elapsed_time": "Total Elapsed Time",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured start. All times are seconds since the request; None where the milestone was not reached."""

    container_id: str
    container_created_time: float | None = None
    container_start_time: float | None = None
    readiness_time: float | None = None
    completion_time: float | None = None
    total_elapsed_time: float | None = None
    exit_status: int = 0

    def metrics(self) -> dict[str, float | None]:
        """The milestones by name."""
        return {name: _rounded(getattr(self, name)) for name in MILESTONES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Median, least and greatest of one milestone over the runs that reached it; seconds."""

    median: float
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """The runs of one image in one mode."""

    image: str
    mode: str
    benchmark_mode: str
    cold: bool
    samples: tuple[Sample, ...]

    def statistics(self) -> dict[str, Statistics]:
        """Statistics of every milestone that any run reached."""
        reached = {name: _reached(self.samples, name) for name in MILESTONES}
        return {name: _summed_up(values) for name, values in reached.items() if values}

    def to_json(self, finished_at: datetime | None = None) -> dict[str, Any]:
        """The document of `--output-json`. `metrics` are those of the run, or the medians of several."""
        when = finished_at or datetime.now(UTC)
        statistics_ = self.statistics()
        return {
            "image": self.image,
            "mode": self.mode,
            "benchmark_mode": self.benchmark_mode,
            "cold": self.cold,
            "container_id": self.samples[0].container_id if self.samples else "",
            "metrics": {
                name: _rounded(statistics_[name].median) if name in statistics_ else None for name in MILESTONES
            },
            "runs": [_run_json(sample) for sample in self.samples],
            "statistics": {name: _statistics_json(one) for name, one in statistics_.items()},
            "timestamp": when.isoformat(timespec="seconds"),
        }

    def summary(self) -> str:
        """The block that is printed after the runs."""
        rule = "=" * 50
        name = "NORMAL" if self.mode == "normal" else "FASTPULL"
        lines = [
            f"{MILESTONES[key] + ':':<27} {_told(one, len(self.samples))}" for key, one in self.statistics().items()
        ]
        return "\n".join([rule, f"{name} BENCHMARK SUMMARY", rule, *lines, rule])


def _told(one: Statistics, runs: int) -> str:
    if runs == 1:
        return f"{one.median:.2f}s"
    return f"{one.median:.2f}s  (median of {runs}; {one.minimum:.2f}s to {one.maximum:.2f}s)"


def _reached(samples: Sequence[Sample], name: str) -> list[float]:
    return [value for value in (getattr(sample, name) for sample in samples) if value is not None]


def _summed_up(values: Sequence[float]) -> Statistics:
    return Statistics(median=statistics.median(values), minimum=min(values), maximum=max(values))


def _statistics_json(one: Statistics) -> dict[str, float | None]:
    return {"median": _rounded(one.median), "min": _rounded(one.minimum), "max": _rounded(one.maximum)}


def _run_json(sample: Sample) -> dict[str, Any]:
    return {"container_id": sample.container_id, "metrics": sample.metrics(), "exit_status": sample.exit_status}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
