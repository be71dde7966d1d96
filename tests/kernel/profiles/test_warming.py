"""What a profile names is in the page cache before the program reads it, and nobody takes that for the program's."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from fetcher.layers.extents import EXTENTS
from fetcher.model import FetcherConfig, LayerState
from fetcher.node import Fetcher
from fetcher.planes.touches import Touch
from fetcher.profiles.store import ProfileStore
from tests.harness.fake_server import Fault
from tests.kernel.profiles.image import NAMES as READ
from tests.kernel.profiles.image import Image, another, any_profile, node, pulled, recorded, start, tar_range, until

pytestmark = [pytest.mark.root, pytest.mark.parametrize("config", ["fanotify"], indirect=True)]


async def mounted(fetcher: Fetcher, image: Image) -> None:
    await pulled(fetcher, image)
    for layer in image.layers.values():
        await fetcher.mount(layer.ref.digest)


async def warmed(fetcher: Fetcher) -> None:
    """Read ahead, and through with it."""
    await until(lambda: bool(fetcher.touches.history))
    await until(lambda: not fetcher.profiles.readers_ahead())


def programs(fetcher: Fetcher) -> list[Touch]:
    return [touch for touch in fetcher.touches.history if not touch.ahead]


async def test_a_program_finds_its_pages(config: FetcherConfig, image: Image) -> None:
    await recorded(config, image)
    async with node(config) as fetcher:
        await mounted(fetcher, image)
        await warmed(fetcher)
        ahead = fetcher.status().events
        assert ahead > 0
        await start(fetcher, image)
        assert programs(fetcher) == []
        assert fetcher.status().events == ahead


async def test_only_what_the_profile_names_is_read(config: FetcherConfig, image: Image) -> None:
    profile = await recorded(config, image)
    async with node(config) as fetcher:
        await mounted(fetcher, image)
        await warmed(fetcher)
        assert sum(touch.count for touch in fetcher.touches.history) <= 1.1 * profile.touched_bytes
        upper = image.layers["upper"]
        path = await fetcher.mount(upper.ref.digest) / "dir/40"
        assert await asyncio.to_thread(path.read_bytes) == upper.files["dir/40"]
        assert programs(fetcher)


async def test_it_can_be_turned_off(config: FetcherConfig, image: Image) -> None:
    await recorded(config, image)
    async with node(replace(config, profiles=replace(config.profiles, warm=False))) as fetcher:
        await mounted(fetcher, image)
        await until(lambda: not fetcher.profiles._images[image.manifest].following)
        await start(fetcher, image)
        assert not [touch for touch in fetcher.touches.history if touch.ahead]
        assert programs(fetcher)


async def test_a_recording_ends_it_and_sees_the_program(config: FetcherConfig, image: Image) -> None:
    await recorded(config, image)
    other = another(config)
    async with node(other) as fetcher:
        # All of the lower layer, which is long in coming: the reading ahead is under way when the recording begins.
        ProfileStore(other.root / "profiles").save(image.manifest, any_profile(image))
        fault = image.registry.fault(Fault(path="/blobs/", skip=2, delay_s=0.5, times=None))
        await pulled(fetcher, image)
        await until(lambda: bool(fetcher.profiles.readers_ahead()))
        await fetcher.profiles.start(image.manifest, None)
        assert not fetcher.profiles.readers_ahead()
        image.registry.faults.remove(fault)
        await start(fetcher, image)
        profile = await fetcher.profiles.stop(image.manifest)
        assert profile is not None
        assert profile.touched_bytes >= sum(end - begin for begin, end in (tar_range(image, name) for name in READ))


async def test_a_layer_is_let_go_in_the_middle_of_it(config: FetcherConfig, image: Image) -> None:
    """What is still to come never comes: whoever waits for it must not keep the layer."""
    ProfileStore(config.root / "profiles").save(image.manifest, any_profile(image))
    async with node(config) as fetcher:
        image.registry.fault(Fault(path="/blobs/", skip=2, delay_s=60, times=None))
        await mounted(fetcher, image)
        await until(lambda: bool(fetcher.profiles.readers_ahead()))
        (pid,) = fetcher.profiles.readers_ahead()
        for layer in image.layers.values():
            await fetcher.release(layer.ref.digest)
            await fetcher.evict(layer.ref.digest)
        assert not os.path.exists(f"/proc/{pid}")
        assert not fetcher.status().layers


async def test_its_death_hurts_nobody(config: FetcherConfig, image: Image) -> None:
    ProfileStore(config.root / "profiles").save(image.manifest, any_profile(image))
    async with node(config) as fetcher:
        fault = image.registry.fault(Fault(path="/blobs/", skip=2, delay_s=1, times=None))
        await mounted(fetcher, image)
        await until(lambda: bool(fetcher.profiles.readers_ahead()))
        for pid in fetcher.profiles.readers_ahead():
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not fetcher.profiles.readers_ahead())
        image.registry.faults.remove(fault)
        await start(fetcher, image)


async def test_a_layer_of_an_older_version_is_read_as_ever(config: FetcherConfig, image: Image) -> None:
    """Its directory has no list of extents."""
    await recorded(config, image)
    async with node(config) as fetcher:
        for layer in fetcher._layers.values():
            (layer.directory / EXTENTS).unlink()
        await mounted(fetcher, image)
        await until(lambda: not fetcher.profiles._images[image.manifest].following)
        await until(lambda: not fetcher.profiles.readers_ahead())
        await start(fetcher, image)
        assert programs(fetcher)


async def test_the_rest_is_filled_when_the_program_has_been_quiet(config: FetcherConfig, image: Image) -> None:
    await recorded(config, image)
    async with node(replace(config, background_fill=True)) as fetcher:
        await mounted(fetcher, image)
        await start(fetcher, image)
        await until(lambda: all(layer.state is LayerState.COMPLETE for layer in fetcher.status().layers), 20)
