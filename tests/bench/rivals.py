"""Other lazy snapshotters, each on its own format, with the configuration it comes with. `ALL` names them.

Their daemons are no part of this project: what is not on PATH is left out (`make rivals` builds them).
"""

import hashlib
import json
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from fastpull.demo.bench import CONVERT_TIMEOUT_S, Bench, Host, Mode
from fastpull.demo.image import Layout
from fastpull.lab import mounts, tools
from fastpull.lab.cost import children
from fastpull.lab.daemon import listening
from fastpull.lab.mounts import Mount
from fastpull.lab.process import LabError, Service, run
from fastpull.lab.workspace import kill_all
from tests.bench.images import kept

# What nydus-snapshotter ships as nydusd-config.fusedev.json, but for `scheme`.
_NYDUSD = {
    "device": {
        "backend": {
            "type": "registry",
            "config": {"scheme": "http", "timeout": 5, "connect_timeout": 5, "retry_limit": 2},
        },
        "cache": {"type": "blobcache"},
    },
    "mode": "direct",
    "digest_validate": False,
    "iostats_files": False,
    "enable_xattr": True,
    "amplify_io": 1 << 20,
    "fs_prefetch": {"enable": True, "threads_count": 8, "merging_size": 1 << 20, "prefetch_all": True},
}


class Rival(Protocol):
    """A snapshotter. By its `name` nerdctl knows which labels it needs; it is the mode's name too."""

    @property
    def name(self) -> str: ...
    @property
    def programs(self) -> tuple[str, ...]:
        """The daemon, which takes --address, --root and --config; what makes its format; what else it needs."""

    def config(self, directory: Path, registry: str, containerd: Path) -> str:
        """The daemon's TOML: what no default can know. Other files that it names are written to `directory`."""

    def convert(self, bench: Bench, image: Layout, reference: str, made: Path) -> None:
        """Write the image, which the registry has as `reference`, in this snapshotter's format to a new OCI layout."""


def _crane(*words: str) -> None:
    """skopeo 1.9 would write an image index anew and lose what it does not know of it."""
    run([str(tools.find("crane")), "--insecure", *words], timeout_s=CONVERT_TIMEOUT_S)


def _plain_http(registry: str, mirror: str) -> str:
    return f'[[resolver.host."{registry}".mirrors]]\nhost = "{mirror}"\ninsecure = true\n'


def _nerdctl_convert(bench: Bench, reference: str, made: Path, *kind: str) -> None:
    target = bench.registry.reference("bench/converting:1")
    with bench.node(Mode(name="converting", snapshotter="overlayfs", reference=reference)) as node:
        environment = {**node.containerd.client_env(), "TMPDIR": str(bench.workspace.directory("tmp"))}
        for command in (
            ["pull", "--quiet", "--unpack=false", reference],
            ["image", "convert", *kind, "--oci", reference, target],
            ["push", "--quiet", target],
        ):
            run([*node.containerd.nerdctl_argv(), *command], env=environment, timeout_s=CONVERT_TIMEOUT_S)
    _crane("pull", "--format=oci", target, str(made))


class Stargz:
    """eStargz, converted by nerdctl without knowledge of what a start reads."""

    name = "stargz"
    programs = "containerd-stargz-grpc", "nerdctl"

    def config(self, directory: Path, registry: str, containerd: Path) -> str:
        return _plain_http(registry, registry)

    def convert(self, bench: Bench, image: Layout, reference: str, made: Path) -> None:
        _nerdctl_convert(bench, reference, made, "--estargz")


class Soci:
    """The image's own layers, and an index of them in one image index with the manifest (SOCI v2)."""

    name = "soci"
    programs = "soci-snapshotter-grpc", "soci"

    def config(self, directory: Path, registry: str, containerd: Path) -> str:
        # Its mirrors are parsed as URLs, and an address with a port is none.
        return f'{_plain_http(registry, f"http://{registry}")}[content_store]\ncontainerd_address = "{containerd}"\n'

    def convert(self, bench: Bench, image: Layout, reference: str, made: Path) -> None:
        soci = [str(tools.find("soci")), "convert", "--standalone", "--format", "oci-dir"]
        temporary = {"TMPDIR": str(bench.workspace.directory("tmp"))}
        run([*soci, str(image.directory), str(made)], env=temporary, timeout_s=CONVERT_TIMEOUT_S)


