"""The daemon as a process of its own, for machines without systemd: started, found again, and ended."""

import os
import pwd
import resource
import select
import signal
import socket
import struct
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure

_START_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 20.0
"""Longer than the daemon gives its calls at the end (fastpull.daemon.GRACE_S)."""
_POLL_S = 0.05
_PEER = struct.Struct("3i")  # struct ucred, unix(7)
_OPEN_FILES: Final = 1 << 20
_OOM_SCORE: Final = "-999"


def listener(path: Path) -> int | None:
    """The process that listens on a unix socket; None where nobody does.

    unix(7), SO_PEERCRED: of the moment of its listen(2), whoever has started it and whatever a file says.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return None
        pid, _, _ = _PEER.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(pid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """`program --config config` in a session of its own; what it says goes to `log`, its id to `pid_file`.

    `pid_file` lies in the daemon's run directory: like the process, it does not outlive a boot.
    """

    program: str
    config: Path
    socket: Path
    log: Path
    pid_file: Path

    @property
    def command(self) -> list[str]:
        return [self.program, "--config", str(self.config)]

    def start(self) -> str:
        """Start it, or again with what the files now say; mounts and containers go on meanwhile.

        Raises:
            Failure: it does not come up, or somebody else's answers on the socket.
        """
        other = self.foreign()
        if other is not None:
            message = f"fastpull-snapshotter (process {other}) answers at {self.socket} and was not started by setup"
            raise Failure(message, hint="stop it first, or use --no-service", code=ExitCode.NOT_PERMITTED)
        self.stop()
        return self._spawn()

    def ensure(self) -> str | None:
        """Start it unless it answers already."""
        return self.start() if listener(self.socket) is None else None

    def stop(self) -> None:
        """End it. The keeper and the mounts stay (see fetcher.planes.teardown). Idempotent."""
        pid = self.pid()
        if pid is not None:
            end(pid)
        self.pid_file.unlink(missing_ok=True)

    def forget(self) -> None:
        """Nothing to do."""

    def foreign(self) -> int | None:
        """The process that answers on the socket if it is not the one that was started here."""
        answering = listener(self.socket)
        return None if answering == self.pid() else answering

    def pid(self) -> int | None:
        """The process that was started here, if it still runs: its id may by now be another program's."""
        try:
            pid = int(self.pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self.config) in words else None

    def _spawn(self) -> str:
        self.pid_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as sink:
            begins = sink.tell()
            child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd="/",
                # As the systemd unit does: root's logins to registries, whoever's sudo this was.
                env={**os.environ, "HOME": pwd.getpwuid(0).pw_dir},
                start_new_session=True,
            )
        self.pid_file.write_text(f"{child.pid}\n")
        _raise_limits(child.pid)
        self._wait(child, begins)
        return f"started fastpull-snapshotter (process {child.pid}, log {self.log})"

    def _wait(self, child: "subprocess.Popen[bytes]", begins: int) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while listener(self.socket) != child.pid:
            ended = child.poll() is not None
            if ended or time.monotonic() > deadline:
                self.stop()
                what = f"ended with status {child.returncode}" if ended else f"does not answer at {self.socket}"
                said = self.log.read_bytes()[begins:].decode(errors="replace").strip().splitlines()
                message = f"fastpull-snapshotter {what}: {said[-1] if said else 'it said nothing'}"
                raise Failure(message, hint=f"{self.log} has all it said", code=ExitCode.UNAVAILABLE)
            time.sleep(_POLL_S)


def _raise_limits(pid: int) -> None:
    """What the systemd unit gives it, as far as this machine (which may be a container) lets us."""
    with suppress(OSError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(_OOM_SCORE)


def end(pid: int) -> None:
    """SIGTERM, and SIGKILL if that does not help in time. Returns when the process has ended."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(handle, number)
                if select.select([handle], [], [], _END_TIMEOUT_S)[0]:
                    return
        finally:
            os.close(handle)
