"""The programs lazy loading needs: are they there, do they answer, do they know of each other?"""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from fastpull.containerd_api import channel, details
from fastpull.doctor.check import Check, fail, note, ok
from fastpull.doctor.config import Expected, config_checks
from fastpull.failures import Failure
from fastpull.nerdctl import find_nerdctl
from fastpull.service_hints import containerd_log, restart_containerd, start_containerd, start_daemon
from snapshotter._pb import (
    introspection_pb2,
    introspection_pb2_grpc,
    snapshots_pb2,
    snapshots_pb2_grpc,
    version_pb2_grpc,
)

_RPC_TIMEOUT_S = 5.0
_COMMAND_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where everything is."""

    containerd_address: Path
    containerd_config: Path
    expected: Expected
    environment: Mapping[str, str]


def service_checks(machine: Machine) -> list[Check]:
    """All checks of the services on this machine."""
    version, containerd = _containerd(machine)
    checks = [containerd]
    if version is not None:
        checks.append(_plugin(machine))
    return [*checks, *_configuration(machine, version), _nerdctl(machine), _daemon(machine.expected)]


def release_of(version: str) -> tuple[int, int]:
    """Major and minor of a version such as `v2.1.4` or `1.6.20~ds1`; (0, 0) where it is none."""
    match = re.match(r"v?(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def running_version(address: Path) -> str:
    """The version of the containerd that listens on `address`. Raises grpc.RpcError."""
    with channel(str(address)) as connected:
        return version_pb2_grpc.VersionStub(connected).Version(Empty(), timeout=_RPC_TIMEOUT_S).version


def _containerd(machine: Machine) -> tuple[str | None, Check]:
    address = machine.containerd_address
    if not address.exists():
        return None, fail("containerd", "running", f"there is no {address}", _start_containerd())
    try:
        version = running_version(address)
    except grpc.RpcError as problem:
        return None, fail("containerd", "running", f"{address}: {details(problem)}", _start_containerd())
    return version, ok("containerd", "running", f"{version} at {address}")


def _start_containerd() -> str:
    return f"{start_containerd()}, or name its socket with --containerd-address"


def known_snapshotter(address: Path, name: str) -> introspection_pb2.Plugin | None:
    """What the *running* containerd knows of a snapshotter: a changed file is nothing until a restart.

    Raises grpc.RpcError.
    """
    request = introspection_pb2.PluginsRequest(filters=[f'type=="io.containerd.snapshotter.v1",id=="{name}"'])
    with channel(str(address)) as connected:
        stub = introspection_pb2_grpc.IntrospectionStub(connected)
        found = stub.Plugins(request, timeout=_RPC_TIMEOUT_S).plugins
    return found[0] if found else None


def _plugin(machine: Machine) -> Check:
    name, wanted = "snapshotter", machine.expected.snapshotter
    try:
        found = known_snapshotter(machine.containerd_address, wanted)
    except grpc.RpcError as problem:
        return fail("containerd", name, f"cannot be asked: {details(problem)}", _start_containerd())
    if found is None:
        fix = f"sudo fastpull setup; if that was done: {restart_containerd()}"
        return fail("containerd", name, f"the running containerd does not know {wanted}", fix)
    if found.init_err.message:
        return fail("containerd", name, f"{wanted} did not start: {found.init_err.message}", containerd_log())
    return ok("containerd", name, f"the running containerd knows {wanted}")


def effective_config(path: Path, binary: str = "containerd") -> dict[str, Any]:
    """What containerd makes of a configuration file and everything it imports.

    Raises:
        Failure: containerd is not installed, or refuses the file.
    """
    found = shutil.which(binary)
    if found is None:
        raise Failure("the containerd program is not on PATH", hint="install containerd")
    argv = [found, "--config", str(path), "config", "dump"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Failure(f"containerd refuses {path}: {lines[-1] if lines else done.returncode}")
    return tomllib.loads(done.stdout)


def _configuration(machine: Machine, version: str | None) -> Sequence[Check]:
    if not machine.containerd_config.exists():
        why = f"there is no {machine.containerd_config}"
        return [fail("containerd config", "file", why, "sudo fastpull setup, or name it with --containerd-config")]
    try:
        config = effective_config(machine.containerd_config)
    except (Failure, ValueError, subprocess.TimeoutExpired) as problem:
        return [fail("containerd config", "file", str(problem), "mend the file; containerd will not start with it")]
    return config_checks(config, release_of(version or ""), machine.expected)


def _nerdctl(machine: Machine) -> Check:
    try:
        nerdctl = find_nerdctl(machine.environment)
        answer = nerdctl.output("--version", timeout_s=_COMMAND_TIMEOUT_S).strip()
    except Failure as problem:
        return note("nerdctl", "installed", problem.message, problem.hint or "install nerdctl 2.x")
    version = answer.rpartition(" ")[2]
    if release_of(version) < (2, 0):
        return note("nerdctl", "installed", f"{version} is old", "install nerdctl 2.x")
    return ok("nerdctl", "installed", f"{version} ({nerdctl.binary})")


def _daemon(expected: Expected) -> Check:
    """Whether the daemon itself answers, past containerd."""
    fix = start_daemon()
    if not expected.socket.exists():
        return fail("fastpull daemon", "running", f"there is no {expected.socket}", fix)
    with channel(str(expected.socket)) as connected:
        answers = snapshots_pb2_grpc.SnapshotsStub(connected).List(
            snapshots_pb2.ListSnapshotsRequest(), timeout=_RPC_TIMEOUT_S
        )
        try:
            count = sum(len(answer.info) for answer in answers)
        except grpc.RpcError as problem:
            return fail("fastpull daemon", "running", f"{expected.socket}: {details(problem)}", fix)
    return ok("fastpull daemon", "running", f"answers; {count} snapshots")
