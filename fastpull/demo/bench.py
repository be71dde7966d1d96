"""The demo's laboratory: a registry behind a slow link that stays, and for each start a fresh containerd and daemon."""

import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from fastpull.benchmark import Start, Until, measure
from fastpull.cold import drop_page_cache
from fastpull.daemon_client import ask
from fastpull.demo.image import Say
from fastpull.demo.results import ColdStart
from fastpull.demo.traffic import Curve, Sampler
from fastpull.lab import tools
from fastpull.lab.containerd import Containerd
from fastpull.lab.cost import Cost, cost_of
from fastpull.lab.daemon import Daemon, daemon_config
from fastpull.lab.network import ShapedLink
from fastpull.lab.process import LabError, run
from fastpull.lab.registry import Registry, free_port
from fastpull.lab.tools import Release
from fastpull.lab.workspace import Workspace
from fastpull.nerdctl import Nerdctl
from fastpull.samples import Sample

CONVERT_TIMEOUT_S = 3600
READY_LIMIT_S = 900
# Every byte is local when nothing came for this long.
QUIET_S = 1.0
STATUS_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is started, and how it is known to be ready. `{port}` in the values stands for a free port."""

    name: str
    environment: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    endpoint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way of starting: which snapshotter, which reference."""

    name: str
    snapshotter: str
    reference: str
    daemon_config: str = ""
    """More of the daemon's TOML."""
    containerd_environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A start, and what is known of it besides: times of its beginning and end are on the monotonic clock."""

    start: ColdStart
    cpu_to_ready_s: float
    requested_s: float
    ended_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedNerdctl(Nerdctl):
    """nerdctl that notes when a container was asked for, on the same clock as the traffic."""

    requested_s: list[float] = field(default_factory=list)

    def argv(self, *arguments: str, snapshotter: str | None = None) -> list[str]:
        if arguments[:1] == ("run",):
            self.requested_s.append(time.monotonic())
        return Nerdctl.argv(self, *arguments, snapshotter=snapshotter)


class ProxyDaemon(Protocol):
    """The daemon of a snapshotter. `proxy` is its socket and its root."""

    @property
    def pid(self) -> int: ...
    @property
    def proxy(self) -> tuple[Path, Path]: ...


D = TypeVar("D", bound=ProxyDaemon)
# Of the name of a directory in the workspace, and of containerd's socket.
Launch = Callable[[str, Path], AbstractContextManager[D]]


class Bench:
    """Images are pushed once; `cold_start` and `node` may be called any number of times."""

    def __init__(self, workspace: Workspace, link: ShapedLink, registry: Registry, say: Say) -> None:
        self.workspace = workspace
        self.link = link
        self.registry = registry
        self._say = say
        self._nodes = 0

    def release(self) -> Release:
        """The containerd to use. Raises `LabError` when there is none."""
        found = tools.current_release() or tools.debian_release()
        if found is None:
            raise LabError("no containerd: `make tools` sets up what the demo needs")
        return found

    def push(self, source: str, name: str) -> str:
        """Copy an image ("oci:DIR:TAG" or a reference) to the registry as it is; returns its new reference."""
        reference = self.registry.reference(name)
        origin = source if source.startswith(("oci:", "oci-archive:", "docker-archive:")) else f"docker://{source}"
        skopeo = [str(tools.find("skopeo")), "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
        if source.startswith(f"{self.registry.host}/"):
            skopeo.append("--src-tls-verify=false")
        run([*skopeo, origin, f"docker://{reference}"], timeout_s=CONVERT_TIMEOUT_S)
        return reference

    def convert(self, source: str, name: str) -> str:
        """`fastpull convert` an image to the registry; returns its new reference."""
        reference = self.registry.reference(name)
        command = [str(Path(sys.executable).with_name("fastpull")), "convert", "--plain-http", self.registry.host]
        run(
            [*command, source, reference],
            timeout_s=CONVERT_TIMEOUT_S,
            env={"DOCKER_CONFIG": str(self.workspace.directory("docker"))},
        )
        return reference

    def cold_start(self, mode: Mode, workload: Workload) -> ColdStart:
        """Start once from nothing: new containerd and daemon, page cache dropped, the registry's blobs read into it."""
        with self.node(mode) as node:
            self.make_cold()
            return node.start(mode, workload).start

    @contextlib.contextmanager
    def node(self, mode: Mode) -> Iterator["Node"]:
        """A containerd and a daemon that know nothing yet, as `mode` wants them; then gone with what they stored."""
        config = daemon_config(self.registry) + mode.daemon_config

        def launch(name: str, containerd: Path) -> Daemon:
            return Daemon(self.workspace, containerd_address=containerd, config=config, name=name)

        with self._pair(mode, "fastpull", launch) as (daemon, containerd):
            yield Node(self.link, daemon, containerd)

    @contextlib.contextmanager
    def host(self, mode: Mode, launch: Launch[D]) -> Iterator["Host"]:
        """As `node`, with the daemon of the snapshotter that `mode` names."""
        with self._pair(mode, mode.snapshotter, launch) as (daemon, containerd):
            yield Host(self.link, daemon.pid, containerd)

    @contextlib.contextmanager
    def _pair(self, mode: Mode, snapshotter: str, launch: Launch[D]) -> Iterator[tuple[D, Containerd]]:
        self._nodes += 1
        names = f"c{self._nodes}", f"f{self._nodes}"
        address = self.workspace.path / names[0] / "c.sock"
        try:
            with (
                launch(names[1], address) as daemon,
                self._containerd(names[0], {snapshotter: daemon.proxy}, mode) as containerd,
            ):
                yield daemon, containerd
        finally:
            if not self.workspace.keep:
                for name in names:
                    shutil.rmtree(self.workspace.path / name, ignore_errors=True)

    def make_cold(self) -> None:
        """Nothing in the page cache but the registry's blobs: its disk is no part of what is measured."""
        drop_page_cache()
        self.registry.warm()

    def _containerd(self, name: str, proxies: Mapping[str, tuple[Path, Path]], mode: Mode) -> Containerd:
        # containerd's environment is the workspace's; what a mode adds must not stay for the next.
        plain = dict(self.workspace.env)
        self.workspace.env.update(mode.containerd_environment)
        try:
            return Containerd(
                self.workspace,
                self.release(),
                proxies=proxies,
                hosts_dir=self.registry.hosts_dir(),
                name=name,
            )
        finally:
            self.workspace.env.clear()
            self.workspace.env.update(plain)


