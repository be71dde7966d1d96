"""What the command line runs: a workload gives rows, and the values behind them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.bench.setting import Setting
from tests.bench.table import Row
from tests.bench.trials import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`trials` are drawn, against time; `values` go into the JSON beside them."""

    rows: list[Row]
    trials: tuple[Trial, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


class Measured(Protocol):
    """A workload. `letter` is its short name, `modes` are the ways of starting it that can be chosen."""

    @property
    def letter(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def modes(self) -> tuple[str, ...]: ...

    def run(self, setting: Setting) -> Outcome: ...
