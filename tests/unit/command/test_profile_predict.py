"""How a profile is predicted of an image in a registry."""

import json
import random
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from fastpull import profile_predict
from fastpull.profile_predict import predict_profile
from fastpull.profile_target import Target
from fetcher.profiles.profile import Profile
from fetcher.registry import OCI_MANIFEST, DigestMismatch, Reference, RegistryClient, RegistryError
from layerformat.digest import sha256_digest
from layerformat.errors import FormatError
from tests.harness.fake_registry import FakeRegistry, Fault
from tests.harness.layers import TestLayer, make_layer

REPOSITORY = "team/app"
FRAME = 16 << 10
NOISE = random.Random(5)
SYSTEM = make_layer(
    {
        "usr/bin/python3.11": NOISE.randbytes(3 * FRAME),
        "usr/lib/python3.11/os.py": b"# os",
        "usr/lib/python3.11/unused": NOISE.randbytes(40 * FRAME),
        "usr/lib/python3.11/json.py": b"# json" + bytes(2 * FRAME),
    },
    frame_bytes=FRAME,
)
APP = make_layer(
    {"app/main.py": b"import json, late", "app/unused": NOISE.randbytes(20 * FRAME), "app/late.py": b"import os"},
    frame_bytes=FRAME,
)
LAYERS = (SYSTEM, APP)
COMMAND = {"Cmd": ["/usr/bin/python3.11", "/app/main.py"]}


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        for layer in LAYERS:
            registry.add_blob(REPOSITORY, layer.blob)
        yield registry


async def target(client: RegistryClient, registry: FakeRegistry, config: Any) -> Target:
    """The image with such a config."""
    body = json.dumps(config).encode()
    registry.add_blob(REPOSITORY, body)
    described = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": sha256_digest(body),
        "size": len(body),
    }
    document: Mapping[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": []}
    registry.add_manifest(REPOSITORY, document, "1")
    reference = Reference.parse(f"{registry.host}/{REPOSITORY}:1")
    manifest = (await client.manifest(reference.origin, "1")).descriptor
    return Target(reference=reference, manifest=manifest, layers=tuple(layer.ref for layer in LAYERS))


def named(profile: Profile) -> list[str]:
    """The files that a profile names, in its order."""
    found = []
    for read in profile.reads:
        layer: TestLayer = LAYERS[read.layer]
        data = layer.tar[read.offset : read.end]
        found += [name for name, content in layer.files.items() if content and content in data]
    return found


async def test_it_names_what_the_command_reads_in_order(client: RegistryClient, registry: FakeRegistry) -> None:
    profile = await predict_profile(client, await target(client, registry, {"config": COMMAND}))
    assert profile is not None
    assert named(profile) == [
        *("usr/bin/python3.11", "app/main.py", "usr/lib/python3.11/os.py", "usr/lib/python3.11/json.py", "app/late.py"),
    ]
    assert (profile.layers, profile.recordings) == (tuple(layer.ref.diff_id for layer in LAYERS), 1)


async def test_it_downloads_what_tells_and_not_the_image(
    client: RegistryClient, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_predict, "READ_AHEAD_BYTES", FRAME)
    monkeypatch.setattr(profile_predict, "KEPT_BYTES", 3 * FRAME)
    image = await target(client, registry, {"config": COMMAND})
    del registry.requests[:]
    assert await predict_profile(client, image) is not None
    ranges = [seen.range for layer in LAYERS for seen in registry.seen("GET", layer.ref.digest)]
    assert ranges and None not in ranges
    bounds = [str(text).removeprefix("bytes=").split("-") for text in ranges]
    assert sum(int(last) - int(first) + 1 for first, last in bounds) < sum(layer.ref.size for layer in LAYERS) // 2


@pytest.mark.parametrize("config", [{}, {"config": None}, {"config": {"Cmd": ["/absent"]}}, {"config": {"Cmd": 1}}])
async def test_nothing_is_told_of_a_command_that_is_not_there(
    client: RegistryClient, registry: FakeRegistry, config: Any
) -> None:
    assert await predict_profile(client, await target(client, registry, config)) is None


async def test_a_config_that_is_none_is_told(client: RegistryClient, registry: FakeRegistry) -> None:
    image = await target(client, registry, [])
    with pytest.raises(RegistryError, match="the config of"):
        await predict_profile(client, image)


async def test_what_the_registry_has_wrong_is_told(client: RegistryClient, registry: FakeRegistry) -> None:
    image = await target(client, registry, {"config": COMMAND})
    # Beyond the index, which is asked for first.
    registry.fault(Fault(path=SYSTEM.ref.digest, skip=1, corrupt_at=9, times=None))
    with pytest.raises((FormatError, DigestMismatch), match=r"frame|digest"):
        await predict_profile(client, image)
