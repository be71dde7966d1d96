"""What the daemon tells about itself, over HTTP on a unix socket: `/v1/status` (JSON) and `/metrics` (Prometheus)."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fetcher.model import FetcherStatus
from snapshotter.calls import CallLog
from snapshotter.core import Snapshotter
from snapshotter.model import Info

StatusSource = Callable[[], FetcherStatus]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Admin:
    """The handlers. `fetcher_status` is None where there are no lazy layers. `routes` are added to those here."""

    def __init__(
        self,
        core: Snapshotter,
        calls: CallLog,
        fetcher_status: StatusSource | None,
        routes: Iterable[web.RouteDef] = (),
    ) -> None:
        self._routes = routes
        self._core = core
        self._calls = calls
        self._fetcher_status = fetcher_status

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/v1/status", self.status)
        application.router.add_get("/metrics", self.metrics)
        application.router.add_routes(self._routes)
        return application

    async def status(self, request: web.Request) -> web.Response:
        document = {
            "pid": os.getpid(),
            "fetcher": None if self._fetcher_status is None else dataclasses.asdict(self._fetcher_status()),
            "snapshots": [_snapshot(info) for info in await self._core.walk()],
        }
        return web.json_response(document, dumps=_dumps)

    async def metrics(self, request: web.Request) -> web.Response:
        status = None if self._fetcher_status is None else self._fetcher_status()
        registry = CollectorRegistry()
        snapshots = _snapshot_metrics(await self._core.walk())
        registry.register(_Families([*snapshots, *_call_metrics(self._calls), *_fetcher_metrics(status)]))
        ProcessCollector(registry=registry)
        return web.Response(body=generate_latest(registry), headers={"Content-Type": METRICS_TYPE})


@asynccontextmanager
async def serve(admin: Admin, socket: Path) -> AsyncIterator[None]:
    """Answer on `socket` (mode 0600) while the context is open. A socket file that is there already is replaced."""
    runner = web.AppRunner(admin.application(), access_log=None)
    await runner.setup()
    try:
        unlink(socket)
        mask = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(socket)).start()
        finally:
            os.umask(mask)
        yield
    finally:
        await runner.cleanup()
        unlink(socket)


def unlink(path: Path) -> None:
    """Remove a socket file that may be gone; too quick to be worth a thread."""
    path.unlink(missing_ok=True)


def _snapshot(info: Info) -> dict[str, Any]:
    return {**dataclasses.asdict(info), "kind": info.kind.name.lower(), "labels": dict(info.labels)}


def _dumps(document: Any) -> str:
    return json.dumps(document, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON does not know by itself: paths and mappings of our dataclasses."""
    return dict(value) if hasattr(value, "keys") else str(value)


class _Families(Collector):
    """Metrics that were computed already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _snapshot_metrics(infos: Iterable[Info]) -> Iterator[Metric]:
    family = GaugeMetricFamily("fastpull_snapshots", "Snapshots by kind.", labels=["kind"])
    counts = Counter(info.kind.name.lower() for info in infos)
    for kind in ("view", "active", "committed"):
        family.add_metric([kind], counts[kind])
    yield family


def _call_metrics(calls: CallLog) -> Iterator[Metric]:
    labels = ["method", "status"]
    counts = CounterMetricFamily("fastpull_calls", "Calls of the snapshots service.", labels=labels)
    seconds = CounterMetricFamily("fastpull_call_seconds", "How long they took, summed.", labels=labels)
    for key, stats in calls.stats.items():
        counts.add_metric(key, stats.count)
        seconds.add_metric(key, stats.seconds)
    yield from (counts, seconds)


def _fetcher_metrics(status: FetcherStatus | None) -> Iterator[Metric]:
    if status is None:
        return
    fetched = CounterMetricFamily(
        "fastpull_fetched_bytes", "Compressed bytes received, by why they were asked for.", labels=["priority"]
    )
    for priority, count in status.fetched_bytes.items():
        fetched.add_metric([str(priority)], count)
    yield fetched
    yield CounterMetricFamily("fastpull_faults", "Reads that had to wait for the network.", value=status.faults)
    yield CounterMetricFamily("fastpull_fault_wait_seconds", "How long they waited, summed.", value=status.fault_wait_s)
    yield CounterMetricFamily("fastpull_events", "Events from the kernel.", value=status.events)
    yield GaugeMetricFamily("fastpull_receive_bytes_per_second", "Rate now.", value=status.rate_bytes_per_s)
    yield from _layer_metrics(status)


def _layer_metrics(status: FetcherStatus) -> Iterator[Metric]:
    states = GaugeMetricFamily("fastpull_layers", "Layers on the node by state.", labels=["state"])
    for state, count in Counter(str(layer.state) for layer in status.layers).items():
        states.add_metric([state], count)
    yield states
    mounted = sum(layer.mounted for layer in status.layers)
    present = sum(layer.present_bytes for layer in status.layers)
    waiting = sum(layer.waiting for layer in status.layers)
    yield GaugeMetricFamily("fastpull_layers_mounted", "Layers that are mounted.", value=mounted)
    yield GaugeMetricFamily("fastpull_present_bytes", "Uncompressed bytes of layers that are local.", value=present)
    yield GaugeMetricFamily("fastpull_waiting_reads", "Reads that wait now.", value=waiting)
