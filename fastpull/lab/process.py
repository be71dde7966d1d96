"""Child processes: services that live as long as a `with`, and commands whose failure says what they printed."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

POLL_S = 0.02


class LabError(RuntimeError):
    """A part of the laboratory did not do what it was started for; the message carries its last output."""


class CommandFailed(LabError):
    """A command ended with a non-zero status (`code`); `output` is what it printed, both streams."""

    def __init__(self, argv: Sequence[str], code: int, output: str) -> None:
        super().__init__(f"{' '.join(argv)}: exit {code}\n{output}")
        self.code = code
        self.output = output


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 120,
    stdin: bytes | None = None,
) -> str:
    """Run one command to its end and return its standard output.

    `env` is added to this process's environment. Raises `CommandFailed`, or `LabError` when the time is over.
    """
    command = [str(word) for word in argv]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(env or {})},
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        printed = (late.stdout or b"") + (late.stderr or b"")
        raise LabError(
            f"{' '.join(command)}: not done after {timeout_s} s\n{printed.decode(errors='replace')}"
        ) from late
    if done.returncode:
        raise CommandFailed(command, done.returncode, (done.stdout + done.stderr).decode(errors="replace"))
    return done.stdout.decode(errors="replace")


def wait_until(ready: Callable[[], bool], *, what: str, timeout_s: float = 20) -> None:
    """Poll `ready` until it is true. Raises `LabError` naming `what` when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not ready after {timeout_s} s")
        time.sleep(POLL_S)


class Service:
    """A child process in a session of its own, its output in a file; leaving the `with` ends it.

    The log is appended to, so that a service that is started again keeps its history.
    """

    def __init__(self, argv: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.argv = [str(word) for word in argv]
        self.log = log
        self._env = dict(env or {})
        self._child: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Service {Path(self.argv[0]).name} pid={self._child.pid if self._child else None}>"

    @property
    def pid(self) -> int:
        """Process id. Raises `LabError` when it was not started."""
        if self._child is None:
            raise LabError(f"{self.argv[0]}: not started")
        return self._child.pid

    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        if self.running():
            raise LabError(f"{self.argv[0]}: already running")
        with self.log.open("ab") as sink:
            self._child = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._env},
                start_new_session=True,
            )

    def wait_ready(self, ready: Callable[[], bool], *, timeout_s: float = 20) -> None:
        """Wait for `ready`; a process that ends before that raises `LabError` with the tail of its log."""

        def ready_or_dead() -> bool:
            return ready() or not self.running()

        try:
            wait_until(ready_or_dead, what=self.argv[0], timeout_s=timeout_s)
        except LabError as late:
            raise LabError(f"{late}\n{self.log_tail()}") from late
        if not self.running():
            raise LabError(f"{self.argv[0]}: ended with {self.returncode} before it was ready\n{self.log_tail()}")

    @property
    def returncode(self) -> int | None:
        return self._child.returncode if self._child else None

    def log_tail(self, size_bytes: int = 4000) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.log.read_bytes()[-size_bytes:].decode(errors="replace")
        return ""

    def kill(self) -> None:
        """SIGKILL the process alone (not its children) and wait for its end."""
        self._end(signal.SIGKILL, timeout_s=10)

    def stop(self, *, timeout_s: float = 10) -> None:
        """SIGTERM, and SIGKILL when that does not help in time. Nothing happens when it has already ended."""
        try:
            self._end(signal.SIGTERM, timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def _end(self, number: signal.Signals, *, timeout_s: float) -> None:
        if self._child is None:
            return
        if self._child.poll() is None:
            self._child.send_signal(number)
        self._child.wait(timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
