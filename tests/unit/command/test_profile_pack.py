"""How a pack is made of an image in a registry."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from fastpull import profile_pack
from fastpull.profile_pack import push_pack
from fastpull.profile_target import Target
from fetcher.profiles import packs
from fetcher.profiles.document import ProfileError
from fetcher.profiles.pack import MEDIA_TYPE
from fetcher.profiles.profile import Profile, Read
from fetcher.registry import OCI_MANIFEST, Reference, RegistryClient
from layerformat.errors import FormatError
from tests.harness.fake_registry import FakeRegistry, Fault
from tests.harness.layers import make_layer

REPOSITORY = "team/app"
FRAME = 16 << 10
LAYERS = [
    make_layer(
        {"data": random.Random(seed).randbytes(40 * FRAME)},
        frame_bytes=FRAME,
    )
    for seed in (1, 2)
]
TABLES = {layer.ref.diff_id: layer.index.frames for layer in LAYERS}
READS = (Read(1, 0, 30 * FRAME), Read(0, 7 * FRAME, 1), Read(1, 35 * FRAME, 1), Read(0, 8 * FRAME, 2 * FRAME))
PROFILE = Profile(layers=tuple(TABLES), reads=READS, recorded_at=datetime(2026, 3, 1, tzinfo=UTC), duration_ms=1)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        for layer in LAYERS:
            registry.add_blob(REPOSITORY, layer.blob)
        registry.add_manifest(REPOSITORY, {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}, "1")
        yield registry


async def target(client: RegistryClient, registry: FakeRegistry) -> Target:
    reference = Reference.parse(f"{registry.host}/{REPOSITORY}:1")
    manifest = (await client.manifest(reference.origin, "1")).descriptor
    return Target(reference=reference, manifest=manifest, layers=tuple(layer.ref for layer in LAYERS))


async def test_it_has_the_frames_in_the_profiles_order(
    client: RegistryClient, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_pack, "PART_BYTES", 3 * FRAME)
    # The first of the reads that are under way at a time is the last to come.
    registry.fault(Fault(path=LAYERS[1].ref.digest, delay_s=0.1))
    image = await target(client, registry)
    pack, _ = await push_pack(client, image, PROFILE, TABLES)
    wanted = [(1, number) for number in range(30)] + [(0, 7), (1, 35), (0, 8), (0, 9)]
    expected = b""
    for layer, number in wanted:
        frame = LAYERS[layer].index.frames[number]
        expected += LAYERS[layer].blob[frame.offset : frame.offset + frame.size]
    found = await packs.find(client, image.origin, image.digest, {layer.ref.digest for layer in LAYERS})
    assert found is not None
    assert registry.blobs[found.blob.digest] == expected
    assert (pack.size, len(pack.ranges)) == (len(expected), 4)
    assert len(registry.seen("GET", LAYERS[1].ref.digest)) > 10


async def test_what_the_registry_has_wrong_is_not_packed(client: RegistryClient, registry: FakeRegistry) -> None:
    registry.fault(Fault(path=LAYERS[0].ref.digest, corrupt_at=9, times=None))
    image = await target(client, registry)
    with pytest.raises(FormatError, match=f"layer {LAYERS[0].ref.digest}: frame 7"):
        await push_pack(client, image, PROFILE, TABLES)
    assert await client.referrers(image.origin, image.digest, MEDIA_TYPE) == []


async def test_a_profile_of_another_image_gives_no_pack(client: RegistryClient, registry: FakeRegistry) -> None:
    image = await target(client, registry)
    other = make_layer({"data": b"another"})
    profile = Profile(
        layers=(other.ref.diff_id,), reads=(Read(0, 0, 1),), recorded_at=PROFILE.recorded_at, duration_ms=1
    )
    with pytest.raises(ProfileError, match="nothing"):
        await push_pack(client, image, profile, TABLES)
