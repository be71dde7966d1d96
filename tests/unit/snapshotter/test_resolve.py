"""From what a client sends to a layer, its origins and its image; containerd answers over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fetcher.registry.reference import Origin
from layerformat.annotations import LayerRef
from layerformat.digest import sha256_digest
from layerformat.errors import FormatError
from snapshotter.containerd import Containerd
from snapshotter.model import SnapshotKey
from snapshotter.provider import Request
from snapshotter.resolve import CRI_IMAGE, CRI_LAYER, CRI_MANIFEST, MAX_MANIFESTS, REMEMBERED, ImageResolver
from tests.unit.snapshotter.content_store import ContentStore, Namespace
from tests.unit.snapshotter.layer_directories import layer_ref

A, B, C = layer_ref("a"), layer_ref("b"), layer_ref("c")
ORDINARY = sha256_digest(b"ordinary")


def descriptor(ref: LayerRef) -> dict[str, Any]:
    return {"digest": ref.digest, "size": ref.size, "annotations": ref.to_annotations()}


LAYERS = [descriptor(A), {"digest": ORDINARY, "size": 5}, descriptor(B)]
HUB = Origin(host="docker.io", repository="team/app")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ContentStore]:
    made = ContentStore()
    async with made.serve(tmp_path / "c.sock"):
        yield made


@pytest.fixture
async def resolver(store: ContentStore, tmp_path: Path) -> AsyncIterator[ImageResolver]:
    async with Containerd(str(tmp_path / "c.sock")) as containerd:
        yield ImageResolver(containerd, lambda: ("reg.corp:5000", "other.corp:5001"))


def request(
    labels: Mapping[str, str], *, depth: int = 0, namespace: str | None = "ns", parent: str | None = None
) -> Request:
    given = None if parent is None else SnapshotKey(parent)
    return Request(target="chain", parent=given, labels=labels, namespace=namespace, depth=depth)


async def test_annotations_alone_are_enough(store: ContentStore, resolver: ImageResolver) -> None:
    manifest = store.add_manifest(LAYERS, sources={"docker.io": "team/app"})
    found = await resolver.resolve(request(A.to_annotations()))
    assert found is not None and found.image is not None
    assert (found.ref, found.origins) == (A, (HUB,))
    assert (found.image.layers, found.image.manifest_digest) == ((A, B), manifest)
    assert (found.image.name, found.image.origins) == (None, (HUB,))


async def test_cri_labels_add_their_reference(store: ContentStore, resolver: ImageResolver) -> None:
    store.add_manifest(LAYERS, sources={"docker.io": "library/old"})
    labels = {**A.to_annotations(), CRI_IMAGE: "reg.corp:5000/team/app:1", CRI_LAYER: A.digest}
    found = await resolver.resolve(request(labels))
    assert found is not None and found.image is not None
    expected = (
        Origin(host="reg.corp:5000", repository="team/app"),
        Origin(host="docker.io", repository="library/old"),
    )
    assert found.origins == found.image.origins == expected
    assert found.image.name == "reg.corp:5000/team/app:1"


async def test_labels_without_annotations_find_them_in_the_manifest(
    store: ContentStore, resolver: ImageResolver
) -> None:
    manifest = store.add_manifest(LAYERS, sources={"docker.io": "team/app"})
    found = await resolver.resolve(request({CRI_LAYER: B.digest, CRI_MANIFEST: manifest}, depth=2))
    assert found is not None
    assert (found.ref, found.origins) == (B, (HUB,))
    assert await resolver.resolve(request({CRI_LAYER: ORDINARY, CRI_MANIFEST: manifest}, depth=1)) is None


async def test_a_layer_that_is_not_ours_asks_nobody(store: ContentStore, resolver: ImageResolver) -> None:
    assert await resolver.resolve(request({})) is None
    assert await resolver.resolve(request({"containerd.io/snapshot/other": "x"})) is None
    assert store.calls == []


async def test_annotations_of_another_blob_are_stale(store: ContentStore, resolver: ImageResolver) -> None:
    """Recompressed by a tool that kept the annotations."""
    with pytest.raises(FormatError, match="stale"):
        await resolver.resolve(request({**A.to_annotations(), CRI_LAYER: ORDINARY}))
    recompressed = {"digest": ORDINARY, "size": 5, "annotations": A.to_annotations()}
    store.add_manifest([recompressed], sources={"docker.io": "team/app"})
    assert await resolver.resolve(request({CRI_LAYER: ORDINARY})) is None


async def test_one_image_is_looked_up_once(store: ContentStore, resolver: ImageResolver) -> None:
    store.add_manifest(LAYERS, sources={"docker.io": "team/app"})
    both = [request(A.to_annotations()), request(B.to_annotations(), depth=2)]
    found = await asyncio.gather(*(resolver.resolve(each) for each in both * 10))
    assert len({id(each.image) for each in found if each is not None}) == 1
    assert store.calls.count("Read") == 1


async def test_a_ported_registry_is_found_again(store: ContentStore, resolver: ImageResolver) -> None:
    store.add_manifest(LAYERS, sources={"reg.corp": "a/b,c/d", "seen.corp": "e"})
    store.namespaces["ns"].names = ["seen.corp:6000/x/y:1", "not a reference", "docker.io/library/z:1"]
    found = await resolver.resolve(request(A.to_annotations()))
    assert found is not None
    assert [str(origin) for origin in found.origins] == [
        "reg.corp:5000/a/b",
        "reg.corp:5000/c/d",
        "reg.corp/a/b",
        "reg.corp/c/d",
        "seen.corp:6000/e",
        "seen.corp/e",
    ]


async def test_the_image_being_pulled_is_preferred_and_all_sources_count(
    store: ContentStore, resolver: ImageResolver
) -> None:
    store.add_manifest([descriptor(C), descriptor(A)], sources={"docker.io": "elsewhere"}, updated_s=30)
    store.add_manifest([descriptor(A), descriptor(B)], sources={"docker.io": "older"}, updated_s=10)
    newest = store.add_manifest([descriptor(A), descriptor(C)], sources={"docker.io": "newer"}, updated_s=20)
    found = await resolver.resolve(request(A.to_annotations(), depth=0))
    assert found is not None and found.image is not None
    assert found.image.manifest_digest == newest
    assert [origin.repository for origin in found.origins] == ["newer", "older"]


async def test_a_base_of_many_images_is_read_from_few(store: ContentStore, resolver: ImageResolver) -> None:
    for number in range(200):
        top = {"digest": sha256_digest(b"%d" % number), "size": 1}
        store.add_manifest([descriptor(A), top], sources={"docker.io": f"app{number}"}, updated_s=1 + number * 7 % 200)
    newest = store.add_manifest([descriptor(A), descriptor(C)], sources={"docker.io": "newest"}, updated_s=500)
    found = await resolver.resolve(request(A.to_annotations()))
    assert found is not None and found.image is not None
    assert (found.image.manifest_digest, found.origins[0].repository) == (newest, "newest")
    assert store.calls.count("Read") == MAX_MANIFESTS


async def test_a_layer_in_an_unexpected_place_is_found(store: ContentStore, resolver: ImageResolver) -> None:
    manifest = store.add_manifest(LAYERS, sources={"docker.io": "team/app"})
    found = await resolver.resolve(request(B.to_annotations(), depth=17))
    assert found is not None and found.image is not None
    assert found.image.manifest_digest == manifest


@pytest.mark.parametrize("namespace", [None, "other"])
async def test_without_containerd_the_labels_must_do(
    store: ContentStore, resolver: ImageResolver, namespace: str | None
) -> None:
    store.add_manifest(LAYERS, sources={"docker.io": "team/app"})
    labels = {**A.to_annotations(), CRI_IMAGE: "docker.io/team/app:1"}
    found = await resolver.resolve(request(labels, namespace=namespace))
    assert found is not None
    assert (found.ref, found.origins, found.image) == (A, (HUB,), None)


async def test_containerd_may_be_down(store: ContentStore, resolver: ImageResolver) -> None:
    store.down = True
    found = await resolver.resolve(request({**A.to_annotations(), CRI_IMAGE: "docker.io/team/app:1"}))
    assert found is not None
    assert (found.origins, found.image) == ((HUB,), None)
    # And come back: nothing was remembered.
    store.down = False
    store.add_manifest(LAYERS, sources={"docker.io": "team/app"})
    found = await resolver.resolve(request(A.to_annotations()))
    assert found is not None and found.origins == (HUB,)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"layers": 5}',
        b'{"layers": [5, {"digest": 7}]}',
        b'{"layers": [{"digest": "DIGEST", "annotations": {"containerd.io/snapshot/fastpull.version": 1}}]}',
        b'{"layers": [{"digest": "DIGEST", "annotations": {"containerd.io/snapshot/fastpull.version": "9"}}]}',
    ],
)
async def test_a_blob_that_is_no_manifest_does_no_harm(
    store: ContentStore, resolver: ImageResolver, body: bytes
) -> None:
    labels = {"containerd.io/gc.ref.content.l.0": str(A.digest)}
    store.add_blob(body.replace(b"DIGEST", A.digest.encode()), labels)
    found = await resolver.resolve(request({**A.to_annotations(), CRI_IMAGE: "docker.io/team/app:1"}))
    assert found is not None
    assert (found.ref, found.origins) == (A, (HUB,))
    assert await resolver.resolve(request({CRI_LAYER: A.digest})) is None


async def test_what_is_remembered_is_bounded(store: ContentStore, resolver: ImageResolver) -> None:
    layers = [{"digest": sha256_digest(b"%d" % number), "size": 1} for number in range(REMEMBERED + 500)]
    store.namespaces["ns"] = Namespace()
    store.add_manifest([descriptor(A), *layers], sources={"docker.io": "team/app"})
    await resolver.resolve(request(A.to_annotations()))
    assert len(resolver._images) == REMEMBERED
