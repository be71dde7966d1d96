"""Images pulled through the snapshotter by real clients: lazily whatever they send, in full where they must be."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastpull.lab.daemon import daemon_config
from fastpull.lab.layout import ImageInput, write_layout
from fastpull.lab.mounts import unmount_below
from fastpull.lab.process import CommandFailed, run, wait_until
from fastpull.lab.tools import Release
from fastpull.lab.workspace import kill_all
from layerformat.annotations import LayerRef
from layerformat.digest import Digest
from tests.harness import Daemon, PrivateContainerd, Registry, Workspace
from tests.harness.images import SampleImage, busybox_layer, noise
from tests.harness.layers import TestLayer, make_layer

pytestmark = [pytest.mark.system, pytest.mark.root]

MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"
MIB = 1 << 20
Images = Callable[[str], SampleImage]
TAG = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedImage:
    """Ours, ordinary, ours: every kind of neighbour once."""

    layout: Path
    layers: Sequence[TestLayer]
    """Those of ours."""
    diff_ids: Sequence[str]

    @property
    def chain_ids(self) -> list[str]:
        chain = [self.diff_ids[0]]
        for diff_id in self.diff_ids[1:]:
            chain.append(digest(f"{chain[-1]} {diff_id}".encode()))
        return chain


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def store(layout: Path, data: bytes) -> dict[str, Any]:
    (layout / "blobs" / "sha256" / digest(data).removeprefix("sha256:")).write_bytes(data)
    return {"digest": digest(data), "size": len(data)}


def descriptor(layout: Path, layer: TestLayer) -> dict[str, Any]:
    return {"mediaType": MEDIA_TYPE, **store(layout, layer.blob), "annotations": layer.ref.to_annotations()}


def read_blob(layout: Path, described: dict[str, Any]) -> dict[str, Any]:
    path = layout / "blobs" / "sha256" / described["digest"].removeprefix("sha256:")
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def edit_image(layout: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the manifest and the config of a layout's only image."""
    index = json.loads((layout / "index.json").read_text())
    manifest = read_blob(layout, index["manifests"][0])
    config = read_blob(layout, manifest["config"])
    edit(manifest, config)
    manifest["config"].update(store(layout, json.dumps(config).encode()))
    index["manifests"][0].update(store(layout, json.dumps(manifest).encode()))
    (layout / "index.json").write_text(json.dumps(index))


def mixed_image(layout: Path) -> MixedImage:
    """busybox between two layers of ours."""
    below, above = make_layer({"below": noise(300_000, 5)}), make_layer({"above": noise(2 * MIB, 6)})
    diff_ids: list[str] = []

    def edit(manifest: dict[str, Any], config: dict[str, Any]) -> None:
        manifest["layers"] = [descriptor(layout, below), *manifest["layers"], descriptor(layout, above)]
        config["rootfs"]["diff_ids"] = [below.ref.diff_id, *config["rootfs"]["diff_ids"], above.ref.diff_id]
        config["history"] = config["history"] * 3
        diff_ids.extend(config["rootfs"]["diff_ids"])

    write_layout(layout, TAG, ImageInput(layers=[busybox_layer()], command=["/bin/sh"]))
    edit_image(layout, edit)
    return MixedImage(layout=layout, layers=[below, above], diff_ids=diff_ids)


def broken_image(layout: Path) -> None:
    """busybox whose layer pretends to be ours, with an index that does not verify."""

    def edit(manifest: dict[str, Any], config: dict[str, Any]) -> None:
        [layer] = manifest["layers"]
        ref = LayerRef(
            version=1,
            digest=layer["digest"],
            size=layer["size"],
            index_offset=100,
            index_size=1000,
            index_digest=Digest(digest(b"another")),
            diff_id=config["rootfs"]["diff_ids"][0],
        )
        layer["annotations"] = ref.to_annotations()

    write_layout(layout, TAG, ImageInput(layers=[busybox_layer()], command=["/bin/sh"]))
    edit_image(layout, edit)


