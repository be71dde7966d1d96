"""Packs over a real kernel: a start takes from one what it can, and the rest, or what is wrong, from the layers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fetcher.model import FetcherConfig, ProfilesConfig
from fetcher.node import Fetcher
from fetcher.profiles import packs
from fetcher.profiles.pack import Pack, frames_to_pack, pack_of
from fetcher.profiles.profile import Profile
from fetcher.profiles.store import ProfileStore
from layerformat.digest import Digest, sha256_digest
from tests.harness.fake_server import Fault
from tests.kernel.profiles.image import Image, another, node, prefetched, pulled, recorded, start, until

pytestmark = pytest.mark.root

WHEN = "2026-01-01T00:00:00Z"


def packed(image: Image, profile: Profile) -> tuple[Pack, bytes]:
    """The pack of what a profile names, and its bytes."""
    layers = list(image.layers.values())
    frames = frames_to_pack(profile, [(layer.ref, layer.index.frames) for layer in layers])
    data = b"".join(layers[at].blob[frame.offset : frame.offset + frame.size] for at, frame in frames)
    return pack_of([layer.ref.digest for layer in layers], frames), data


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def attached(fetcher: Fetcher, image: Image, pack: Pack, data: bytes) -> Digest:
    """Push a pack; its blob's digest."""
    await packs.push(fetcher.client, image.origin, image.manifest, pack, _once(data), WHEN)
    return sha256_digest(data)


@pytest.fixture
async def profile(config: FetcherConfig, image: Image) -> Profile:
    """Recorded here, and known to the other node."""
    profile = await recorded(config, image)
    ProfileStore(another(config).root / "profiles").save(image.manifest, profile)
    return profile


@pytest.fixture
def other(config: FetcherConfig, profile: Profile) -> FetcherConfig:
    top = config.root.parent.with_name("b")
    return replace(config, root=top / "root", run=top / "run")


async def test_a_replay_is_one_request_of_the_pack(other: FetcherConfig, image: Image, profile: Profile) -> None:
    async with node(other) as fetcher:
        blob = await attached(fetcher, image, *packed(image, profile))
        del image.registry.requests[:]
        # Nothing can be asked of the layers before it is known that there is a pack.
        for layer in image.layers.values():
            image.registry.fault(Fault(path=layer.ref.digest, delay_s=0.5))
        fetcher.announce(image.hint)
        await until(lambda: prefetched(fetcher) == image.compressed_bytes(profile) and not fetcher.governor._running)
        await pulled(fetcher, image)
        await start(fetcher, image)
        assert len(image.registry.seen("GET", blob)) <= len(image.layers)
        assert not image.requests()
        status = fetcher.status()
        assert status.faults == 0
        assert sum(status.fetched_bytes.values()) == image.compressed_bytes(profile)


async def test_a_pack_that_is_found_late_is_joined(other: FetcherConfig, image: Image, profile: Profile) -> None:
    async with node(other) as fetcher:
        blob = await attached(fetcher, image, *packed(image, profile))
        image.registry.fault(Fault(path="/referrers/", delay_s=0.5))
        slow = image.registry.fault(Fault(path="/blobs/", skip=2, piece_bytes=4096, piece_delay_s=0.02, times=None))
        await pulled(fetcher, image)
        await until(lambda: prefetched(fetcher) > 0)
        assert not image.registry.seen("GET", blob)
        await until(lambda: bool(image.registry.seen("GET", "/referrers/")))
        image.registry.faults.remove(slow)
        await until(lambda: not fetcher.governor._running)
        assert image.registry.seen("GET", blob)
        await start(fetcher, image)
        assert fetcher.status().faults == 0


async def test_packs_can_be_left_alone(other: FetcherConfig, image: Image, profile: Profile) -> None:
    async with node(replace(other, profiles=ProfilesConfig(packs=False))) as fetcher:
        blob = await attached(fetcher, image, *packed(image, profile))
        await pulled(fetcher, image)
        await until(lambda: prefetched(fetcher) == image.compressed_bytes(profile))
        await start(fetcher, image)
        assert not image.registry.seen("GET", blob)


@pytest.mark.parametrize("what", ["wrong bytes", "shifted", "gone", "cut off", "refused"])
async def test_a_pack_that_is_no_good_costs_no_start(
    other: FetcherConfig, image: Image, profile: Profile, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pack, data = packed(image, profile)
    async with node(other) as fetcher:
        if what == "wrong bytes":
            data = data[:100] + bytes([data[100] ^ 1]) + data[101:]
        if what == "shifted":
            data = data[1:] + data[:1]
        blob = await attached(fetcher, image, pack, data)
        match what:
            case "gone":
                del image.registry.blobs[blob]
            case "cut off":
                image.registry.fault(Fault(path=blob, truncate_at=1000, times=None))
            case "refused":
                image.registry.fault(Fault(path=blob, status=403, times=None))
        fetcher.announce(image.hint)
        await until(lambda: bool(image.registry.seen("GET", "/referrers/")))
        await pulled(fetcher, image)
        await start(fetcher, image)
        await until(lambda: not fetcher.governor._running)
        assert capsys.readouterr().out.count("pack_ignored") == 1
        assert all(layer.last_error is None for layer in fetcher.status().layers)


async def test_layers_that_are_given_up_leave_a_pack(other: FetcherConfig, image: Image, profile: Profile) -> None:
    lower, upper = (layer.ref.digest for layer in image.layers.values())
    async with node(other) as fetcher:

        def come(digest: str) -> int:
            return fetcher.governor.fetched(digest).get("prefetch", 0)

        blob = await attached(fetcher, image, *packed(image, profile))
        slow = image.registry.fault(Fault(path=blob, piece_bytes=16 << 10, piece_delay_s=0.02, times=None))
        await pulled(fetcher, image)
        await until(lambda: come(lower) > 0)
        await fetcher.release(lower)
        await fetcher.evict(lower)
        before = come(upper)
        await until(lambda: come(upper) > before)
        assert fetcher.layer(lower) is None
        # With nobody left, nothing more comes.
        await fetcher.release(upper)
        await until(lambda: not fetcher.governor._running, 1)
        assert come(upper) < _share(image, profile, upper)
        image.registry.faults.remove(slow)
        await pulled(fetcher, image)
        await start(fetcher, image)


async def test_a_stop_in_the_middle_of_a_pack(other: FetcherConfig, image: Image, profile: Profile) -> None:
    async with node(other) as fetcher:
        blob = await attached(fetcher, image, *packed(image, profile))
        slow = image.registry.fault(Fault(path=blob, piece_bytes=16 << 10, piece_delay_s=0.02, times=None))
        await pulled(fetcher, image)
        await until(lambda: 0 < prefetched(fetcher) < image.compressed_bytes(profile))
    async with node(other) as fetcher:
        image.registry.faults.remove(slow)
        await pulled(fetcher, image)
        await start(fetcher, image)


def _share(image: Image, profile: Profile, digest: str) -> int:
    tables = {layer.ref.digest: layer.index.frames for layer in image.layers.values()}
    return sum(tables[Digest(of)][number].size for of, number in image.frames(profile) if of == digest)
