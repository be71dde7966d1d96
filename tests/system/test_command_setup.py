"""`fastpull setup` as a transaction: below a scratch root, and on a running containerd that is restarted for it."""

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastpull.lab.tools import Release
from fastpull.lab.workspace import kill_all
from tests.harness import Daemon, PrivateContainerd, Registry, Workspace
from tests.system.test_command_lab import FASTPULL, CommandLine

pytestmark = [pytest.mark.system, pytest.mark.root]
only_current = pytest.mark.parametrize("release", ["current"], indirect=True)

OWNERS = '# of the owner\nversion = 2\noom_score = -1\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "p"\n'


def setup(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([FASTPULL, "setup", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine's files: containerd's and Docker's configuration, as their owner wrote them."""
    for name, text in (("containerd/config.toml", OWNERS), ("docker/daemon.json", '{"log-driver": "local"}\n')):
        path = tmp_path / "etc" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o640)
    return tmp_path


def where(root: Path, release: Release) -> list[str]:
    return ["--root-dir", str(root), "--containerd", str(release.containerd)]


def test_install_and_uninstall_give_back_every_byte(root: Path, release: Release) -> None:
    before = contents(root)
    dry = setup(*where(root, release), "--docker", "--dry-run").stdout
    assert contents(root) == before
    assert "+[proxy_plugins.fastpull]" in dry and '+  "storage-driver": "fastpull"' in dry
    assert not [line for line in dry.splitlines() if line.startswith("-") and not line.startswith("---")][1:]
    setup(*where(root, release), "--docker")
    written = contents(root)
    config = written["etc/containerd/config.toml"].decode()
    assert config.startswith(OWNERS) and "fastpull.sock" in config
    assert (root / "etc/containerd/config.toml").stat().st_mode & 0o777 == 0o640
    assert b"KillMode=process" in written["etc/systemd/system/fastpull.service"]
    assert "already" in setup(*where(root, release), "--docker").stdout
    assert contents(root) == written
    setup(*where(root, release), "--uninstall")
    assert contents(root) == before
    setup(*where(root, release), "--uninstall", status=3)


def test_the_unit_names_the_daemon_beside_the_command(root: Path, current_release: Release, tmp_path: Path) -> None:
    link = tmp_path / "linked"
    link.symlink_to(FASTPULL)
    subprocess.run([link, "setup", *where(root, current_release)], check=True, capture_output=True)
    unit = (root / "etc/systemd/system/fastpull.service").read_text()
    assert f"ExecStart={Path(FASTPULL).with_name('fastpull-snapshotter')} --config" in unit


def test_a_second_setup_keeps_the_first_backup(root: Path, release: Release) -> None:
    before = contents(root)
    setup(*where(root, release))
    setup(*where(root, release), "--cri", "all")
    assert 'snapshotter = "fastpull"' in (root / "etc/containerd/config.toml").read_text()
    setup(*where(root, release), "--uninstall")
    assert contents(root) == before


def test_uninstall_does_not_undo_what_the_owner_did_since(root: Path, current_release: Release) -> None:
    setup(*where(root, current_release))
    config = root / "etc/containerd/config.toml"
    config.write_text(config.read_text() + "# later\n")
    refused = setup(*where(root, current_release), "--uninstall", status=11)
    assert "changed since" in refused.stderr and "# later" in config.read_text()
    setup(*where(root, current_release), "--uninstall", "--force")
    assert config.read_text() == OWNERS


@pytest.mark.parametrize("text", ["version = 5\n", "version = [\n", "proxy_plugins = 1\n"])
def test_a_file_that_cannot_be_edited_stays(root: Path, current_release: Release, text: str) -> None:
    config = root / "etc/containerd/config.toml"
    config.write_text(text)
    before = contents(root)
    refused = setup(*where(root, current_release), status=1)
    assert str(config) in refused.stderr
    assert contents(root) == before


def test_what_containerd_refuses_is_rolled_back(root: Path, current_release: Release) -> None:
    """The edit is sound, but containerd itself does not take the file: a key of the wrong type."""
    config = root / "etc/containerd/config.toml"
    config.write_text('version = 3\noom_score = "high"\n')
    before = contents(root)
    refused = setup(*where(root, current_release), status=12)
    assert "nothing was changed: containerd refuses" in refused.stderr
    assert contents(root) == before


@pytest.fixture
def deadly(tmp_path_factory: pytest.TempPathFactory, current_release: Release) -> Path:
    """A containerd that kills who asks it to check a configuration: all files are written by then, none is proven."""
    program = tmp_path_factory.mktemp("bin") / "containerd"
    real = current_release.containerd
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec {real} "$@"\nkill -9 $PPID\n')
    program.chmod(0o755)
    return program


def killed(root: Path, deadly: Path, *arguments: str) -> None:
    before = contents(root)
    setup("--root-dir", str(root), "--containerd", str(deadly), *arguments, status=-9)
    assert contents(root) != before


def test_a_killed_setup_is_undone_by_the_next(root: Path, current_release: Release, deadly: Path) -> None:
    before = contents(root)
    killed(root, deadly, "--docker")
    again = setup(*where(root, current_release))
    assert "an earlier setup was interrupted" in again.stdout
    assert contents(root)["etc/docker/daemon.json"] == before["etc/docker/daemon.json"]
    installed = contents(root)
    killed(root, deadly, "--docker", "--cri", "all")
    assert "put back" in setup(*where(root, current_release)).stdout
    assert contents(root) == installed
    setup(*where(root, current_release), "--uninstall")
    assert contents(root) == before


def test_a_killed_setup_can_be_uninstalled(root: Path, current_release: Release, deadly: Path) -> None:
    before = contents(root)
    killed(root, deadly)
    setup(*where(root, current_release), "--uninstall")
    assert contents(root) == before


def test_backups_of_later_setups_do_not_replace_the_first(root: Path, current_release: Release) -> None:
    before = contents(root)
    setup(*where(root, current_release))
    for more in (["--docker", "--cri", "all"], ["--docker", "--cri", "none"], ["--docker", "--cri", "all"]):
        setup(*where(root, current_release), *more)
    setup(*where(root, current_release), "--uninstall")
    assert contents(root) == before


@pytest.fixture
def fastpull(workspace: Workspace, registry: Registry, daemon: Daemon, containerd: PrivateContainerd) -> CommandLine:
    return CommandLine(workspace, containerd, daemon, registry)


@pytest.fixture
def machine(fastpull: CommandLine) -> Iterator[list[str]]:
    """Flags that set up the private containerd as if it were the machine's; its file says nothing of fastpull yet.

    What setup writes beside containerd's file goes below a scratch root, which has a link to that file.
    """
    containerd, daemon, scratch = fastpull.containerd, fastpull.daemon, fastpull.space.directory("machine")
    text = containerd.config.read_text()
    containerd.config.write_text(text[: text.index("\n[proxy_plugins")] + "\n")
    link = scratch / str(containerd.config).lstrip("/")
    link.parent.mkdir(parents=True)
    link.symlink_to(containerd.config)
    script = _restart_script(fastpull)
    flags = ["--root-dir", str(scratch), "--containerd-config", str(containerd.config)]
    flags += ["--containerd-address", str(containerd.address), "--containerd", str(containerd.release.containerd)]
    flags += ["--root", str(daemon.root), "--run-dir", str(daemon.run_dir), "--restart-command", str(script)]
    yield flags
    kill_all([int(script.with_suffix(".pid").read_text())])


def _restart_script(fastpull: CommandLine) -> Path:
    """What stands in for systemd: ends the private containerd and starts it again over its configuration file."""
    containerd = fastpull.containerd
    script = fastpull.space.directory("bin") / "restart"
    pid = script.with_suffix(".pid")
    pid.write_text(str(containerd.pid))
    start = shlex.join([str(containerd.release.containerd), "--config", str(containerd.config)])
    mark = " ".join(f"{name}={value}" for name, value in fastpull.space.env.items())
    # The first one is a child of this test, which does not reap it: a zombie has ended too.
    gone = f'p=$(cat {pid}); kill $p; while grep -qs "^State:.[^Z]" /proc/$p/status; do sleep 0.05; done'
    begin = f"env {mark} PATH={containerd.release.path()} {start} >>{containerd.log} 2>&1 </dev/null &"
    script.write_text(f"#!/bin/sh\n{gone}\n{begin}\necho $! > {pid}\n")
    script.chmod(0o755)
    return script


def test_a_live_installation_is_proven_by_a_lazy_pull(fastpull: CommandLine, machine: list[str]) -> None:
    before = fastpull.containerd.config.read_text()
    done = setup(*machine)
    assert "done: fastpull run" in done.stdout
    assert "already, and a test image starts lazily" in setup(*machine).stdout
    image = fastpull.push_converted()
    fastpull("run", "--require-lazy", "--rm", "--net=host", image, "sh", "-c", "true")
    setup(*machine, "--uninstall")
    assert fastpull.containerd.config.read_text() == before
    fastpull.containerd.ctr("version")


@only_current
def test_a_failed_proof_puts_everything_back(fastpull: CommandLine, machine: list[str]) -> None:
    before = fastpull.containerd.config.read_text()
    fastpull.daemon.stop()  # containerd will be told of a socket where nobody listens
    refused = setup(*machine, status=12)
    assert "nothing was changed: a test image cannot be pulled" in refused.stderr
    assert fastpull.containerd.config.read_text() == before
    assert not (fastpull.space.directory("machine") / "etc/fastpull/config.toml").exists()
    # It was started again with the old file, and the proof left nothing in it.
    assert "fastpull-proof" not in fastpull.containerd.ctr("namespaces", "ls", "-q")
    fastpull.daemon.start()


def test_the_machine_needs_systemd_or_a_command(root: Path, current_release: Release) -> None:
    if Path("/run/systemd/system").is_dir():
        return  # nothing is refused then
    dry = setup("--containerd", str(current_release.containerd), "--dry-run")
    assert "+[proxy_plugins.fastpull]" in dry.stdout
    refused = setup("--containerd", str(current_release.containerd), status=7)
    assert "--restart-command" in refused.stderr
