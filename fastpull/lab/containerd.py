"""A private containerd of either generation: own root, state, socket, namespace and configuration."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fastpull.lab import cgroups, mounts, tools
from fastpull.lab.cost import children
from fastpull.lab.process import CommandFailed, LabError, Service, run, wait_until
from fastpull.lab.tools import Release
from fastpull.lab.workspace import Workspace, kill_all, marked_processes

PLATFORM = "linux/amd64" if os.uname().machine == "x86_64" else "linux/arm64"
# Not needed to pull and run, and some look at the host's devices.
_UNWANTED: tuple[str, ...] = (
    "snapshotter.v1.aufs",
    "snapshotter.v1.btrfs",
    "snapshotter.v1.devmapper",
    "snapshotter.v1.zfs",
)
_UNWANTED += ("internal.v1.tracing", "tracing.processor.v1.otlp", "nri.v1.nri")
_CRI = ("grpc.v1.cri", "cri.v1.images", "cri.v1.runtime", "podsandbox.controller.v1.podsandbox")
# containerd keeps these outside the directories it is given; both are named after the namespace.
_RUNC_ROOT = Path("/run/containerd/runc")
_RUN_TIMEOUT_S = 300


def _proxy_plugin(name: str, address: Path, root: Path) -> str:
    return f"""
[proxy_plugins.{name}]
  type = "snapshot"
  address = "{address}"
  [proxy_plugins.{name}.exports]
    root = "{root}"
    enable_remote_snapshot_annotations = "true"
"""


def _unpack_config(snapshotters: Sequence[str]) -> str:
    """Entries of the transfer service's list; naming any replaces the default, so overlayfs is named too."""
    entry = '\n[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n  platform = "{}"\n  snapshotter = "{}"\n'
    return "".join(entry.format(PLATFORM, name) for name in ("overlayfs", *snapshotters))


def containerd_config(
    *, version: int, root: Path, state: Path, address: Path, proxies: Mapping[str, tuple[Path, Path]], cri: bool
) -> str:
    """containerd's config.toml. `proxies`: name of a snapshotter -> (its socket, its root)."""
    unwanted = _UNWANTED if cri else (*_UNWANTED, *_CRI)
    disabled = ", ".join(f'"io.containerd.{name}"' for name in unwanted)
    head = f"""version = {version}
root = "{root}"
state = "{state}"
disabled_plugins = [{disabled}]
[grpc]
  address = "{address}"
[debug]
  level = "info"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
"""
    plugins = "".join(_proxy_plugin(name, *where) for name, where in proxies.items())
    # The service exists in 1.7 and later; 1.x ignores what it does not know.
    return head + plugins + _unpack_config(list(proxies))


