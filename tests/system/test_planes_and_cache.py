"""The other data planes, content reuse and the cache's quota, under a real containerd."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastpull.lab.daemon import daemon_config
from fastpull.lab.layout import ImageInput, LayerInput, Member, members, write_layout
from fastpull.lab.process import run, wait_until
from fastpull.lab.tools import Release
from fetcher import kernel
from tests.harness import UNRECORDED, Daemon, PrivateContainerd, Registry, ShapedLink, Workspace, trees
from tests.harness.images import MIB, busybox_layer, noise
from tests.harness.page_cache import cool
from tests.system.test_harness_end_to_end import Images, tree_of

pytestmark = [pytest.mark.system, pytest.mark.root]


@contextmanager
def running(
    workspace: Workspace, release: Release, registry: Registry, *extra: str, config: str = ""
) -> Iterator[tuple[PrivateContainerd, Daemon]]:
    """A containerd with a daemon of its own flags and configuration."""
    socket = workspace.path / "c" / "c.sock"
    with (
        Daemon(workspace, containerd_address=socket, config=daemon_config(registry) + config, extra=extra) as daemon,
        PrivateContainerd(
            workspace, release, proxies={"fastpull": daemon.proxy}, hosts_dir=registry.hosts_dir()
        ) as containerd,
    ):
        yield containerd, daemon
    assert not daemon.left, daemon.left


def convert(layout: Path, tag: str, registry: Registry, name: str, scratch: Path) -> str:
    reference = registry.reference(name)
    command = [str(Path(sys.executable).with_name("fastpull")), "convert", "--plain-http", registry.host]
    run([*command, f"oci:{layout}:{tag}", reference], env={"DOCKER_CONFIG": str(scratch)})
    return reference


@pytest.mark.parametrize("plane", ["fuse", "eager"])
def test_every_plane_shows_the_same_image(
    workspace: Workspace,
    current_release: Release,
    registry: Registry,
    sample_images: Images,
    tmp_path: Path,
    plane: str,
) -> None:
    image = sample_images("zoo")
    reference = convert(image.layout, image.tag, registry, "sample/zoo:1", tmp_path)
    with running(workspace, current_release, registry, "--data-plane", plane) as (containerd, _):
        containerd.pull(reference, snapshotter="overlayfs")
        containerd.pull(reference, snapshotter="fastpull")
        wanted = tree_of(containerd, reference, "overlayfs", tmp_path / "o")
        assert len(wanted) > 1500
        assert trees.differences(wanted, tree_of(containerd, reference, "fastpull", tmp_path / "f")) == []
        command = ("run", "--rm", "--net", "host", reference, "/bin/busybox", "true")
        containerd.nerdctl(*command, snapshotter="fastpull")


def test_a_view_finds_layers_that_left_memory_mounted_by_direct_io(
    workspace: Workspace, current_release: Release, registry: Registry, tmp_path: Path
) -> None:
    """The snapshotter asks for the layers' mounts at each new snapshot."""
    reference = convert(versions(tmp_path)[0], "t", registry, "app:1", tmp_path)
    with running(workspace, current_release, registry, config=UNRECORDED) as (containerd, daemon):
        containerd.pull(reference, snapshotter="fastpull")
        layers = list((daemon.root / "layers").iterdir())
        with trees.mounted(containerd, reference, "fastpull", tmp_path / "view") as view:
            wanted = (view / "big").read_bytes()
            wait_until(lambda: all((each / "verified").exists() for each in layers), timeout_s=60, what="every layer")
            for each in layers:
                cool(each / "tar")
        with trees.mounted(containerd, reference, "fastpull", tmp_path / "view") as view:
            assert (view / "big").read_bytes() == wanted
            direct = {mount.point for mount in kernel.mounts() if "directio" in mount.options}
            large = max(layers, key=lambda each: (each / "tar").stat().st_size)
            assert large / "fs" in direct


def versions(directory: Path) -> list[Path]:
    """Two builds of one image: a large file that is the same, a small one that is not, in one layer."""
    built = []
    for number in (1, 2):
        app = [
            Member(name="big", data=noise(16 * MIB, 5), mode=0o644),
            Member(name="version", data=noise(64 << 10, number), mode=0o644),
        ]
        layout = directory / f"v{number}"
        layers = [busybox_layer(), LayerInput(write=members(app))]
        write_layout(layout, "t", ImageInput(layers=layers, command=["/bin/sha256sum", "/big", "/version"]))
        built.append(layout)
    return built


def test_a_new_build_costs_what_changed(
    workspace: Workspace, current_release: Release, slow_registry: Registry, link: ShapedLink, tmp_path: Path
) -> None:
    first, second = (
        convert(layout, "t", slow_registry, f"app:{number}", tmp_path)
        for number, layout in enumerate(versions(tmp_path), start=1)
    )
    with running(workspace, current_release, slow_registry) as (containerd, _):
        containerd.nerdctl("run", "--rm", "--net", "host", first, snapshotter="fastpull")
        before = link.received_bytes()
        containerd.nerdctl("run", "--rm", "--net", "host", second, snapshotter="fastpull")
        # One frame with the small file and the tar's end, an index and manifests; not the 16 MiB.
        assert link.received_bytes() - before < MIB


def test_over_quota_what_no_image_uses_is_given_up(
    workspace: Workspace, current_release: Release, registry: Registry, tmp_path: Path
) -> None:
    first, second = (
        convert(layout, "t", registry, f"app:{number}", tmp_path)
        for number, layout in enumerate(versions(tmp_path), start=1)
    )
    quota = f"[fetcher.cache]\nmax_bytes = {20 * MIB}\nmin_free_bytes = 0\n"
    with running(workspace, current_release, registry, config=quota) as (containerd, daemon):
        layers = daemon.root / "layers"
        for reference in (first, second):
            containerd.nerdctl("run", "--rm", "--net", "host", reference, snapshotter="fastpull")
        assert len(list(layers.iterdir())) == 3, "layers in use are never given up"
        containerd.nerdctl("rmi", "-f", first)
        containerd.ctr("content", "prune", "references")
        wait_until(lambda: len(list(layers.iterdir())) == 2, timeout_s=30, what="the first build's layer to go")
        containerd.nerdctl("run", "--rm", "--net", "host", second, snapshotter="fastpull")
