"""The `fastpull` command against a private containerd: `CommandLine`, which the other command tests use."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastpull.lab import tools
from fastpull.lab.layout import ImageInput, LayerInput, Member, members, write_layout
from tests.harness import Daemon, PrivateContainerd, Registry, Workspace
from tests.harness.images import MIB, busybox_layer, noise

FASTPULL = str(Path(sys.executable).with_name("fastpull"))
TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Runs `fastpull` as a person would, with nerdctl bound to the private containerd by its configuration file."""

    space: Workspace
    containerd: PrivateContainerd
    daemon: Daemon
    registry: Registry

    def env(self) -> dict[str, str]:
        """A person's environment: nothing in it names containerd but nerdctl's own file."""
        home = self.space.directory("home")
        toml = home / "nerdctl.toml"
        settings = {
            "address": self.containerd.address,
            "namespace": self.containerd.namespace,
            "data_root": self.containerd.dir / "nerdctl",
            "cni_netconfpath": self.containerd.dir / "cni",
            "cni_path": "/usr/lib/cni",
            "cgroup_manager": "cgroupfs",
        }
        lines = [f'{key} = "{value}"' for key, value in settings.items()]
        toml.write_text("\n".join([*lines, f'hosts_dir = ["{self.registry.hosts_dir()}"]']) + "\n")
        own = {"NERDCTL_TOML": str(toml), "FASTPULL_NERDCTL": str(tools.find("nerdctl")), "HOME": str(home)}
        return {**os.environ, **own, "PATH": self.containerd.release.path(), "COLUMNS": "160"}

    def __call__(
        self,
        *arguments: str,
        status: int | None = 0,
        stdin: str = "",
        more: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, under `prefix` if there is one; fails the test if the exit status is not `status`."""
        argv = [*prefix, FASTPULL, *arguments]
        env = {**self.env(), **(more or {})}
        done = subprocess.run(
            argv, env=env, input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        told = f"{argv}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert status is None or done.returncode == status, told
        assert "Traceback" not in done.stderr, told
        return done

    def begin(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start it in a process group of its own, as a shell does."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [FASTPULL, *arguments], env=self.env(), stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def status(self, *arguments: str) -> dict[str, Any]:
        """`fastpull status --json`."""
        answer: dict[str, Any] = json.loads(self("status", "--json", *self.where(), *arguments).stdout)
        return answer

    def where(self) -> list[str]:
        """The options that tell status and doctor where this laboratory is."""
        words = ["--run-dir", str(self.daemon.run_dir), "--containerd-address", str(self.containerd.address)]
        return [*words, "--namespace", self.containerd.namespace]

    def containers(self) -> list[str]:
        """Names of all containers."""
        return self.containerd.nerdctl("ps", "-a", "--format", "{{.Names}}").split()

    def push(self, name: str = "app:1", *, extra: int = 2 * MIB) -> str:
        """An ordinary image in the registry: busybox, and a file of noise; its reference."""
        layout = self.space.directory("layouts") / name.replace("/", "-").replace(":", "-")
        noisy = LayerInput(write=members([Member(name="noise", data=noise(extra, len(name)), mode=0o644)]))
        image = ImageInput(layers=[busybox_layer(), noisy], command=["/bin/sh"], environment={"PATH": "/bin"})
        write_layout(layout, "t", image)
        return self.registry.push_layout(layout, "t", name)

    def push_converted(self, name: str = "app:1", *, extra: int = 2 * MIB) -> str:
        """The same, converted in place: one tag."""
        reference = self.push(name, extra=extra)
        self("convert", reference, reference)
        return reference


def end(process: "subprocess.Popen[str]", number: int) -> tuple[int, str]:
    """Send a signal to the whole foreground group, as a terminal's Ctrl-C does; exit status and stderr."""
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.leaks_checked
def test_a_command_that_is_interrupted_ends(tmp_path: Path) -> None:
    """`end` itself: the group is signalled and the status is the signal's."""
    process = subprocess.Popen(["sleep", "60"], stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert end(process, signal.SIGTERM) == (-signal.SIGTERM, "")
