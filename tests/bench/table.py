"""Figures of a benchmark run: each with its spread, its ratio to a base measured in the same run, and its target."""

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Median, least and greatest of N values in `unit`."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def told(self) -> str:
        if len(self.values) == 1:
            return f"{self.median:.4g} {self.unit}"
        return f"{self.median:.4g} {self.unit} ({min(self.values):.4g} to {max(self.values):.4g})"

    def to_json(self) -> dict[str, Any]:
        return {"unit": self.unit, "median": self.median, "min": min(self.values), "max": max(self.values),
                "values": list(self.values)}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound on a row's ratio, or, with `of_ratio` off, on its median in the row's own unit."""

    at_most: float | None = None
    at_least: float | None = None
    of_ratio: bool = True

    def met(self, value: float) -> bool:
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)

    def told(self, base_name: str, unit: str) -> str:
        of = f" x {base_name}" if self.of_ratio else f" {unit}"
        bounds = [f"<= {self.at_most:.3g}{of}" if self.at_most is not None else ""]
        bounds.append(f">= {self.at_least:.3g}{of}" if self.at_least is not None else "")
        return " and ".join(filter(None, bounds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of ours. `base` is the same measured without us, or what it is held against."""

    workload: str
    what: str
    ours: Figure
    base: Figure | None = None
    base_name: str = "overlayfs"
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        """Ours over the base: below 1 is less."""
        if self.base is None or not self.base.median:
            return None
        return self.ours.median / self.base.median

    @property
    def met(self) -> bool | None:
        """None: there is no target, or nothing to hold it against."""
        value = self.ratio if self.target is not None and self.target.of_ratio else self.ours.median
        return None if self.target is None or value is None else self.target.met(value)

    def to_json(self) -> dict[str, Any]:
        return {
            "workload": self.workload,
            "what": self.what,
            "ours": self.ours.to_json(),
            "base": self.base.to_json() if self.base else None,
            "base_name": self.base_name if self.base else None,
            "ratio": self.ratio,
            "target": self.target.told(self.base_name, self.ours.unit) if self.target else None,
            "met": self.met,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where the figures are from; figures of different machines are not compared."""

    kernel: str = field(default_factory=platform.release)
    python: str = field(default_factory=platform.python_version)
    cores: int = 0


_MET = {True: "[green]met[/]", False: "[red]not met[/]", None: ""}


@dataclass(slots=True)
class Report:
    """All rows of one run, and for each workload the values they were made from."""

    machine: Machine
    runs: int
    rows: list[Row] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def table(self) -> Table:
        caption = f"Linux {self.machine.kernel}, {self.machine.cores} cores; median of {self.runs} (least to greatest)"
        table = Table(title="fastpull benchmarks", caption=caption)
        for title in ("workload", "figure", "base", "measured", "ratio", "target", ""):
            table.add_column(title, justify="right" if title == "ratio" else "left")
        for row in self.rows:
            base = f"{row.base_name}: {row.base.told()}" if row.base else ""
            ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
            target = row.target.told(row.base_name, row.ours.unit) if row.target else ""
            table.add_row(row.workload, row.what, base, row.ours.told(), ratio, target, _MET[row.met])
        return table

    def write(self, path: Path) -> None:
        document = {
            "machine": asdict(self.machine),
            "runs": self.runs,
            "rows": [row.to_json() for row in self.rows],
            "details": self.details,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")


def figure(values: Sequence[float], unit: str, *, scale: float = 1) -> Figure:
    """A figure from raw values divided by `scale`."""
    return Figure(values=tuple(value / scale for value in values), unit=unit)
