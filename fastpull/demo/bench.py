"""The demo's laboratory: a registry behind a slow link that stays, and for each start a fresh containerd and daemon."""

import asyncio
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastpull.benchmark import Start, Until, measure
from fastpull.cold import drop_page_cache
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedNerdctl(Nerdctl):
    """nerdctl that notes when a container was asked for, on the same clock as the traffic."""

    requested_s: list[float] = field(default_factory=list)

    def argv(self, *arguments: str, snapshotter: str | None = None) -> list[str]:
        if arguments[:1] == ("run",):
            self.requested_s.append(time.monotonic())
        return Nerdctl.argv(self, *arguments, snapshotter=snapshotter)


class Bench:
    """Images are pushed once; `cold_start` may be called any number of times."""

    def __init__(self, workspace: Workspace, link: ShapedLink, registry: Registry, say: Say) -> None:
        self.workspace = workspace
        self.link = link
        self.registry = registry
        self._say = say
        self._starts = 0

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
        self._starts += 1
        number = self._starts
        containerd_name, daemon_name = f"c{number}", f"f{number}"
        address = self.workspace.path / containerd_name / "c.sock"
        config = daemon_config(self.registry)
        try:
            with (
                Daemon(self.workspace, containerd_address=address, config=config, name=daemon_name) as daemon,
                self._containerd(containerd_name, daemon) as containerd,
            ):
                drop_page_cache()
                self.registry.warm()
                return self._watch(daemon, containerd, mode, workload)
        finally:
            if not self.workspace.keep:
                for name in (containerd_name, daemon_name):
                    shutil.rmtree(self.workspace.path / name, ignore_errors=True)

    def _containerd(self, name: str, daemon: Daemon) -> Containerd:
        return Containerd(
            self.workspace,
            self.release(),
            proxies={"fastpull": daemon.proxy},
            hosts_dir=self.registry.hosts_dir(),
            name=name,
        )

    def _watch(self, daemon: Daemon, containerd: Containerd, mode: Mode, workload: Workload) -> ColdStart:
        nerdctl = self._nerdctl(containerd)
        idle = cost_of(daemon.pid)
        start = _start(mode, workload, free_port())
        with Sampler(self.link.received_bytes) as sampler:
            try:
                sample = asyncio.run(measure(nerdctl, start))
            except Exception as problem:
                log = (containerd.dir / "nerdctl.log").read_text(errors="replace")[-2000:]
                raise LabError(f"{mode.name}: {problem}\n{log}") from problem
            if not sampler.wait_quiet(quiet_s=QUIET_S, timeout_s=READY_LIMIT_S):
                raise LabError(f"{mode.name}: the registry is still being read after {READY_LIMIT_S} s")
        return _evaluate(mode, sample, sampler.curve, nerdctl.requested_s[0], idle, cost_of(daemon.pid))

    def _nerdctl(self, containerd: Containerd) -> WatchedNerdctl:
        """nerdctl as `measure` calls it, its output in a file: containers' ids are no part of the demo."""
        binary, *options = containerd.nerdctl_argv()
        quiet = containerd.dir / "nerdctl.sh"
        environment = " ".join(f"{name}='{value}'" for name, value in containerd.client_env().items())
        log = containerd.dir / "nerdctl.log"
        quiet.write_text(f'#!/bin/sh\n{environment} exec {binary} "$@" >>{log} 2>&1\n')
        quiet.chmod(0o755)
        log.touch()
        return WatchedNerdctl(binary=quiet, options=tuple(options))


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
