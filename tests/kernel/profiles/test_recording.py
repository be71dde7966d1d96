"""Starts recorded over a real kernel: what a profile holds, when it ends, where it goes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fetcher.model import FetcherConfig, LayerState, ProfilesConfig
from fetcher.profiles import referrers
from fetcher.profiles.document import ProfileError
from fetcher.profiles.store import ProfileStore
from tests.harness.fake_server import Fault
from tests.kernel.profiles.image import (
    NAMES,
    Image,
    node,
    prefetched,
    pulled,
    recorded,
    start,
    tar_range,
    until,
)

pytestmark = pytest.mark.root


async def test_the_first_start_is_recorded_in_its_order(config: FetcherConfig, image: Image) -> None:
    profile = await recorded(config, image)
    assert profile.layers == tuple(layer.ref.diff_id for layer in image.layers.values())
    expected = [(name.partition(":")[0], tar_range(image, name)) for name in NAMES]
    names = list(image.layers)
    firsts = [
        next(
            number
            for number, read in enumerate(profile.reads)
            if names[read.layer] == which and read.offset <= start < read.end
        )
        for which, (start, _) in expected
    ]
    assert firsts == sorted(firsts)
    for which, (begin, end) in expected:
        covered = sum(
            max(0, min(end, read.end) - max(begin, read.offset)) for read in profile.reads if names[read.layer] == which
        )
        assert covered == end - begin
    assert profile.touched_bytes < 0.8 * sum(len(layer.tar) for layer in image.layers.values())
    assert ProfileStore(config.root / "profiles").load(image.manifest) == profile


async def test_layers_that_become_complete_meanwhile_are_recorded_to_the_end(
    config: FetcherConfig, image: Image
) -> None:
    async with node(replace(config, background_fill=True)) as fetcher:
        await pulled(fetcher, image)
        upper = image.layers["upper"]
        files = await fetcher.mount(upper.ref.digest)
        assert await asyncio.to_thread((files / "dir/1").read_bytes) == upper.files["dir/1"]
        await until(lambda: all(layer.state is LayerState.COMPLETE for layer in fetcher.status().layers))
        await start(fetcher, image)
        profile = await fetcher.profiles.stop(image.manifest)
        assert profile is not None
        for name in NAMES:
            begin, end = tar_range(image, name)
            layer = list(image.layers).index(name.partition(":")[0])
            assert any(read.layer == layer and read.offset <= begin < read.end for read in profile.reads), name
            assert any(read.layer == layer and read.offset < end <= read.end for read in profile.reads), name
        # The marks are gone with the recording, and what was written is all there.
        events = fetcher.status().events
        path = await fetcher.mount(upper.ref.digest) / "dir/40"
        assert await asyncio.to_thread(path.read_bytes) == upper.files["dir/40"]
        if config.data_plane == "fanotify":
            assert fetcher.status().events == events
        assert all(layer.fill_fd < 0 for layer in fetcher._layers.values())


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)  # FUSE's file stays in the page cache
async def test_a_complete_layer_is_recorded_when_it_is_mounted_anew(config: FetcherConfig, image: Image) -> None:
    async with node(replace(config, background_fill=True, profiles=ProfilesConfig(record="off"))) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        await until(lambda: all(layer.state is LayerState.COMPLETE for layer in fetcher.status().layers))
        told = await fetcher.profiles.start(image.manifest, None)
        assert (told.layers, told.mounted, told.silent) == (2, 2, 2)
        for layer in image.layers.values():
            await fetcher.release(layer.ref.digest)
        # Nobody uses the image any more: there is no start to record.
        await until(lambda: not fetcher.profiles.wants(image.layers["lower"].ref.digest))
        assert (await fetcher.profiles.start(image.manifest, None)).mounted == 0
        await pulled(fetcher, image)
        await start(fetcher, image)
        profile = await fetcher.profiles.stop(image.manifest)
        assert profile is not None
        assert profile.touched_bytes >= sum(end - begin for begin, end in (tar_range(image, name) for name in NAMES))


async def test_a_second_recording_is_merged_with_the_first(config: FetcherConfig, image: Image) -> None:
    first = await recorded(config, image)
    async with node(config) as fetcher:
        await fetcher.profiles.start(image.manifest, image.hint)
        with pytest.raises(ProfileError, match="already"):
            await fetcher.profiles.start(image.manifest, image.hint)
        await pulled(fetcher, image)
        await start(fetcher, image)
        second = await fetcher.profiles.stop(image.manifest)
    assert second is not None
    assert second.recordings == 2
    assert set(image.frames(second)) >= set(image.frames(first))


async def test_the_window_ends_a_recording(config: FetcherConfig, image: Image) -> None:
    async with node(replace(config, profiles=ProfilesConfig(window_s=0.3))) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        store = ProfileStore(config.root / "profiles")
        await until(lambda: store.load(image.manifest) is not None)
        with pytest.raises(ProfileError, match="no recording"):
            await fetcher.profiles.stop(image.manifest)


async def test_a_recording_is_kept_when_the_daemon_stops(config: FetcherConfig, image: Image) -> None:
    async with node(config) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
    assert ProfileStore(config.root / "profiles").load(image.manifest) is not None


async def test_an_image_with_a_profile_is_not_recorded_unasked(config: FetcherConfig, image: Image) -> None:
    profile = await recorded(config, image)
    async with node(config) as fetcher:
        await pulled(fetcher, image)
        await until(lambda: prefetched(fetcher) == 0 and image.manifest in fetcher.profiles._images)
        await start(fetcher, image)
        with pytest.raises(ProfileError, match="no recording"):
            await fetcher.profiles.stop(image.manifest)
    assert ProfileStore(config.root / "profiles").load(image.manifest) == profile


async def test_nothing_is_recorded_when_it_is_off(config: FetcherConfig, image: Image) -> None:
    async with node(replace(config, profiles=ProfilesConfig(record="off"))) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        with pytest.raises(ProfileError, match="no recording"):
            await fetcher.profiles.stop(image.manifest)


async def test_what_was_recorded_is_pushed_if_allowed(config: FetcherConfig, image: Image) -> None:
    async with node(replace(config, profiles=ProfilesConfig(push=True))) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        profile = await fetcher.profiles.stop(image.manifest)
        await until(lambda: any("manifests" in seen.path and seen.method == "PUT" for seen in image.registry.requests))
        layers = profile.layers if profile is not None else ()
        await asyncio.sleep(0.1)
        assert await referrers.pull(fetcher.client, image.origin, image.manifest, layers) == profile


async def test_a_push_that_fails_is_one_line(
    config: FetcherConfig, image: Image, capsys: pytest.CaptureFixture[str]
) -> None:
    image.registry.fault(Fault(method="POST", path="uploads", status=403, times=None))
    async with node(replace(config, profiles=ProfilesConfig(push=True))) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        assert await fetcher.profiles.stop(image.manifest) is not None
        told = ""
        async with asyncio.timeout(20):
            while "profile_not_pushed" not in (told := told + capsys.readouterr().out):
                await asyncio.sleep(0.05)
        assert told.count("profile_not_pushed") == 1
