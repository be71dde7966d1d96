"""What a process costs: memory and CPU time, from /proc (proc(5): statm is in pages, stat's times in ticks)."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one process and its living children, added up. `peak_rss_bytes` is each one's own high-water mark."""

    rss_bytes: int = 0
    peak_rss_bytes: int = 0
    cpu_s: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            rss_bytes=self.rss_bytes + other.rss_bytes,
            peak_rss_bytes=self.peak_rss_bytes + other.peak_rss_bytes,
            cpu_s=self.cpu_s + other.cpu_s,
        )


def cost_of(pid: int) -> Cost:
    """The cost of `pid` with its children so far; nothing for a process that is gone."""
    total = _own_cost(pid)
    for child in children(pid):
        total += cost_of(child)
    return total


def _own_cost(pid: int) -> Cost:
    with contextlib.suppress(OSError):
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return Cost(
            rss_bytes=_kib(status.get("VmRSS", "0 kB")),
            peak_rss_bytes=_kib(status.get("VmHWM", "0 kB")),
            # Fields 14 to 17: user and system time, own and of children that were waited for.
            cpu_s=sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_S,
        )
    return Cost()


def _kib(text: str) -> int:
    return int(text.split()[0]) * _KIB


def children(pid: int) -> list[int]:
    """Ids of the living children of all threads of `pid`."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in thread.read_text().split()]
    return found
