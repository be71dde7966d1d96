"""`fastpull setup` on a machine that runs: with a daemon that it starts itself, or that the owner's supervisor runs."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fastpull.exit_codes import ExitCode
from fastpull.lab import mounts
from fastpull.lab.process import LabError, wait_until
from fastpull.setup.background import end, listener
from fastpull.setup.readers import through_fuse
from fetcher.planes.teardown import keeper_pid
from tests.harness import Daemon
from tests.harness.images import MIB
from tests.system.setup_machine import Machine, machine_of
from tests.system.test_command_lab import CommandLine

pytestmark = [pytest.mark.system, pytest.mark.root]
only_current = pytest.mark.parametrize("release", ["current"], indirect=True)


@pytest.fixture
def machine(fastpull: CommandLine) -> Iterator[Machine]:
    """Nothing of fastpull runs or is there. What setup leaves running is ended."""
    fastpull.daemon.stop()
    with machine_of(fastpull) as made:
        yield made
        pid = listener(made.run_dir / "fastpull.sock")
        if pid is not None and pid != _pid_of(fastpull.daemon):
            end(pid)
    log = made.log.read_text() if made.log.exists() else ""
    assert "Traceback" not in log and '"exception"' not in log, log


def _pid_of(daemon: Daemon) -> int | None:
    return daemon.pid if daemon.running() else None


def started(said: str) -> int:
    """The process that setup says it started."""
    found = re.search(r"started fastpull-snapshotter \(process (\d+)", said)
    assert found is not None, said
    return int(found[1])


def lives(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def snapshots(machine: Machine) -> int:
    """How many the daemon keeps, those that containerd is still to remove included."""
    with closing(sqlite3.connect(f"file:{machine.root / 'metadata.db'}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM snapshots").fetchone()[0])


def wait_complete(machine: Machine) -> None:
    """Until every layer is here and verified."""
    layers = machine.root / "layers"
    wait_until(lambda: all((layer / "verified").exists() for layer in layers.iterdir()), what="the image", timeout_s=30)


def contents(machine: Machine) -> dict[str, bytes]:
    return {name: (machine.scratch / name).read_bytes() for name in files_of(machine) if name.endswith(".toml")}


def files_of(machine: Machine) -> list[str]:
    """What is below the scratch root beside containerd's own directory."""
    there = (path.relative_to(machine.scratch) for path in machine.scratch.rglob("*"))
    return sorted(str(path) for path in there if path.parts[0] in ("etc",) or path.suffix == ".log")


# Without systemd


def test_setup_starts_the_daemon_and_uninstall_leaves_nothing(machine: Machine) -> None:
    before = machine.config.read_text()
    said = machine.setup()
    pid = started(said)
    assert listener(machine.run_dir / "fastpull.sock") == pid and "done: a test image starts lazily" in said
    assert f"At each boot, start it before containerd: {machine.command}" in said
    assert files_of(machine) == ["etc", "etc/fastpull", "etc/fastpull/config.toml", "var/log/fastpull.log"]
    # In a session of its own: it outlives the terminal.
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3] == str(pid)
    again = machine.setup()
    assert "already, and a test image starts lazily" in again and "started" not in again
    keeper = keeper_pid(machine.run_dir)
    said = machine.setup("--uninstall")
    assert machine.config.read_text() == before and files_of(machine) == []
    assert not machine.run_dir.exists() and not mounts.below(machine.root)
    assert keeper is not None and not lives(pid) and not lives(keeper)
    assert f"kept {machine.root}" in said and "still has" not in said
    assert machine.fastpull.containerd.ctr("version")
    machine.setup("--uninstall", status=ExitCode.NOT_FOUND)
    assert f"kept {machine.root}" not in machine.setup("--uninstall", "--purge")
    assert not machine.root.exists()


def test_images_start_lazily_and_those_left_behind_are_named(machine: Machine) -> None:
    fastpull = machine.fastpull
    machine.configure()
    owners = machine.daemon_config.read_text()
    machine.setup()
    image = fastpull.push_converted()
    fastpull("run", "--require-lazy", "--rm", "--net=host", image, "sha256sum", "/noise")
    # containerd removes what the container wrote when it next collects garbage.
    wait_until(lambda: snapshots(machine) == 2, what="containerd's garbage collection")
    said = machine.setup("--uninstall")
    assert "containerd still has 2 snapshots there" in said and "nerdctl rmi" in said
    assert machine.daemon_config.read_text() == owners
    # What containerd still has of it is in nobody's way.
    fastpull.containerd.nerdctl("rmi", image)
    assert image not in fastpull.containerd.nerdctl("images")