class Host:
    """One containerd and one snapshotter's daemon, process `pid`; starts on it share what they store."""

    def __init__(self, link: ShapedLink, pid: int, containerd: Containerd) -> None:
        self.link = link
        self.pid = pid
        self.containerd = containerd

    def start(self, mode: Mode, workload: Workload) -> Observed:
        """Start the workload once, and wait until no more comes over the link. The container is gone then."""
        nerdctl = self._nerdctl()
        idle = cost_of(self.pid)
        wanted = _start(mode, workload, free_port())
        with Sampler(self.link.received_bytes) as traffic, Sampler(CpuCounter(self.pid)) as cpu:
            try:
                sample = asyncio.run(measure(nerdctl, wanted))
            except Exception as problem:
                log = (self.containerd.dir / "nerdctl.log").read_text(errors="replace")[-2000:]
                raise LabError(f"{mode.name}: {problem}\n{log}") from problem
            ended_s = time.monotonic()
            # Between a start whose reads were known before and the filling of the rest nothing comes for a while.
            self.wait_local()
            if not traffic.wait_quiet(quiet_s=QUIET_S, timeout_s=READY_LIMIT_S):
                raise LabError(f"{mode.name}: the registry is still being read after {READY_LIMIT_S} s")
        requested_s = nerdctl.requested_s[0]
        start = _evaluate(mode, sample, traffic.curve, requested_s, idle, cost_of(self.pid))
        cpu_s = (cpu.curve.at(requested_s + start.ready_s) - cpu.curve.at(requested_s)) / CpuCounter.UNITS_PER_S
        return Observed(start=start, cpu_to_ready_s=cpu_s, requested_s=requested_s, ended_s=ended_s)

    def wait_local(self) -> None:
        """Nothing: only fastpull's daemon tells when it has every byte."""

    def _nerdctl(self) -> WatchedNerdctl:
        """nerdctl as `measure` calls it, its output in a file: containers' ids are no part of the demo."""
        binary, *options = self.containerd.nerdctl_argv()
        quiet = self.containerd.dir / "nerdctl.sh"
        environment = " ".join(f"{name}='{value}'" for name, value in self.containerd.client_env().items())
        log = self.containerd.dir / "nerdctl.log"
        quiet.write_text(f'#!/bin/sh\n{environment} exec {binary} "$@" >>{log} 2>&1\n')
        quiet.chmod(0o755)
        log.touch()
        return WatchedNerdctl(binary=quiet, options=tuple(options))


