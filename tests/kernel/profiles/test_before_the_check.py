"""What a profile names is fetched while metadata are being checked; nobody sees the layer before that has ended."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from fetcher.model import FetcherConfig, ImageHint, LayerState, LayerUnavailable
from fetcher.node import Fetcher
from fetcher.profile import Profile, Read
from fetcher.profile_store import ProfileStore
from tests.harness.fake_server import Fault
from tests.harness.layers import with_metadata
from tests.kernel.profiles.image import (
    NAMES,
    Image,
    everything,
    node,
    prefetched,
    profile_of,
    pulled,
    served,
    start,
    tar_range,
    until,
)

pytestmark = pytest.mark.root


def start_profile(image: Image) -> Profile:
    """Of NAMES."""
    numbers = {name: number for number, name in enumerate(image.layers)}
    ranges = [(numbers[name.partition(":")[0]], *tar_range(image, name)) for name in NAMES]
    return profile_of(image, *(Read(layer, begin, end - begin) for layer, begin, end in ranges))


def store(config: FetcherConfig, image: Image, profile: Profile) -> None:
    ProfileStore(config.root / "profiles").save(image.manifest, profile)


@asynccontextmanager
async def announced(config: FetcherConfig, image: Image) -> AsyncIterator[Fetcher]:
    """A node to which the image was announced, and which has all indexes but may not check any."""
    async with node(config) as fetcher:
        await fetcher.admissions.checking.acquire()
        fetcher.announce(image.hint)
        await until(lambda: all(fetcher.admissions.drafted(layer.ref.digest) for layer in image.layers.values()))
        yield fetcher


def frames_in_drafts(fetcher: Fetcher, image: Image) -> int:
    drafts = [fetcher.admissions.drafted(layer.ref.digest) for layer in image.layers.values()]
    return sum(draft.present.count for draft in drafts if draft is not None)


def directories(config: FetcherConfig) -> list[str]:
    return os.listdir(config.root / "layers")


def index_requests(image: Image) -> int:
    first = {f"bytes={layer.ref.index_offset}" for layer in image.layers.values()}
    return sum((seen.range or "").partition("-")[0] in first for seen in image.registry.seen("GET", "/blobs/"))


@pytest.mark.parametrize("config", ["fanotify", "fuse", "eager"], indirect=True)
async def test_frames_are_there_when_the_check_ends(config: FetcherConfig, image: Image) -> None:
    profile = start_profile(image)
    store(config, image, profile)
    async with announced(config, image) as fetcher:
        await until(lambda: frames_in_drafts(fetcher, image) == len(image.frames(profile)))
        fetcher.admissions.checking.release()
        await pulled(fetcher, image)
        await start(fetcher, image)
        assert prefetched(fetcher) == image.compressed_bytes(profile)
        assert fetcher.status().faults == 0 or config.data_plane == "eager"
        assert index_requests(image) == len(image.layers)
        assert not [name for name in directories(config) if name.startswith(".")]


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_nobody_sees_a_layer_before(config: FetcherConfig, image: Image) -> None:
    store(config, image, start_profile(image))
    async with announced(config, image) as fetcher:
        await until(lambda: frames_in_drafts(fetcher, image) > 0)
        assert not fetcher.status().layers
        assert all(name.startswith(".new-") for name in directories(config))
        for layer in image.layers.values():
            assert fetcher.layer(layer.ref.digest) is None
            for use in (fetcher.retain, fetcher.mount):
                with pytest.raises(LayerUnavailable):
                    await use(layer.ref.digest)
            await fetcher.release(layer.ref.digest)
            await fetcher.evict(layer.ref.digest)
        assert await fetcher.clear_cache() == []
        assert len(directories(config)) == len(image.layers)
        fetcher.admissions.checking.release()
        await pulled(fetcher, image)
        await start(fetcher, image)


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_what_no_profile_names_is_not_fetched_before(config: FetcherConfig, image: Image) -> None:
    async with announced(config, image) as fetcher:
        await asyncio.sleep(0.2)
        assert sum(fetcher.status().fetched_bytes.values()) == 0
        fetcher.admissions.checking.release()
        await pulled(fetcher, image)


async def test_all_of_it_may_be_there_before(config: FetcherConfig, image: Image) -> None:
    store(config, image, everything(image))
    async with announced(config, image) as fetcher:
        await until(lambda: frames_in_drafts(fetcher, image) == len(image.frames(everything(image))))
        fetcher.admissions.checking.release()
        await until(lambda: [layer.state for layer in fetcher.status().layers] == [LayerState.COMPLETE] * 2)
        await pulled(fetcher, image)
        await start(fetcher, image)


async def test_a_layer_whose_metadata_are_no_good_is_gone(config: FetcherConfig, image: Image) -> None:
    good = image.layers["lower"]
    spoiled = bytes(1100) + good.index.metadata[1100:]  # no superblock
    bad = served(image.registry, {**image.layers, "lower": with_metadata(good, spoiled)})
    lower, upper = bad.layers["lower"].ref, bad.layers["upper"].ref
    store(config, bad, everything(bad))
    async with announced(config, bad) as fetcher:
        bad.registry.fault(Fault(path=lower.digest, times=None, piece_bytes=8192, piece_delay_s=0.02))
        draft = fetcher.admissions.drafted(lower.digest)
        assert draft is not None
        await until(lambda: draft.present.count > 0)
        fetcher.admissions.checking.release()
        with pytest.raises(LayerUnavailable, match="EROFS super block"):
            await fetcher.admit(lower, bad.hint.origins)
        assert draft.closed and draft.fill_fd < 0
        await until(lambda: fetcher.layer(upper.digest) is not None and prefetched(fetcher) > 0)
        assert directories(config) == [upper.digest[7:23]]
        assert lower.digest not in fetcher.governor._queues
        received = bad.registry.bytes_sent(lower.digest)
        await asyncio.sleep(0.3)
        assert bad.registry.bytes_sent(lower.digest) == received
        with pytest.raises(LayerUnavailable):
            await fetcher.retain(lower.digest)
        await fetcher.retain(upper.digest)
        files = await fetcher.mount(upper.digest)
        assert await asyncio.to_thread((files / "dir/17").read_bytes) == bad.layers["upper"].files["dir/17"]


async def test_stopping_leaves_no_draft(config: FetcherConfig, image: Image) -> None:
    store(config, image, everything(image))
    image.registry.fault(Fault(path="/blobs/", skip=2, times=None, piece_bytes=8192, piece_delay_s=0.02))
    async with announced(config, image) as fetcher:
        await until(lambda: frames_in_drafts(fetcher, image) > 0)
    assert not directories(config)


async def serve_until_killed(config: FetcherConfig, hint: ImageHint) -> None:
    """In a process of its own: have the image's frames fetched, and never check an index."""
    async with Fetcher(config) as fetcher, fetcher.admissions.checking:
        fetcher.announce(hint)
        await asyncio.Event().wait()


