"""`fastpull setup` as a transaction over files, below a scratch root."""

import subprocess
from pathlib import Path

import pytest

from fastpull.lab.tools import Release
from tests.system.setup_machine import setup
from tests.system.test_command_lab import FASTPULL

pytestmark = [pytest.mark.system, pytest.mark.root]

OWNERS = '# of the owner\nversion = 2\noom_score = -1\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "p"\n'


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
