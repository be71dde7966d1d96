"""A private containerd as the machine that `fastpull setup` sets up, with nothing of systemd in it."""

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastpull.lab.daemon import daemon_config
from fastpull.lab.workspace import kill_all
from tests.system.test_command_lab import FASTPULL, CommandLine


def setup(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `fastpull setup`; fails the test if the exit status is not `status`."""
    done = subprocess.run([FASTPULL, "setup", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@dataclass(frozen=True, slots=True)
class Machine:
    """`flags` name the private containerd and where the daemon's files are; `scratch` stands for the root directory."""

    fastpull: CommandLine
    scratch: Path
    flags: list[str]
    script: Path

    @property
    def config(self) -> Path:
        """containerd's."""
        return self.fastpull.containerd.config

    @property
    def restart(self) -> list[str]:
        """What stands in for an init system: the flag that has setup restart containerd."""
        return ["--restart-command", str(self.script)]

    @property
    def command(self) -> str:
        """How the daemon is started by hand, as setup says it."""
        return f"{Path(FASTPULL).with_name('fastpull-snapshotter')} --config {self.daemon_config}"

    @property
    def daemon_config(self) -> Path:
        return self.scratch / "etc/fastpull/config.toml"

    @property
    def root(self) -> Path:
        return self.fastpull.daemon.root

    @property
    def run_dir(self) -> Path:
        return self.fastpull.daemon.run_dir

    @property
    def log(self) -> Path:
        """Of a daemon that setup started."""
        return self.scratch / "var/log/fastpull.log"

    def configure(self, more: str = "") -> None:
        """As an owner who wrote the daemon's configuration first: it knows the registry, and what `more` says."""
        containerd, registry = self.fastpull.containerd.address, daemon_config(self.fastpull.registry)
        where = f'root = "{self.root}"\nrun_dir = "{self.run_dir}"\ncontainerd_address = "{containerd}"\n'
        self.daemon_config.parent.mkdir(parents=True)
        self.daemon_config.write_text(where + registry + more)

    def setup(self, *arguments: str, status: int = 0) -> str:
        """Run it with the flags of this machine; what it said."""
        done = setup(*self.flags, *self.restart, *arguments, status=status)
        return done.stdout + done.stderr

    def restart_containerd(self) -> None:
        """As the owner would, beside setup."""
        subprocess.run([self.script], check=True, timeout=60)
        self.fastpull.containerd.ctr("version")


@contextmanager
def machine_of(fastpull: CommandLine) -> Iterator[Machine]:
    """containerd's file says nothing of fastpull yet. What setup writes beside it goes below a scratch root, which has
    a link to that file.
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
    flags += ["--root", str(daemon.root), "--run-dir", str(daemon.run_dir)]
    made = Machine(fastpull, scratch, flags, script)
    made.restart_containerd()  # it was started with fastpull in its file
    try:
        yield made
    finally:
        kill_all([int(script.with_suffix(".pid").read_text())])


def _restart_script(fastpull: CommandLine) -> Path:
    """Ends the private containerd and starts it again over its configuration file."""
    containerd = fastpull.containerd
    script = fastpull.space.directory("bin") / "restart"
    pid = script.with_suffix(".pid")
    pid.write_text(str(containerd.pid))
    start = shlex.join([str(containerd.release.containerd), "--config", str(containerd.config)])
    mark = " ".join(f"{name}={value}" for name, value in fastpull.space.env.items())
    # The first one is a child of this test, which does not reap it: a zombie has ended too.
    gone = f'p=$(cat {pid}); kill $p; while grep -qs "^State:.[^Z]" /proc/$p/status; do sleep 0.05; done'
    begin = f"env {mark} PATH={containerd.release.path()} {start} >>{containerd.log} 2>&1 </dev/null &"
    answers = (
        f"until {containerd.release.ctr} --address {containerd.address} version >/dev/null 2>&1; do sleep 0.1; done"
    )
    script.write_text(f"#!/bin/sh\n{gone}\n{begin}\necho $! > {pid}\n{answers}\n")
    script.chmod(0o755)
    return script
