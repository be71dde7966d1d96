"""Images pulled through the snapshotter by real clients: lazily whatever the client sends, and ordinary where they must be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastpull.lab.layout import ImageInput, write_layout
from fastpull.lab.process import run
from fastpull.lab.tools import Release
from tests.harness import Daemon, PrivateContainerd, Registry, Workspace
from tests.harness.images import busybox_layer, noise
from tests.harness.layers import TestLayer, make_layer

pytestmark = [pytest.mark.system, pytest.mark.root]

MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"
MIB = 1 << 20


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


def mixed_image(layout: Path, *, break_index: bool = False) -> MixedImage:
    """busybox between two layers of ours. `break_index`: the upper one's annotations name an index that is not there."""
    below = make_layer({"below": noise(300_000, 5)})
    above = make_layer({"above": noise(2 * MIB, 6)})
    write_layout(layout, "mixed", ImageInput(layers=[busybox_layer()], command=["/bin/sh"]))
    index = json.loads((layout / "index.json").read_text())
    blobs = layout / "blobs" / "sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"].removeprefix("sha256:")).read_text())
    config = json.loads((blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_text())
    top = descriptor(layout, above)
    if break_index:
        top["annotations"]["containerd.io/snapshot/fastpull.index-digest"] = digest(b"another")
    manifest["layers"] = [descriptor(layout, below), *manifest["layers"], top]
    diff_ids = [below.ref.diff_id, *config["rootfs"]["diff_ids"], above.ref.diff_id]
    config["rootfs"]["diff_ids"] = diff_ids
    config["history"] = config["history"] * 3
    manifest["config"].update(store(layout, json.dumps(config).encode()))
    index["manifests"][0].update(store(layout, json.dumps(manifest).encode()))
    (layout / "index.json").write_text(json.dumps(index))
    return MixedImage(layout=layout, layers=[below, above], diff_ids=diff_ids)


def status(daemon: Daemon) -> dict[str, Any]:
    answer = run(["curl", "-s", "--unix-socket", str(daemon.run_dir / "admin.sock"), "http://admin/v1/status"])
    document: dict[str, Any] = json.loads(answer)
    return document


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
    printed = containerd.nerdctl(
        "run", "--rm", "--net", "none", reference, "/bin/sha256sum", "/below", "/above", snapshotter="fastpull"
    )
    return [line.split()[0] for line in printed.splitlines()]


def expected_sums(image: MixedImage) -> list[str]:
    return [hashlib.sha256(data).hexdigest() for layer in image.layers for data in layer.files.values()]


def test_nerdctl_pulls_lazily(
    containerd: PrivateContainerd, daemon: Daemon, registry: Registry, tmp_path: Path
) -> None:
    image = mixed_image(tmp_path / "image")
    reference = registry.push_layout(image.layout, "mixed", "team/mixed:1")

    containerd.nerdctl("pull", "--quiet", reference, snapshotter="fastpull")
    check_lazy(containerd, daemon, image)
    assert run_sums(containerd, reference) == expected_sums(image)
    check_lazy(containerd, daemon, image)
    # Gone in containerd means gone here: rows, directories, mounts.
    containerd.nerdctl("rmi", "--force", reference, snapshotter="fastpull")
    assert status(daemon)["snapshots"] == []
    assert daemon.mounted_layers() == []
    assert list((daemon.root / "snapshots").iterdir()) == []
