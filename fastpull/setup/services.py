"""Who runs the daemon, and how containerd is restarted: by systemd, by setup itself, or by the machine's owner."""

import shlex
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from fastpull.containerd_api import channel, in_namespace
from fastpull.doctor.services import known_snapshotter, running_version
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.service_hints import INIT_SCRIPT, containerd_log
from fastpull.setup.background import listener
from fastpull.setup.unit import UNIT_NAME
from snapshotter._pb import snapshots_pb2, snapshots_pb2_grpc

_COMMAND_TIMEOUT_S = 120.0
_ANSWER_TIMEOUT_S = 30.0
_REDIAL_S = 6.0
_POLL_S = 0.1


class DaemonService(Protocol):
    """Who runs the daemon."""

    @property
    def socket(self) -> Path:
        """Where it listens."""

    @property
    def command(self) -> Sequence[str]:
        """How it is started by hand."""

    def start(self) -> str | None:
        """(Re)start it with what the files now say; what to tell, None where it is the owner's to start and is not."""

    def ensure(self) -> str | None:
        """The same for a daemon whose files did not change: it is left alone if it runs."""

    def stop(self) -> None:
        """End it, if it was started here, for good. Idempotent."""

    def forget(self) -> None:
        """Its files were put back: whoever has read them reads again."""

    def foreign(self) -> int | None:
        """The process that answers on the socket though it was not started here, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The systemd unit."""

    command: Sequence[str]
    socket: Path

    def start(self) -> str:
        """Enable the unit and (re)start the daemon with it; containers keep running over it."""
        _systemctl("daemon-reload")
        _systemctl("enable", UNIT_NAME)
        _systemctl("restart", UNIT_NAME)
        return f"{UNIT_NAME} runs"

    def ensure(self) -> None:
        _systemctl("start", UNIT_NAME)

    def stop(self) -> None:
        """Stop and disable the unit, while its file is still there; a unit that is not there is fine."""
        run_command(["systemctl", "disable", "--now", UNIT_NAME], must_work=False)

    def forget(self) -> None:
        _systemctl("daemon-reload")

    def foreign(self) -> int | None:
        answering = listener(self.socket)
        words = ["systemctl", "show", "--property=MainPID", "--value", UNIT_NAME]
        said = run_command(words, must_work=False)
        return None if said == str(answering) else answering


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSupervisor:
    """The owner starts it (`--no-service`)."""

    command: Sequence[str]
    socket: Path

    def start(self) -> str | None:
        pid = listener(self.socket)
        return None if pid is None else f"fastpull-snapshotter answers (process {pid})"

    def ensure(self) -> str | None:
        return self.start()

    def stop(self) -> None:
        """Never: its supervisor would start it again."""

    def forget(self) -> None:
        """Nothing to do."""

    def foreign(self) -> int | None:
        return listener(self.socket)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The daemon and containerd. `restart` is None where only the owner knows how containerd is restarted."""

    daemon: DaemonService
    restart: Sequence[str] | None
    containerd_address: Path
    snapshotter: str

    def bring_up(self, *, files_changed: bool, containerd_changed: bool) -> tuple[list[str], list[str]]:
        """Have both run with what the files say: what was done, and what is left for the owner to do.

        Raises:
            Failure: one of them does not come up.
        """
        told = self.daemon.start() if files_changed else self.daemon.ensure()
        done = [told] if told else []
        left = [] if listener(self.daemon.socket) is not None else [f"start {shlex.join(self.daemon.command)}"]
        if containerd_changed or not self.containerd_knows():
            if left or self.restart is None:
                left.append("restart containerd")
            else:
                self.restart_containerd()
                done.append("containerd was restarted with it")
        if not left:
            self._wait_for_the_snapshotter()
        return done, left

    def _wait_for_the_snapshotter(self) -> None:
        """containerd dials a socket that refused it again after up to 3 s; what goes on for longer is told later."""
        request = snapshots_pb2.ListSnapshotsRequest(snapshotter=self.snapshotter)
        deadline = time.monotonic() + _REDIAL_S
        with channel(str(self.containerd_address)) as connected:
            stub = snapshots_pb2_grpc.SnapshotsStub(connected)
            while time.monotonic() < deadline:
                with suppress(grpc.RpcError):
                    list(stub.List(request, timeout=_REDIAL_S, metadata=in_namespace("default")))
                    return
                time.sleep(_POLL_S)

    def containerd_knows(self) -> bool:
        """Whether the containerd that runs has our snapshotter in its configuration."""
        try:
            return known_snapshotter(self.containerd_address, self.snapshotter) is not None
        except grpc.RpcError:
            return False

    def restart_containerd(self) -> bool:
        """Restart containerd (containers keep running) and wait until it answers; False where nobody knows how.

        Raises:
            Failure: it does not come back.
        """
        if self.restart is None:
            return False
        run_command(self.restart)
        self._wait()
        return True

    def _wait(self) -> None:
        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        while True:
            try:
                running_version(self.containerd_address)
                return
            except grpc.RpcError:
                if time.monotonic() > deadline:
                    message = f"containerd does not answer at {self.containerd_address} after its restart"
                    raise Failure(message, hint=containerd_log(), code=ExitCode.UNAVAILABLE) from None
            time.sleep(_POLL_S)


def restart_words(command: str | None, *, systemd: bool) -> Sequence[str] | None:
    """How containerd is restarted here: as the owner says, by systemd, by its init script; None if in no way."""
    if command is not None:
        return ["/bin/sh", "-c", command] if command else None
    if systemd:
        return ["systemctl", "restart", "containerd.service"]
    return [str(INIT_SCRIPT), "restart"] if INIT_SCRIPT.exists() else None


def _systemctl(*arguments: str) -> None:
    run_command(["systemctl", *arguments])


def run_command(argv: Sequence[str], *, must_work: bool = True) -> str:
    """Run a command to its end and return what it said. Raises Failure."""
    # Into a file: what the command leaves running behind it may keep a pipe open for ever.
    with tempfile.TemporaryFile() as output:
        try:
            status = subprocess.call(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=_COMMAND_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise Failure(f"{argv[0]}: {problem}", code=ExitCode.COMMAND_FAILED) from None
        output.seek(0)
        said = output.read().decode(errors="replace").strip()
    if status != 0 and must_work:
        message = f"{' '.join(argv)}: {said.splitlines()[-1] if said else f'status {status}'}"
        raise Failure(message, code=ExitCode.COMMAND_FAILED)
    return said