class Containerd:
    """containerd as a context manager; `ctr` and `nerdctl` speak to it and to nothing of the host's.

    Everything runs in a namespace of its own name, because runc's state and the cgroups of a container are found
    under the namespace's name, outside any directory that could be given.
    """

    def __init__(
        self,
        workspace: Workspace,
        release: Release,
        *,
        proxies: Mapping[str, tuple[Path, Path]] | None = None,
        hosts_dir: Path | None = None,
        cri: bool = False,
        name: str = "c",
    ) -> None:
        self.release = release
        self.namespace = f"fp-{workspace.mark[:8]}-{name}"
        self.dir = workspace.directory(name)
        self.root = self.dir / "root"
        self.state = self.dir / "state"
        self.address = self.dir / "c.sock"
        self.config = self.dir / "config.toml"
        self.log = self.dir / "containerd.log"
        self.left: list[str] = []
        self._space = workspace
        self._hosts_dir = hosts_dir
        self.config.write_text(
            containerd_config(
                version=release.config_version,
                root=self.root,
                state=self.state,
                address=self.address,
                proxies=proxies or {},
                cri=cri,
            )
        )
        env = {**workspace.env, "PATH": release.path(), "TMPDIR": str(workspace.directory("tmp"))}
        self._service = Service([release.containerd, "--config", self.config], log=self.log, env=env)

    def __repr__(self) -> str:
        return f"<Containerd {self.release.name} {self.address}>"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._service.kill()
            raise
        return self

    def start(self) -> None:
        self._service.start()
        self._service.wait_ready(self._answers, timeout_s=30)

    def _answers(self) -> bool:
        if not self.address.exists():
            return False
        try:
            self.ctr("version", timeout_s=5)
        except RuntimeError:
            return False
        return True

    @property
    def pid(self) -> int:
        return self._service.pid

    def restart(self) -> None:
        """Stop containerd alone and start it again: containers keep running, as on a host."""
        self._service.stop()
        self.start()

    # Commands

    def ctr(self, *arguments: str, timeout_s: float = _RUN_TIMEOUT_S) -> str:
        """`ctr` in this containerd's namespace; returns its output."""
        command = [str(self.release.ctr), "--address", str(self.address), "--namespace", self.namespace, *arguments]
        return run(command, env=self.client_env(), timeout_s=timeout_s)

    def nerdctl_argv(self, *, snapshotter: str | None = None) -> list[str]:
        """The start of a nerdctl command line that touches only this containerd and this workspace."""
        own = {
            "address": self.address,
            "namespace": self.namespace,
            "data-root": self.dir / "nerdctl",
            "cni-netconfpath": self.dir / "cni",
            "cni-path": "/usr/lib/cni",
            "cgroup-manager": "cgroupfs",
        }
        if self._hosts_dir is not None:
            own["hosts-dir"] = self._hosts_dir
        if snapshotter is not None:
            own["snapshotter"] = snapshotter
        return [str(tools.find("nerdctl")), *(f"--{flag}={value}" for flag, value in own.items())]

    def nerdctl(self, *arguments: str, snapshotter: str | None = None, timeout_s: float = _RUN_TIMEOUT_S) -> str:
        command = [*self.nerdctl_argv(snapshotter=snapshotter), *arguments]
        return run(command, env=self.client_env(), timeout_s=timeout_s)

    def client_env(self) -> dict[str, str]:
        """What a client's environment must hold beside this process's own."""
        own = {"NERDCTL_TOML": str(self.dir / "nerdctl.toml"), "DOCKER_CONFIG": str(self.dir / "docker")}
        # The mark is not given: a container's hooks would inherit it and look like something left behind.
        return {**own, "PATH": self.release.path(), "CONTAINERD_ADDRESS": str(self.address)}

    def pull(self, reference: str, *, snapshotter: str = "overlayfs", extra: Sequence[str] = ()) -> None:
        """Pull and unpack with `ctr`, over plain HTTP."""
        words = ["images", "pull", "--plain-http", "--snapshotter", snapshotter, *extra, reference]
        self.ctr(*words)

    def run(
        self,
        reference: str,
        *command: str,
        snapshotter: str = "overlayfs",
        name: str = "once",
        timeout_s: float = _RUN_TIMEOUT_S,
    ) -> str:
        """Run a container of a pulled image to its end with `ctr`, on the host's network; returns its output."""
        words = ["run", "--rm", "--net-host", "--snapshotter", snapshotter, reference, name, *command]
        return self.ctr(*words, timeout_s=timeout_s)

    def wait_snapshotter(self, name: str, *, timeout_s: float = 15) -> None:
        """Wait until this containerd reaches a proxy snapshotter: after a restart its client may be backing off."""

        def answers() -> bool:
            try:
                self.ctr("snapshots", "--snapshotter", name, "list", timeout_s=5)
            except LabError:
                return False
            return True

        wait_until(answers, what=f"snapshotter {name}", timeout_s=timeout_s)

    # The end

    def stop(self) -> None:
        """End every container, containerd, what is left of the shims, and the mounts below the state directory."""
        if self._service.running():
            self._remove_containers()
        self._service.stop()
        self._end_shims()
        self.left += [f"mount {found.kind} on {found.point}" for found in mounts.unmount_below(self.state)]
        self._remove_outside()

    def _remove_containers(self) -> None:
        with contextlib.suppress(RuntimeError):
            for task in self.ctr("tasks", "ls", "-q").split():
                with contextlib.suppress(CommandFailed):
                    self.ctr("tasks", "delete", "--force", task, timeout_s=30)
            for container in self.ctr("containers", "ls", "-q").split():
                with contextlib.suppress(CommandFailed):
                    self.ctr("containers", "rm", container, timeout_s=30)

    def _shims(self) -> list[int]:
        wanted = str(self.address).encode()
        found = []
        for pid in marked_processes(self._space.mark):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"containerd-shim" in words[0] and wanted in words:
                    found.append(pid)
        return found

    def _end_shims(self) -> None:
        """A shim ends by itself a moment after its task is deleted; one that does not is left over."""
        with contextlib.suppress(RuntimeError):
            wait_until(lambda: not self._shims(), what="shims", timeout_s=3)
            return
        shims = self._shims()
        self.left += [f"shim {pid}" for pid in shims]
        orphans = [child for pid in shims for child in children(pid)]
        kill_all([*orphans, *shims])

    def _remove_outside(self) -> None:
        cgroups.remove_empty_tree(_RUNC_ROOT / self.namespace)
        cgroups.remove_named(self.namespace)

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