@only_current
def test_containerd_is_the_owners_to_restart(machine: Machine) -> None:
    """No systemd, no init script, no command: the files stay, and the second setup proves them."""
    before = machine.config.read_text()
    flags = ["--restart-command", ""]
    said = machine.setup(*flags, status=ExitCode.UNPROVEN)
    assert said.splitlines()[-1] == "not proven yet: restart containerd, then run `fastpull setup` again"
    assert "fastpull.sock" in machine.config.read_text() and started(said)
    machine.setup(*flags, status=ExitCode.UNPROVEN)
    machine.restart_containerd()
    assert "a test image starts lazily" in machine.setup(*flags)
    said = machine.setup(*flags, "--uninstall", status=ExitCode.UNPROVEN)
    assert "left to you: restart containerd" in said and machine.config.read_text() == before


@only_current
def test_a_daemon_that_ended_is_started_by_the_next_setup(machine: Machine) -> None:
    first = started(machine.setup())
    end(first)
    assert started(machine.setup()) != first
    machine.setup("--uninstall", "--purge")


@only_current
def test_a_daemon_that_does_not_come_up_is_told_and_undone(machine: Machine) -> None:
    before = machine.config.read_text()
    program = machine.scratch / "broken"
    program.write_text("#!/bin/sh\necho 'no such plane' >&2\nexit 3\n")
    program.chmod(0o755)
    said = machine.setup("--program", str(program), status=ExitCode.ROLLED_BACK)
    assert "nothing was changed: fastpull-snapshotter ended with status 3: no such plane" in said
    assert machine.config.read_text() == before and not (machine.scratch / "etc/fastpull").exists()


@only_current
def test_a_failed_proof_puts_everything_back(machine: Machine) -> None:
    """A restart that does nothing: the running containerd does not know fastpull, so nothing can be pulled with it."""
    before = machine.config.read_text()
    said = machine.setup("--restart-command", "true", status=ExitCode.ROLLED_BACK)
    assert "nothing was changed: a test image cannot be pulled" in said
    assert machine.config.read_text() == before and not (machine.scratch / "etc/fastpull").exists()
    assert not machine.run_dir.exists() and listener(machine.run_dir / "fastpull.sock") is None
    # The proof left nothing in it.
    assert "fastpull-proof" not in machine.fastpull.containerd.ctr("namespaces", "ls", "-q")


# With a supervisor of the owner's


def test_no_service_leaves_the_daemon_to_its_owner(machine: Machine) -> None:
    daemon = machine.fastpull.daemon
    said = machine.setup("--no-service", status=ExitCode.UNPROVEN)
    command = f"start {machine.command}, restart containerd"
    assert f"not proven yet: {command}, then run" in said
    daemon.start()
    assert "a test image starts lazily" in machine.setup("--no-service")
    refused = machine.setup("--uninstall", status=ExitCode.NOT_PERMITTED)
    assert f"process {daemon.pid}) runs and was not started by setup" in refused and daemon.running()
    daemon.stop()
    machine.setup("--uninstall")
    assert not machine.run_dir.exists()


@only_current
def test_a_daemon_of_the_owners_is_not_replaced(machine: Machine) -> None:
    machine.fastpull.daemon.start()
    said = machine.setup(status=ExitCode.ROLLED_BACK)
    assert "was not started by setup" in said and "--no-service" in said
    assert machine.fastpull.daemon.running()


# Uninstalling beside containers


@pytest.fixture
def frozen(machine: Machine) -> Machine:
    """A machine whose daemon fetches only what is read: a layer that is not read stays incomplete."""
    machine.configure("[fetcher]\nbackground_fill = false\n")
    return machine


