"""The daemon as a process: its locks, sockets and signals, and what it tells about itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastpull.lab.process import run, wait_until

pytestmark = [pytest.mark.root]

Daemon = subprocess.Popen[str]
START_S = 30


def command(root: Path, run_dir: Path, *extra: str) -> list[str]:
    flags = ["--root", str(root), "--run-dir", str(run_dir), "--data-plane", "none"]
    return [sys.executable, "-m", "fastpull.daemon", *flags, *extra]


@contextmanager
def started(top: Path, *extra: str, environment: dict[str, str] | None = None) -> Iterator[Daemon]:
    """A daemon that answers; it must end with 0 after SIGTERM, or have been killed by the test."""
    argv = command(top / "root", top / "run", *extra)
    env = {**os.environ, **(environment or {})}
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=env) as daemon:
        try:
            # The last of its sockets.
            wait_until(lambda: listening(top / "run" / "admin.sock"), what="the daemon", timeout_s=START_S)
            yield daemon
        finally:
            if daemon.poll() is None:
                daemon.send_signal(signal.SIGTERM)
        daemon.communicate(timeout=START_S)
    assert daemon.returncode in (0, -signal.SIGKILL)


def listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(path)) == 0


def refused(argv: list[str]) -> tuple[int, str]:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=START_S, check=False)
    assert len(done.stderr.splitlines()) == 1
    return done.returncode, done.stderr


def get(top: Path, path: str) -> str:
    return run(["curl", "-sf", "--unix-socket", str(top / "run" / "admin.sock"), f"http://admin{path}"])


def test_sockets_are_for_root_alone_and_gone_in_the_end(tmp_path: Path) -> None:
    sockets = [tmp_path / "run" / name for name in ("fastpull.sock", "admin.sock")]
    before = os.umask(0)
    try:
        with started(tmp_path):
            modes = [stat.filemode(path.stat().st_mode) for path in sockets]
            directories = [(tmp_path / name).stat().st_mode & 0o777 for name in ("root", "run")]
    finally:
        os.umask(before)
    assert modes == ["srw-------"] * 2
    assert directories == [0o700] * 2
    assert not any(path.exists() for path in sockets)


def test_two_daemons_never_share_a_root(tmp_path: Path) -> None:
    with started(tmp_path):
        code, told = refused(command(tmp_path / "root", tmp_path / "other"))
        assert (code, told) == (1, f"fastpull-snapshotter: another daemon uses {tmp_path}/root\n")
        assert listening(tmp_path / "run" / "fastpull.sock")


def test_a_served_socket_is_not_taken_over(tmp_path: Path) -> None:
    with started(tmp_path):
        code, told = refused(command(tmp_path / "other", tmp_path / "run"))
        assert code == 1
        assert told.endswith("fastpull.sock is served by another process\n")
        assert json.loads(get(tmp_path, "/v1/status"))["snapshots"] == []


def test_what_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "fastpull.sock").write_text("precious")
    code, told = refused(command(tmp_path / "root", tmp_path / "run"))
    assert (code, "is not a socket" in told) == (1, True)
    assert (tmp_path / "run" / "fastpull.sock").read_text() == "precious"


def test_a_wrong_configuration_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("rot = 1")
    code, told = refused(command(tmp_path / "root", tmp_path / "run", "--config", str(tmp_path / "c.toml")))
    assert (code, told) == (2, "fastpull-snapshotter: rot: unknown setting\n")
    assert not (tmp_path / "root").exists()


def test_places_that_can_not_be_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, told = refused(command(tmp_path / "file" / "root", tmp_path / "run"))
    assert (code, told) == (1, f"fastpull-snapshotter: {tmp_path}/file/root can not be made: Not a directory\n")


def test_a_damaged_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "metadata.db").write_bytes(b"x" * 10_000)
    code, told = refused(command(tmp_path / "root", tmp_path / "run"))
    assert (code, told) == (1, f"fastpull-snapshotter: {tmp_path}/root/metadata.db: file is not a database\n")


def test_a_killed_daemons_socket_is_replaced(tmp_path: Path) -> None:
    with started(tmp_path) as daemon:
        daemon.kill()
        daemon.wait()
        assert (tmp_path / "run" / "fastpull.sock").exists()
    with started(tmp_path):
        assert json.loads(get(tmp_path, "/v1/status"))["fetcher"] is None


def test_systemd_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(os.fspath(tmp_path / "notify"))
        listener.settimeout(START_S)
        with started(tmp_path, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}):
            assert listener.recv(100) == b"READY=1"
        assert listener.recv(100) == b"STOPPING=1"


def test_systemd_is_told_in_the_abstract_namespace(tmp_path: Path) -> None:
    name = f"fastpull-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(START_S)
        with started(tmp_path, environment={"NOTIFY_SOCKET": f"@{name}"}):
            assert listener.recv(100) == b"READY=1"


def test_logs_are_json_where_nobody_looks(tmp_path: Path) -> None:
    argv = command(tmp_path / "root", tmp_path / "run")
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as daemon:
        wait_until(lambda: listening(tmp_path / "run" / "fastpull.sock"), what="the daemon", timeout_s=START_S)
        daemon.send_signal(signal.SIGINT)
        _, log = daemon.communicate(timeout=START_S)
    assert daemon.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["event"] for line in lines] == ["daemon_ready", "daemon_stopping"]
    assert lines[0]["level"] == "info"


def test_metrics_are_prometheus_text(tmp_path: Path) -> None:
    with started(tmp_path):
        lines = get(tmp_path, "/metrics").splitlines()
    assert 'fastpull_snapshots{kind="active"} 0.0' in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)


def test_an_idle_daemon_costs_nothing(tmp_path: Path) -> None:
    def cpu_s(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    with started(tmp_path) as daemon:
        time.sleep(1)
        before, began = cpu_s(daemon.pid), time.monotonic()
        time.sleep(5)
        assert (cpu_s(daemon.pid) - before) / (time.monotonic() - began) < 0.01