class Nydus:
    """RAFS, converted by nerdctl; a nydusd, a child of the daemon, serves the image."""

    name = "nydus"
    programs = "containerd-nydus-grpc", "nydus-image", "nydusd"

    def config(self, directory: Path, registry: str, containerd: Path) -> str:
        (directory / "nydusd.json").write_text(json.dumps(_NYDUSD))
        # It wants a million files, which root may not ask for in every container, and ends where it may not.
        nydusd = directory / "nydusd"
        nydusd.write_text(f'#!/bin/sh\nexec {tools.find("nydusd")} "$@" --rlimit-nofile 0\n')
        nydusd.chmod(0o755)
        return f"""version = 1
[system]
address = "{directory}/system.sock"
[daemon]
nydusd_config = "{directory}/nydusd.json"
nydusd_path = "{nydusd}"
nydusimage_path = "{tools.find("nydus-image")}"
[log]
log_to_stdout = true
"""

    def convert(self, bench: Bench, image: Layout, reference: str, made: Path) -> None:
        # As ours is compressed; what nerdctl would choose, LZ4, makes half as much again to fetch.
        _nerdctl_convert(bench, reference, made, "--nydus", "--nydus-compressor", "zstd")


ALL: tuple[Rival, ...] = (Stargz(), Soci(), Nydus())


def missing(rival: Rival) -> list[str]:
    """Names of its programs that are not on PATH."""
    return [name for name in rival.programs if tools.find_optional(name) is None]


def push(bench: Bench, cache: Path, image: Layout, rival: Rival, reference: str) -> str:
    """The image, which the registry has as `reference`, in the rival's format; returns its new reference."""
    pushed = bench.registry.reference(f"bench/{rival.name}:1")
    _crane("push", str(_converted(bench, cache, image, rival, reference)), pushed)
    return pushed


def _converted(bench: Bench, cache: Path, image: Layout, rival: Rival, reference: str) -> Path:
    """A layout that is kept for as long as neither the image nor the converting program changes."""
    with tools.find(rival.programs[1]).open("rb") as program:
        code = hashlib.file_digest(program, "sha256").hexdigest()

    def build(made: Path) -> None:
        rival.convert(bench, image, reference, made)

    name = image.directory.name.rpartition("-")[0]
    return kept(cache, f"{name}-{rival.name}", (image.directory.name, code), build)


class RivalDaemon:
    """A rival's daemon, all it has in the workspace; with it end its children and its mounts."""

    def __init__(self, bench: Bench, rival: Rival, name: str, containerd: Path) -> None:
        directory = bench.workspace.directory(name)
        self.proxy = directory / "s.sock", directory / "root"
        self._directory = directory
        config = directory / "config.toml"
        config.write_text(rival.config(directory, bench.registry.host, containerd))
        address, root = self.proxy
        flags: list[str | Path] = ["--address", address, "--root", root, "--config", config]
        environment = {**bench.workspace.env, "DOCKER_CONFIG": str(directory / "docker")}
        self._service = Service([tools.find(rival.programs[0]), *flags], log=directory / "daemon.log", env=environment)

    @property
    def pid(self) -> int:
        return self._service.pid

    def __enter__(self) -> Self:
        try:
            self._service.start()
            self._service.wait_ready(lambda: listening(self.proxy[0]), timeout_s=30)
        except BaseException:
            self._end()
            raise
        return self

    def _end(self) -> list[Mount]:
        """Returns what was mounted."""
        served = children(self.pid) if self._service.running() else []
        self._service.stop()
        kill_all(served)
        return mounts.unmount_below(self._directory)

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        mounted = self._end()
        # Each of them falls back to downloading the whole image without a word to whoever asked.
        if kind is None and not any(mount.kind.startswith("fuse") for mount in mounted):
            raise LabError(f"{self._service}: no layer was mounted lazily\n{self._service.log_tail()}")


def host(bench: Bench, mode: Mode) -> AbstractContextManager[Host]:
    """Where a mode starts: beside the daemon of the rival whose snapshotter it names, or beside ours."""
    for rival in ALL:
        if rival.name == mode.snapshotter:
            return bench.host(mode, partial(RivalDaemon, bench, rival))
    return bench.node(mode)
