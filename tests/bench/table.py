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
class Row:
    """One figure of ours. `base` is the same measured without us; `target` says what is aimed at, in words."""

    workload: str
    what: str
    ours: Figure
    base: Figure | None = None
    base_name: str = "overlayfs"
    target: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the base: below 1 is less."""
        if self.base is None or not self.base.median:
            return None
        return self.ours.median / self.base.median

    def to_json(self) -> dict[str, Any]:
        return {
            "workload": self.workload,
            "what": self.what,
            "ours": self.ours.to_json(),
            "base": self.base.to_json() if self.base else None,
            "base_name": self.base_name if self.base else None,
            "ratio": self.ratio,
            "target": self.target,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where the figures are from; figures of different machines are not compared."""

    kernel: str = field(default_factory=platform.release)
    python: str = field(default_factory=platform.python_version)
    cores: int = 0


@dataclass(slots=True)
class Report:
    """All rows of one run."""

    machine: Machine
    rows: list[Row] = field(default_factory=list)

    def table(self) -> Table:
        caption = f"Linux {self.machine.kernel}, {self.machine.cores} cores; median (least to greatest)"
        table = Table(title="fastpull benchmarks", caption=caption)
        for title in ("workload", "figure", "base", "fastpull", "ratio", "target"):
            table.add_column(title, justify="right" if title == "ratio" else "left")
        for row in self.rows:
            base = f"{row.base_name}: {row.base.told()}" if row.base else ""
            ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
            table.add_row(row.workload, row.what, base, row.ours.told(), ratio, row.target)
        return table

    def write(self, path: Path) -> None:
        document = {"machine": asdict(self.machine), "rows": [row.to_json() for row in self.rows]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n")


def figure(values: Sequence[float], unit: str, *, scale: float = 1) -> Figure:
    """A figure from raw values divided by `scale`."""
    return Figure(values=tuple(value / scale for value in values), unit=unit)