def status(daemon: Daemon) -> dict[str, Any]:
    answer = run(["curl", "-s", "--unix-socket", str(daemon.run_dir / "admin.sock"), "http://admin/v1/status"])
    document: dict[str, Any] = json.loads(answer)
    return document


def log_events(daemon: Daemon, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def check_lazy(containerd: PrivateContainerd, daemon: Daemon, image: MixedImage) -> None:
    """All layers are committed and find their parents; ours below the ordinary one was not even pulled.

    (containerd fetches everything from the first layer on that it has to unpack, whether it will need it or not.)
    """
    assert image.layers[0].ref.digest not in containerd.ctr("content", "ls", "-q").split()
    found = {info["labels"].get("containerd.io/snapshot.ref"): info for info in status(daemon)["snapshots"]}
    chain = image.chain_ids
    assert [found[each]["kind"] for each in chain] == ["committed"] * 3
    assert [found[each]["name"] for each in (chain[0], chain[2])] == [chain[0], chain[2]]
    assert found[chain[1]]["parent"] == chain[0]
    assert found[chain[2]]["parent"] == found[chain[1]]["name"]


def run_sums(containerd: PrivateContainerd, reference: str) -> list[str]:
    words = ["run", "--rm", "--net", "none", reference, "/bin/sha256sum", "/below", "/above"]
    printed = containerd.nerdctl(*words, snapshotter="fastpull")
    return [line.split()[0] for line in printed.splitlines()]


def expected_sums(image: MixedImage) -> list[str]:
    return [hashlib.sha256(data).hexdigest() for layer in image.layers for data in layer.files.values()]


def wait_connected(containerd: PrivateContainerd) -> None:
    """containerd tries a socket that refused it again after 3 s at most, and fails calls until then."""

    def connected() -> bool:
        try:
            containerd.ctr("snapshots", "--snapshotter", "fastpull", "ls", timeout_s=5)
        except CommandFailed:
            return False
        return True

    wait_until(connected, what="containerd to find the daemon again", timeout_s=10)


def wait_complete(daemon: Daemon) -> None:
    def complete() -> bool:
        layers = status(daemon)["fetcher"]["layers"]
        return bool(layers) and all(layer["state"] == "complete" for layer in layers)

    wait_until(complete, what="layers to be complete", timeout_s=30)


def test_nerdctl_pulls_lazily(
    containerd: PrivateContainerd, daemon: Daemon, registry: Registry, tmp_path: Path
) -> None:
    image = mixed_image(tmp_path / "image")
    reference = registry.push_layout(image.layout, TAG, "team/mixed:1")
    containerd.nerdctl("pull", "--quiet", reference, snapshotter="fastpull")
    check_lazy(containerd, daemon, image)
    # The first Prepare announced them all, so their indexes were there before they were asked for.
    assert len(log_events(daemon, "layer_admitted")) == 2
    assert run_sums(containerd, reference) == expected_sums(image)
    # Gone in containerd means gone here: rows, directories, mounts.
    containerd.nerdctl("rmi", "--force", reference, snapshotter="fastpull")
    assert status(daemon)["snapshots"] == []
    assert daemon.mounted_layers() == []
    assert list((daemon.root / "snapshots").iterdir()) == []


@pytest.mark.parametrize("release", ["current"], indirect=True)
def test_the_transfer_service_pulls_lazily(
    containerd: PrivateContainerd, daemon: Daemon, registry: Registry, tmp_path: Path
) -> None:
    image = mixed_image(tmp_path / "image")
    reference = registry.push_layout(image.layout, TAG, "team/mixed:1")
    containerd.pull(reference, snapshotter="fastpull", extra=["--hosts-dir", str(registry.hosts_dir())])
    check_lazy(containerd, daemon, image)
    chain = {info["labels"].get("containerd.io/snapshot.ref"): info for info in status(daemon)["snapshots"]}
    labels = chain[image.chain_ids[0]]["labels"]
    assert labels["containerd.io/snapshot/cri.image-ref"] == reference
    assert run_sums(containerd, reference) == expected_sums(image)


def test_a_layer_that_can_not_be_lazy_is_pulled(
    containerd: PrivateContainerd, daemon: Daemon, registry: Registry, tmp_path: Path
) -> None:
    broken_image(tmp_path / "image")
    reference = registry.push_layout(tmp_path / "image", TAG, "team/broken:1")
    containerd.nerdctl("pull", "--quiet", reference, snapshotter="fastpull")
    [told] = log_events(daemon, "layer_not_lazy")
    assert "index is not sha256:" in told["reason"]
    printed = containerd.nerdctl(
        "run", "--rm", "--net", "none", reference, "/bin/ls", "/bin/sh", snapshotter="fastpull"
    )
    assert printed == "/bin/sh\n"


@pytest.mark.parametrize("release", ["current"], indirect=True)
def test_many_clients_pull_one_image(
    containerd: PrivateContainerd, daemon: Daemon, registry: Registry, tmp_path: Path
) -> None:
    image = mixed_image(tmp_path / "image")
    reference = registry.push_layout(image.layout, TAG, "team/mixed:1")

    def pull(_: int) -> None:
        containerd.nerdctl("pull", "--quiet", reference, snapshotter="fastpull")

    with ThreadPoolExecutor(4) as clients:
        list(clients.map(pull, range(4)))
    check_lazy(containerd, daemon, image)
    assert len(log_events(daemon, "layer_admitted")) == 2
    assert run_sums(containerd, reference) == expected_sums(image)


def lasting_snapshots(daemon: Daemon) -> list[dict[str, Any]]:
    """All but views: nerdctl's own, of the image before its start, goes whenever containerd collects garbage."""
    found = [info for info in status(daemon)["snapshots"] if info["kind"] != "view"]
    assert found
    return found


def test_a_killed_daemon_is_not_missed(
    containerd: PrivateContainerd, daemon: Daemon, registry: Registry, tmp_path: Path
) -> None:
    image = mixed_image(tmp_path / "image")
    reference = registry.push_layout(image.layout, TAG, "team/mixed:1")
    words = ["run", "-d", "--name", "up", "--net", "none", reference, "/bin/sleep", "600"]
    containerd.nerdctl(*words, snapshotter="fastpull")
    before = lasting_snapshots(daemon)
    daemon.restart(kill=True)
    assert lasting_snapshots(daemon) == before
    wait_connected(containerd)
    assert containerd.nerdctl("exec", "up", "/bin/sha256sum", "/above").split()[0] == expected_sums(image)[1]
    assert run_sums(containerd, reference) == expected_sums(image)
    daemon.restart()
    wait_connected(containerd)
    assert containerd.nerdctl("exec", "up", "/bin/sha256sum", "/below").split()[0] == expected_sums(image)[0]
    containerd.nerdctl("rm", "-f", "up")


@pytest.mark.parametrize("release", ["current"], indirect=True)
def test_after_a_reboot_without_a_network_containers_start_again(
    containerd: PrivateContainerd, daemon: Daemon, workspace: Workspace, tmp_path: Path
) -> None:
    image = mixed_image(tmp_path / "image")
    with Registry(workspace, name="gone") as registry:
        reference = registry.push_layout(image.layout, TAG, "team/mixed:1")
        words = ["--name", "kept", "--net", "none", reference, "/bin/sha256sum", "/above"]
        daemon.config.write_text(daemon_config(registry))
        daemon.restart()
        containerd.nerdctl("--insecure-registry", "run", *words, snapshotter="fastpull")
        wait_complete(daemon)
    # What a reboot takes: processes, mounts, and the run directory.
    daemon.stop()
    keeper = daemon.keeper_pid()
    assert keeper is not None
    assert unmount_below(daemon.root)
    kill_all([keeper])
    shutil.rmtree(daemon.run_dir)
    daemon.start()
    assert daemon.mounted_layers() == []
    wait_connected(containerd)
    assert expected_sums(image)[1] in containerd.nerdctl("start", "-a", "kept", snapshotter="fastpull")
    assert len(daemon.mounted_layers()) == 2
    containerd.nerdctl("rm", "-f", "kept")


@pytest.mark.parametrize("ids", [True, False], ids=["mapped-mounts", "changed-owners"])
def test_a_container_in_a_user_namespace(
    workspace: Workspace, current_release: Release, registry: Registry, tmp_path: Path, ids: bool
) -> None:
    """With the capability the kernel maps the ids and nothing is copied; without, containerd changes every owner."""
    image = mixed_image(tmp_path / "image")
    reference = registry.push_layout(image.layout, TAG, "team/mixed:1")
    config = f"remap_ids = {str(ids).lower()}\n" + daemon_config(registry)
    socket = workspace.path / "c" / "c.sock"
    with Daemon(workspace, containerd_address=socket, config=config) as daemon:
        containerd = PrivateContainerd(workspace, current_release, proxies={"fastpull": daemon.proxy})
        if ids:
            text = containerd.config.read_text()
            entry = f'  address = "{daemon.address}"\n'
            containerd.config.write_text(text.replace(entry, entry + '  capabilities = ["remap-ids"]\n'))
        for directory in (workspace.path.parent, workspace.path, containerd.dir):
            directory.chmod(0o711)  # the mapped root has to come by on its way to the bundle
        with containerd:
            containerd.pull(reference, snapshotter="fastpull", extra=["--hosts-dir", str(registry.hosts_dir())])
            maps = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", *(["--remap-labels"] if ids else [])]
            script = "stat -c %u:%g / /above /bin/busybox; sha256sum /above; touch /new"
            words = ["run", "--snapshotter", "fastpull", *maps, reference, "mapped", "/bin/sh", "-c", script]
            printed = containerd.ctr(*words).split()
            usage = {info["name"]: info for info in status(daemon)["snapshots"] if info["kind"] == "active"}
            owners = [path.parent.stat().st_uid for path in (daemon.root / "snapshots").glob("*/fs/new")]
            copied = list((daemon.root / "snapshots").glob("*/fs/above"))
            containerd.ctr("containers", "rm", "mapped")
    assert printed[:3] == ["0:0"] * 3
    assert printed[3] == expected_sums(image)[1]
    assert len(usage) == 1
    assert owners == [100_000]
    assert bool(copied) is not ids


@pytest.mark.parametrize("release", ["debian"], indirect=True)
def test_a_client_without_the_protocol_unpacks_the_same_layers(
    containerd: PrivateContainerd, daemon: Daemon, registry: Registry, sample_images: Images
) -> None:
    """`ctr` of containerd 1.6 fetches everything, then unpacks: our layers are ordinary layers then."""
    image = sample_images("zoo")
    source = registry.push_layout(image.layout, image.tag, "team/zoo:plain")
    reference = registry.reference("team/zoo:1")
    run([Path(sys.executable).with_name("fastpull"), "convert", source, reference])
    containerd.pull(reference, snapshotter="fastpull")
    assert status(daemon)["fetcher"]["layers"] == []
    words = ["/bin/sh", "-c", "cd /zoo; (sha256sum small some-frames; ls opaque; ls removed) 2>&1; true"]
    ordinary = containerd.run(reference, *words, snapshotter="fastpull")
    # The same tag, now by a client that speaks the protocol.
    containerd.nerdctl("rmi", "--force", reference, snapshotter="fastpull")
    containerd.nerdctl("pull", "--quiet", reference, snapshotter="fastpull")
    assert len(status(daemon)["fetcher"]["layers"]) == 3
    lazy = containerd.run(reference, *words, snapshotter="fastpull")
    assert lazy == ordinary
    assert "shown" in lazy
    assert "No such file" in lazy
