"""A private BuildKit: buildkitd with runc, everything it keeps in the workspace, and no network of its own."""

from pathlib import Path
from types import TracebackType
from typing import Self

from fastpull.lab import cgroups, mounts, tools
from fastpull.lab.process import LabError, Service, run
from fastpull.lab.workspace import Workspace


def buildkitd_config(*, root: Path, address: Path, cgroup: str) -> str:
    """buildkitd.toml. Steps run on the host's network: a bridge would be one more thing to remove."""
    return f"""root = "{root}"
[grpc]
  address = ["unix://{address}"]
[otel]
  socketPath = "{root}/otel.sock"
[cdi]
  disabled = true
[worker.oci]
  enabled = true
  binary = "{tools.find("runc")}"
  networkMode = "host"
  defaultCgroupParent = "{cgroup}"
[worker.containerd]
  enabled = false
"""


class Buildkitd:
    """buildkitd as a context manager; `host` is its address as BUILDKIT_HOST and buildx's remote driver take it."""

    def __init__(self, workspace: Workspace, *, name: str = "b") -> None:
        self._dir = workspace.directory(name)
        self._cgroup = f"fp-{workspace.mark[:8]}-{name}"
        self._address = self._dir / "b.sock"
        self.host = f"unix://{self._address}"
        self.root = self._dir / "root"
        self.log = self._dir / "buildkitd.log"
        self.left: list[str] = []
        config = self._dir / "buildkitd.toml"
        config.write_text(buildkitd_config(root=self.root, address=self._address, cgroup=self._cgroup))
        env = {**workspace.env, "PATH": tools.search_path(), "TMPDIR": str(workspace.directory("tmp"))}
        self._service = Service([tools.find("buildkitd"), "--config", config], log=self.log, env=env)

    def __repr__(self) -> str:
        return f"<Buildkitd {self._address}>"

    def __enter__(self) -> Self:
        try:
            self._service.start()
            self._service.wait_ready(self._answers, timeout_s=30)
        except BaseException:
            self._service.kill()
            raise
        return self

    def _answers(self) -> bool:
        if not self._address.exists():
            return False
        try:
            self.buildctl("debug", "workers")
        except LabError:
            return False
        return True

    def buildctl(self, *arguments: str, timeout_s: float = 10) -> str:
        return run([tools.find("buildctl"), "--addr", self.host, *arguments], timeout_s=timeout_s)

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._service.stop()
        self.left += [f"mount {found.kind} on {found.point}" for found in mounts.unmount_below(self._dir)]
        cgroups.remove_named(self._cgroup)
