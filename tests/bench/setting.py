"""What the command line asks for."""

from dataclasses import dataclass, field
from pathlib import Path

from fastpull.demo.image import Say
from fastpull.lab.network import LinkShape

GIGABIT = 1_000_000_000
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One run. `modes` limits the ways of starting (none: all that a workload has); `cache` keeps images."""

    cache: Path
    runs: int
    say: Say
    shape: LinkShape = field(default_factory=lambda: LinkShape(rate_bits_s=GIGABIT, rtt_ms=5))
    modes: frozenset[str] = frozenset()
    steady: bool = True
    weights_bytes: int = 4 << 30
    keep: bool = False

    def wants(self, mode: str) -> bool:
        return not self.modes or mode in self.modes
