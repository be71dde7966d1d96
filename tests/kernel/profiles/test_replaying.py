"""Profiles replayed over a real kernel; no start fails or waits for one."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from fetcher.model import FetcherConfig, LayerState, LayerUnavailable, ProfilesConfig
from fetcher.profiles import referrers
from fetcher.profiles.profile import MEDIA_TYPE, Profile, Read, encode_profile
from fetcher.profiles.store import ProfileStore
from layerformat.digest import DiffID, Digest, sha256_digest
from tests.harness.fake_registry import FakeRegistry
from tests.harness.fake_server import Fault
from tests.harness.layers import TestLayer, with_spoiled_metadata
from tests.harness.referrers import attach
from tests.kernel.profiles.image import (
    Image,
    another,
    any_profile,
    node,
    prefetched,
    pulled,
    recorded,
    served,
    start,
    until,
)

pytestmark = pytest.mark.root


async def test_replayed_on_another_node_before_anyone_asks(config: FetcherConfig, image: Image) -> None:
    profile = await recorded(config, image)
    async with node(another(config)) as fetcher:
        await referrers.push(fetcher.client, image.origin, image.manifest, profile)
        del image.registry.requests[:]
        fetcher.announce(image.hint)
        await until(lambda: prefetched(fetcher) == image.compressed_bytes(profile))
        order = {what: number for number, what in enumerate(image.frames(profile))}
        for digest in {digest for digest, _ in image.requests()}:
            # Of each layer: one that is admitted earlier may be ahead of the others.
            requests = [order[what] for what in image.requests() if what[0] == digest]
            assert requests == sorted(requests)
        await pulled(fetcher, image)
        await start(fetcher, image)
        status = fetcher.status()
        assert status.faults == 0
        assert sum(status.fetched_bytes.values()) == image.compressed_bytes(profile)
        assert (await fetcher.profiles.status())[0].source == "registry"


async def test_frames_come_while_the_metadata_are_checked(config: FetcherConfig, image: Image) -> None:
    profile = await recorded(config, image)
    other = another(config)
    ProfileStore(other.root / "profiles").save(image.manifest, profile)
    async with node(other) as fetcher:
        async with fetcher._admissions._turn:
            fetcher.announce(image.hint)
            await until(lambda: sum(fetcher.governor.meter.bytes.values()) == image.compressed_bytes(profile))
            assert not fetcher.status().layers
        await pulled(fetcher, image)
        await start(fetcher, image)
        status = fetcher.status()
        assert status.faults == 0
        assert sum(status.fetched_bytes.values()) == image.compressed_bytes(profile)


async def test_nothing_comes_for_a_layer_that_is_here_with_another_index(config: FetcherConfig, image: Image) -> None:
    ProfileStore(config.root / "profiles").save(image.manifest, any_profile(image))
    async with node(config) as fetcher:
        for layer in image.layers.values():
            await fetcher.admit(layer.ref, [image.origin])
        refs = tuple(replace(layer.ref, index_digest=sha256_digest(b"another")) for layer in image.layers.values())
        fetcher.announce(replace(image.hint, layers=refs))
        for ref in refs:
            with pytest.raises(LayerUnavailable, match="another index"):
                await fetcher.admit(ref, [image.origin])
        await until(lambda: fetcher.profiles.replayed(image.manifest) is not None)
        await asyncio.sleep(0.2)
        assert prefetched(fetcher) == 0


async def test_nothing_stays_of_a_layer_whose_metadata_are_no_good(
    config: FetcherConfig, layers: dict[str, TestLayer]
) -> None:
    async with FakeRegistry() as registry:
        image = served(registry, {name: with_spoiled_metadata(layer) for name, layer in layers.items()})
        ProfileStore(config.root / "profiles").save(image.manifest, any_profile(image))
        async with node(config) as fetcher:
            async with fetcher._admissions._turn:
                fetcher.announce(image.hint)
                await until(lambda: sum(fetcher.governor.meter.bytes.values()) > 0)
                assert fetcher.governor._queues
            for layer in image.layers.values():
                with pytest.raises(LayerUnavailable):
                    await fetcher.admit(layer.ref, [image.origin])
            assert not fetcher.governor._queues and not fetcher.status().layers
            assert not list((config.root / "layers").iterdir())


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_the_profile_comes_before_the_rest(config: FetcherConfig, image: Image) -> None:
    profile = await recorded(config, image)
    other = replace(another(config), background_fill=True)
    ProfileStore(other.root / "profiles").save(image.manifest, profile)
    async with node(other) as fetcher:
        del image.registry.requests[:]
        fault = image.registry.fault(Fault(path="/blobs/", delay_s=0.05, times=None))
        await pulled(fetcher, image)
        await until(lambda: prefetched(fetcher) > 0.9 * image.compressed_bytes(profile))
        image.registry.faults.remove(fault)
        await start(fetcher, image)
        await until(lambda: all(layer.state is LayerState.COMPLETE for layer in fetcher.status().layers), 60)
        named = set(image.frames(profile))
        kinds = [what in named for what in image.requests()]
        assert sorted(kinds, reverse=True) == kinds


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_what_has_no_profile_is_filled_once_that_is_known(config: FetcherConfig, image: Image) -> None:
    fault = image.registry.fault(Fault(path="/referrers/", delay_s=30, times=None))
    async with node(replace(config, background_fill=True, profiles=ProfilesConfig(lookup_timeout_s=1))) as fetcher:
        await pulled(fetcher, image)
        await asyncio.sleep(0.3)
        assert sum(fetcher.status().fetched_bytes.values()) == 0
        await until(lambda: all(layer.state is LayerState.COMPLETE for layer in fetcher.status().layers), 60)
        assert fault in image.registry.faults


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_a_registry_without_the_referrers_api(config: FetcherConfig, layers: dict[str, TestLayer]) -> None:
    async with FakeRegistry(referrers_api=False) as registry:
        image = served(registry, layers)
        profile = await recorded(config, image)
        async with node(another(config)) as fetcher:
            await referrers.push(fetcher.client, image.origin, image.manifest, profile)
            fetcher.announce(image.hint)
            await until(lambda: prefetched(fetcher) == image.compressed_bytes(profile))


def changed(profile: Profile, what: str) -> bytes:
    """A profile that is no good."""
    document = json.loads(encode_profile(profile))
    match what:
        case "corrupt":
            return encode_profile(profile)[:-100]
        case "foreign":
            document["layers"][0] = "sha256:" + "0" * 64
        case "later":
            document["version"] = 2
        case "stale":
            document["reads"] = [[0, 1 << 40, 4096]]
    return json.dumps(document).encode()


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
@pytest.mark.parametrize("what", ["corrupt", "foreign", "later", "stale"])
@pytest.mark.parametrize("where", ["local", "registry"])
async def test_a_profile_that_is_no_good_is_ignored_with_one_line(
    config: FetcherConfig, image: Image, what: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = changed(any_profile(image), what)
    if where == "local":
        directory = config.root / "profiles"
        directory.mkdir(parents=True)
        (directory / f"{image.manifest.removeprefix('sha256:')}.json").write_bytes(body)
    async with node(replace(config, profiles=ProfilesConfig(record="off"))) as fetcher:
        if where == "registry":
            subject = (await fetcher.client.manifest(image.origin, image.manifest)).descriptor
            await attach(fetcher.client, image.origin, subject, MEDIA_TYPE, body, {})
        await pulled(fetcher, image)
        await until(lambda: not fetcher.profiles._images[image.manifest].following)
        assert capsys.readouterr().out.count("profile_ignored") == 1
        assert prefetched(fetcher) == 0
        await start(fetcher, image)


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_a_start_does_not_wait_for_a_slow_registry(config: FetcherConfig, image: Image) -> None:
    image.registry.fault(Fault(path="/referrers/", delay_s=30, times=None))
    quick = replace(config, profiles=ProfilesConfig(lookup_timeout_s=1))
    async with asyncio.timeout(15), node(quick) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        await until(lambda: not fetcher.profiles._images[image.manifest].following)
        assert await fetcher.profiles.stop(image.manifest) is not None


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_an_image_that_is_not_used_after_all_is_given_up(config: FetcherConfig, image: Image) -> None:
    impatient = replace(config, profiles=ProfilesConfig(unused_timeout_s=0.3))
    everything = tuple(Read(number, 0, len(layer.tar)) for number, layer in enumerate(image.layers.values()))
    profile = replace(any_profile(image), reads=everything)
    ProfileStore(config.root / "profiles").save(image.manifest, profile)
    async with node(impatient) as fetcher:
        image.registry.fault(Fault(path="/blobs/", skip=2, times=None, piece_bytes=8192, piece_delay_s=0.05))
        fetcher.announce(image.hint)
        await until(lambda: prefetched(fetcher) > 0)
        await until(lambda: not fetcher.profiles._images[image.manifest].following)
        received = prefetched(fetcher)
        await asyncio.sleep(0.4)
        assert prefetched(fetcher) == received < image.compressed_bytes(profile)
        # Pulled again, it is what it would have been.
        image.registry.faults.clear()
        await pulled(fetcher, image)
        await until(lambda: prefetched(fetcher) >= received + 1000)
        await start(fetcher, image)


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_a_layer_that_cannot_be_had_does_not_hold_up_the_other(config: FetcherConfig, image: Image) -> None:
    lower = image.layers["lower"].ref
    lost = replace(lower, digest=Digest("sha256:" + "1" * 64), diff_id=DiffID("sha256:" + "2" * 64))
    hint = replace(image.hint, layers=(lost, image.layers["upper"].ref))
    profile = replace(any_profile(image), layers=(lost.diff_id, image.layers["upper"].ref.diff_id))
    ProfileStore(config.root / "profiles").save(image.manifest, profile)
    async with node(config) as fetcher:
        fetcher.announce(hint)
        await until(lambda: prefetched(fetcher) > 0)


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_a_layer_that_joins_late_does_not_begin_the_hold_again(config: FetcherConfig, image: Image) -> None:
    profile = await recorded(config, image)
    other = another(config)
    ProfileStore(other.root / "profiles").save(image.manifest, profile)
    lower, upper = (layer.ref.digest for layer in image.layers.values())
    image.registry.fault(Fault(path=upper, delay_s=0.7))
    async with node(other) as fetcher:
        fetcher.announce(image.hint)
        await until(lambda: prefetched(fetcher) > 0)
        assert fetcher.layer(upper) is None
        hold = fetcher.governor._holds[lower]
        await until(lambda: prefetched(fetcher) == image.compressed_bytes(profile))
        assert fetcher.governor._holds[lower] is fetcher.governor._holds[upper] is hold