@only_current
def test_uninstall_refuses_while_a_container_reads_what_is_not_here(frozen: Machine) -> None:
    fastpull, pid = frozen.fastpull, started(frozen.setup())
    before, image = contents(frozen), fastpull.push_converted(extra=64 * MIB)
    fastpull("run", "-d", "--net=host", "--name", "busy", image, "sleep", "600")
    refused = frozen.setup("--uninstall", status=ExitCode.NOT_PERMITTED)
    name = fastpull.containerd.nerdctl("ps", "-q").strip()
    assert f"1 container ({fastpull.containerd.namespace}/{name} (running)) still reads" in refused
    assert "--force" in refused and contents(frozen) == before and lives(pid)
    frozen.setup("--uninstall", "--purge", status=ExitCode.NOT_PERMITTED)
    # A stopped one still has its root mounted.
    fastpull.containerd.nerdctl("stop", "-t", "0", "busy")
    assert "stopped, not removed" in frozen.setup("--uninstall", status=ExitCode.NOT_PERMITTED)
    fastpull.containerd.nerdctl("rm", "-f", "busy")
    frozen.setup("--uninstall")
    assert not frozen.run_dir.exists() and keeper_pid(frozen.run_dir) is None


@only_current
def test_forced_uninstall_hangs_reads_but_never_lies(frozen: Machine) -> None:
    """The keeper and the mounts stay for the container: without them the kernel would show zeros."""
    fastpull, pid = frozen.fastpull, started(frozen.setup())
    image = fastpull.push_converted(extra=64 * MIB)
    fastpull("run", "-d", "--net=host", "--name", "busy", image, "sleep", "600")
    said = frozen.setup("--uninstall", "--force")
    keeper = keeper_pid(frozen.run_dir)
    assert keeper is not None and f"left: the keeper (process {keeper})" in said
    assert not lives(pid) and "fastpull.sock" not in frozen.config.read_text()
    with pytest.raises(LabError, match="not done after 3 s"):
        fastpull.containerd.nerdctl("exec", "busy", "sha256sum", "/noise", timeout_s=3)
    # Once more when it has gone: the rest goes.
    fastpull.containerd.nerdctl("rm", "-f", "busy")
    frozen.setup("--uninstall")
    assert keeper_pid(frozen.run_dir) is None and not mounts.below(frozen.root)


@only_current
def test_a_container_whose_layers_are_complete_outlives_the_uninstallation(machine: Machine) -> None:
    fastpull = machine.fastpull
    machine.configure()
    machine.setup()
    image = fastpull.push_converted()
    fastpull("run", "-d", "--net=host", "--name", "busy", image, "sleep", "600")
    wait_complete(machine)
    expected = fastpull.containerd.nerdctl("exec", "busy", "sha256sum", "/noise")
    if through_fuse(machine.run_dir):
        fastpull.containerd.nerdctl("rm", "-f", "busy")
        return  # the next test is about that
    assert "would take the files" in machine.setup("--uninstall", "--purge", status=ExitCode.NOT_PERMITTED)
    machine.setup("--uninstall")
    assert not machine.run_dir.exists()
    Path("/proc/sys/vm/drop_caches").write_text("1")
    assert fastpull.containerd.nerdctl("exec", "busy", "sha256sum", "/noise") == expected
    fastpull.containerd.nerdctl("rm", "-f", "busy")


@only_current
def test_through_fuse_complete_layers_need_the_daemon_too(machine: Machine) -> None:
    """What was mounted through the session goes through it for good: to end it would fail every read."""
    fastpull = machine.fastpull
    machine.configure('[fetcher]\ndata_plane = "fuse"\n')
    machine.setup()
    image = fastpull.push_converted()
    fastpull("run", "-d", "--net=host", "--name", "busy", image, "sleep", "600")
    wait_complete(machine)
    refused = machine.setup("--uninstall", status=ExitCode.NOT_PERMITTED)
    assert "still reads layers through fastpull's FUSE mount" in refused
    fastpull.containerd.nerdctl("rm", "-f", "busy")
    machine.setup("--uninstall")
    assert not machine.run_dir.exists() and not mounts.below(machine.root)


@only_current
def test_purge_asks_before_it_deletes_what_a_container_wrote(machine: Machine) -> None:
    fastpull = machine.fastpull
    machine.configure()
    machine.setup()
    image = fastpull.push_converted()
    fastpull.containerd.nerdctl("create", "--net=host", "--name", "kept", image, "true", snapshotter="fastpull")
    refused = machine.setup("--uninstall", "--purge", status=ExitCode.NOT_PERMITTED)
    assert "what 1 container wrote" in refused
    assert "would keep" in machine.setup("--uninstall", "--dry-run")
    assert machine.run_dir.exists()
    machine.setup("--uninstall", "--purge", "--force")
    assert not machine.root.exists()
    fastpull.containerd.nerdctl("rm", "-f", "kept")
