"""`fastpull-snapshotter` as a child process: it can be killed and started again over the same state."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fastpull.lab import mounts
from fastpull.lab.mounts import Mount
from fastpull.lab.process import Service
from fastpull.lab.registry import Registry
from fastpull.lab.workspace import Workspace
from fetcher.planes.teardown import teardown

_PROGRAM = "fastpull-snapshotter"


def _program() -> list[str]:
    """The daemon installed beside the running Python."""
    script = Path(sys.executable).with_name(_PROGRAM)
    return [str(script)] if script.exists() else [sys.executable, "-m", "fastpull.daemon"]


def daemon_config(*registries: Registry) -> str:
    """The daemon's TOML: these registries speak plain HTTP, and nothing of the host's own configuration is read."""
    hosts = ", ".join(f'"{served.host}"' for served in registries)
    certs = ", ".join(f'"{served.hosts_dir()}"' for served in registries)
    return f"registry_hosts = [{hosts}]\n[registry]\nplain_http = [{hosts}]\ncerts_dirs = [{certs}]\n"


class Daemon:
    """The snapshotter with its root, run directory and socket in the workspace.

    `left` lists after the end what was there beside the layers' own mounts, which outlive the daemon by design.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        containerd_address: Path,
        config: str = "",
        extra: Sequence[str] = (),
        name: str = "f",
    ) -> None:
        """`config` is TOML (see `daemon_config`); `extra` are more flags of the daemon."""
        self.dir = workspace.directory(name)
        self.root = self.dir / "root"
        self.run_dir = self.dir / "run"
        self.address = self.run_dir / "fastpull.sock"
        self.config = self.dir / "config.toml"
        self.log = self.dir / "daemon.log"
        self.left: list[str] = []
        self.config.write_text(config)
        flags = {
            "--root": self.root,
            "--run-dir": self.run_dir,
            "--address": self.address,
            "--config": self.config,
            "--containerd-address": containerd_address,
            "--log-level": "debug",
        }
        argv = [*_program(), *(str(word) for pair in flags.items() for word in pair), *extra]
        self._service = Service(argv, log=self.log, env={**workspace.env, "DOCKER_CONFIG": str(self.dir / "docker")})

    def __repr__(self) -> str:
        return f"<Daemon {self.address}>"

    @property
    def proxy(self) -> tuple[Path, Path]:
        """Socket and root, as `Containerd(proxies=...)` takes them."""
        return self.address, self.root

    @property
    def pid(self) -> int:
        return self._service.pid

    def running(self) -> bool:
        return self._service.running()

    def start(self) -> None:
        """Start and wait for the socket; a socket file that a dead daemon left does not count."""
        self._service.start()
        self._service.wait_ready(lambda: listening(self.address), timeout_s=30)

    def stop(self, *, timeout_s: float = 15) -> None:
        """SIGTERM: a clean stop. The mounts and the keeper stay, and containers go on."""
        self._service.stop(timeout_s=timeout_s)

    def kill(self) -> None:
        """SIGKILL of the daemon alone; the keeper lives."""
        self._service.kill()

    def restart(self, *, kill: bool = False) -> None:
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    def keeper_pid(self) -> int | None:
        """Process id of the keeper, or None when there is none."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.run_dir / "keeper.pid").read_text())
        return None

    def mounted_layers(self) -> list[Mount]:
        """The layers' file systems that are mounted now."""
        return [mount for mount in mounts.below(self.root) if mount.point.endswith("/fs") and "/layers/" in mount.point]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._service.kill()
            teardown(self.root, self.run_dir)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        by_design = {mount.point for mount in self.mounted_layers()} | {str(self.run_dir / "fuse")}
        self.left += [f"mount on {point}" for point in teardown(self.root, self.run_dir) if str(point) not in by_design]


def listening(address: Path) -> bool:
    """Whether a process accepts connections on a unix socket: flags 00010000 (__SO_ACCEPTCON) in /proc/net/unix."""
    fields = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return any(line[3] == "00010000" and line[-1] == str(address) for line in fields)