class Node(Host):
    """A host of fastpull's."""

    def __init__(self, link: ShapedLink, daemon: Daemon, containerd: Containerd) -> None:
        super().__init__(link, daemon.pid, containerd)
        self.daemon = daemon

    def wait_local(self) -> None:
        """Until the daemon has all of every layer it knows. Raises `LabError` when the time is over."""
        deadline = time.monotonic() + READY_LIMIT_S
        while time.monotonic() < deadline:
            layers = asyncio.run(ask(self.daemon.run_dir / "admin.sock")).layers.values()
            if all(layer.present_bytes == layer.tar_bytes for layer in layers):
                return
            time.sleep(STATUS_PERIOD_S)
        raise LabError(f"not every byte is local after {READY_LIMIT_S} s")


class CpuCounter:
    """CPU time of a process and its children, for a `Sampler`; that asks more often than pays."""

    UNITS_PER_S = 1000
    _EVERY = 5

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._asked = 0
        self._last = 0

    def __call__(self) -> int:
        if self._asked % self._EVERY == 0:
            self._last = int(cost_of(self._pid).cpu_s * self.UNITS_PER_S)
        self._asked += 1
        return self._last


def _start(mode: Mode, workload: Workload, port: int) -> Start:
    flags = ["-d", "--net", "host"]
    for value in workload.environment:
        flags += ["-e", value.format(port=port)]
    return Start(
        image=mode.reference,
        snapshotter=mode.snapshotter,
        until=Until.READINESS if workload.endpoint else Until.COMPLETION,
        flags=tuple(flags),
        arguments=workload.arguments,
        readiness_endpoint=workload.endpoint.format(port=port) if workload.endpoint else None,
        limit_s=READY_LIMIT_S,
    )


def _evaluate(mode: Mode, sample: Sample, curve: Curve, requested_s: float, idle: Cost, after: Cost) -> ColdStart:
    ready_s = sample.readiness_time if sample.readiness_time is not None else sample.completion_time
    if ready_s is None or sample.container_start_time is None:
        raise LabError(f"{mode.name}: the container was never seen to start or to be ready")
    if sample.exit_status:
        raise LabError(f"{mode.name}: the container ended with status {sample.exit_status}")
    return ColdStart(
        mode=mode.name,
        container_start_s=sample.container_start_time,
        ready_s=ready_s,
        complete_s=max(curve.quiet_since() - requested_s, 0.0),
        bytes_to_ready=curve.at(requested_s + ready_s) - curve.at(requested_s),
        bytes_total=curve.bytes_[-1] - curve.bytes_[0] - curve.at(requested_s),
        daemon_idle_rss_bytes=idle.rss_bytes,
        daemon_peak_rss_bytes=after.peak_rss_bytes,
        daemon_cpu_s=after.cpu_s - idle.cpu_s,
        curve=tuple(curve.since(requested_s)),
    )


def in_turn(modes: Sequence[Mode], runs: int) -> list[Mode]:
    """Every mode `runs` times, in turn, so that what drifts on the machine touches all of them alike."""
    return [mode for _ in range(runs) for mode in modes]
