"""Starts, one after another: each way of starting in its turn, each from nothing; and starts with everything local."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from fastpull.cold import drop_page_cache
from fastpull.demo.bench import Bench, Host, Mode, Node, Observed, Workload
from fastpull.demo.image import Say
from fastpull.demo.results import ColdStart
from fastpull.lab.process import wait_until
from tests.bench import rivals
from tests.bench.admin import ask
from tests.bench.prepare import full_rate

MB = 1e6
_COMPLETE_LIMIT_S = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One start. What the daemon tells is as of the moment just after the container was removed."""

    mode: str
    start: ColdStart
    cpu_to_ready_s: float
    faults: int = 0
    fault_wait_s: float = 0
    events: int = 0
    fetched: Mapping[str, int] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        own = {name: float(getattr(self, name)) for name in ("cpu_to_ready_s", "faults", "fault_wait_s", "events")}
        return {**self.start.metrics(), **own}

    def told(self) -> str:
        start = self.start
        text = (
            f"{self.mode:>22}: started {start.container_start_s:6.2f} s, ready {start.ready_s:6.2f} s with "
            f"{start.bytes_to_ready / MB:6.0f} MB, all {start.bytes_total / MB:6.0f} MB at {start.complete_s:6.2f} s"
        )
        # overlayfs needs no daemon; ours is there and does next to nothing.
        if self.cpu_to_ready_s >= 0.05:
            text += f"; CPU {self.cpu_to_ready_s:.1f} s"
        if self.events or self.faults:
            text += f", {self.faults} waits of {self.fault_wait_s:.1f} s in all"
        return text

    def to_json(self) -> dict[str, Any]:
        curve = [[round(time_s, 3), count] for time_s, count in self.start.curve]
        return {"mode": self.mode, **self.metrics(), "fetched": dict(self.fetched), "curve": _thinned(curve)}


def _thinned(curve: list[Any], most: int = 600) -> list[Any]:
    """Not more points than a picture has room for; the last one stays."""
    step = max(1, len(curve) // most)
    return curve[:-1:step] + curve[-1:]


def trial(host: Host, mode: Mode, seen: Observed) -> Trial:
    """A start with what fastpull's daemon says of it."""
    fetcher = (ask(host.daemon.run_dir, "/v1/status")["fetcher"] if isinstance(host, Node) else None) or {}
    return Trial(
        mode=mode.name,
        start=seen.start,
        cpu_to_ready_s=seen.cpu_to_ready_s,
        faults=fetcher.get("faults", 0),
        fault_wait_s=fetcher.get("fault_wait_s", 0),
        events=fetcher.get("events", 0),
        fetched=fetcher.get("fetched_bytes", {}),
    )


def in_turn(
    bench: Bench, modes: Sequence[Mode], workload: Workload, runs: int, say: Say, local_modes: Sequence[Mode] = ()
) -> Iterator[Trial]:
    """Each mode `runs` times, so that what drifts on the machine touches all of them alike.

    `modes` start from nothing, `local_modes` with everything local, which the others are held against.
    """
    with ExitStack() as stack:
        with full_rate(bench) if local_modes else nullcontext():
            nodes = [(mode, stack.enter_context(_complete(bench, mode, workload))) for mode in local_modes]
        for _ in range(runs):
            for mode in modes:
                yield _from_nothing(bench, mode, workload, say)
            for mode, node in nodes:
                yield from _locally(node, mode, workload, say)


def _from_nothing(bench: Bench, mode: Mode, workload: Workload, say: Say) -> Trial:
    with rivals.host(bench, mode) as host:
        bench.make_cold()
        result = trial(host, mode, host.start(mode, workload))
    say(result.told())
    return result


@contextmanager
def _complete(bench: Bench, mode: Mode, workload: Workload) -> Iterator[Node]:
    """A node that has the image on its disk in full, for as long as the others come and go."""
    with bench.node(mode) as node:
        node.start(mode, workload)
        wait_complete(node)
        yield node


def _locally(node: Node, mode: Mode, workload: Workload, say: Say) -> Iterator[Trial]:
    """Page cache dropped ("local, cold"), and right after that ("local, warm")."""
    drop_page_cache()
    for state in ("cold", "warm"):
        named = replace(mode, name=f"{mode.name} local, {state}")
        result = trial(node, named, node.start(named, workload))
        say(result.told())
        yield result


def wait_complete(node: Node) -> None:
    """Until every layer is local and its diff id has been checked: from then on its reads raise no events."""

    def complete() -> bool:
        fetcher = ask(node.daemon.run_dir, "/v1/status")["fetcher"]
        return all(layer["state"] == "complete" for layer in fetcher["layers"])

    wait_until(complete, what="every layer", timeout_s=_COMPLETE_LIMIT_S)