async def test_a_death_leaves_what_the_next_start_sweeps(config: FetcherConfig, image: Image) -> None:
    store(config, image, start_profile(image))
    work = f"import asyncio, pickle, sys; from {__name__} import serve_until_killed"
    work += "; asyncio.run(serve_until_killed(*pickle.load(sys.stdin.buffer)))"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", work), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdin is not None
        process.stdin.write(pickle.dumps((config, image.hint)))
        process.stdin.close()
        await until(lambda: any(tar.stat().st_blocks for tar in config.root.glob("layers/.new-*/tar")))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert directories(config)
    async with node(config) as fetcher:
        assert not directories(config)
        await pulled(fetcher, image)
        await start(fetcher, image)


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_who_asked_first_may_go_away(config: FetcherConfig, image: Image) -> None:
    ref = image.layers["lower"].ref
    image.registry.fault(Fault(path="/blobs/", delay_s=0.2))
    async with node(config) as fetcher:
        first = asyncio.ensure_future(fetcher.open_for_prefetch(ref, image.hint.origins))
        second = asyncio.ensure_future(fetcher.open_for_prefetch(ref, image.hint.origins))
        third = asyncio.ensure_future(fetcher.admit(ref, image.hint.origins))
        await asyncio.sleep(0.05)
        first.cancel()
        await third
        assert await second is fetcher.layer(ref.digest)
        assert index_requests(image) == 1


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_a_layer_that_joins_late_does_not_begin_the_hold_again(config: FetcherConfig, image: Image) -> None:
    profile = start_profile(image)
    store(config, image, profile)
    lower, upper = (layer.ref.digest for layer in image.layers.values())
    image.registry.fault(Fault(path=upper, delay_s=0.7))
    async with node(config) as fetcher:
        fetcher.announce(image.hint)
        await until(lambda: prefetched(fetcher) > 0)
        assert fetcher.layer(upper) is None
        hold = fetcher.governor._holds[lower]
        await until(lambda: prefetched(fetcher) == image.compressed_bytes(profile))
        assert fetcher.governor._holds[lower] is fetcher.governor._holds[upper] is hold
