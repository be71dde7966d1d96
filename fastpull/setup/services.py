"""Starting and restarting what setup changed: through systemd, or through the owner's own command."""

import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from fastpull.doctor.services import running_version
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.setup.unit import UNIT_NAME

_COMMAND_TIMEOUT_S = 120.0
_ANSWER_TIMEOUT_S = 30.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """How services are handled here. `restart_command` replaces systemctl where there is no systemd."""

    restart_command: str | None
    containerd_address: Path

    @property
    def systemd(self) -> bool:
        return self.restart_command is None

    def available(self) -> bool:
        """Whether services can be handled at all: systemd is running, or a command was given."""
        return not self.systemd or (Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None)

    def start_daemon(self) -> None:
        """Enable the unit and (re)start the daemon with it; containers keep running over it."""
        if self.systemd:
            _systemctl("daemon-reload")
            _systemctl("enable", UNIT_NAME)
            _systemctl("restart", UNIT_NAME)

    def stop_daemon(self) -> None:
        """Stop and disable the unit; a unit that is not there is fine."""
        if self.systemd:
            _run(["systemctl", "disable", "--now", UNIT_NAME], must_work=False)
            _systemctl("daemon-reload")

    def restart_containerd(self) -> None:
        """Restart containerd (containers keep running) and wait until it answers.

        Raises:
            Failure: it does not come back.
        """
        if self.systemd:
            _systemctl("restart", "containerd.service")
        else:
            assert self.restart_command is not None
            _run(["/bin/sh", "-c", self.restart_command])
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        while True:
            try:
                running_version(self.containerd_address)
                return
            except grpc.RpcError:
                if time.monotonic() > deadline:
                    message = f"containerd does not answer at {self.containerd_address} after its restart"
                    raise Failure(message, code=ExitCode.UNAVAILABLE) from None
            time.sleep(_POLL_S)


def _systemctl(*arguments: str) -> None:
    _run(["systemctl", *arguments])


def _run(argv: Sequence[str], *, must_work: bool = True) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Failure(f"{argv[0]}: {problem}", code=ExitCode.COMMAND_FAILED) from None
    if done.returncode != 0 and must_work:
        said = (done.stderr or done.stdout).strip().splitlines()
        message = f"{' '.join(argv)}: {said[-1] if said else f'status {done.returncode}'}"
        raise Failure(message, code=ExitCode.COMMAND_FAILED)
