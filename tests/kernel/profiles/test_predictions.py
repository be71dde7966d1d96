"""Predictions over a real kernel: they serve where no start was recorded yet, and make way for what was."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fetcher.model import FetcherConfig
from fetcher.profiles import referrers
from fetcher.profiles.document import encode_document
from fetcher.profiles.profile import MEDIA_TYPE, Profile
from fetcher.profiles.referrers import PREDICTION
from tests.kernel.profiles.image import Image, another, any_profile, node, prefetched, pulled, recorded, start, until

pytestmark = pytest.mark.root


@pytest.fixture
async def profile(config: FetcherConfig, image: Image) -> Profile:
    """What a start reads."""
    return await recorded(config, image)


async def predicted(config: FetcherConfig, image: Image, profile: Profile) -> None:
    """Attach it as if it had been predicted."""
    async with node(config) as fetcher:
        await referrers.push(fetcher.client, image.origin, image.manifest, profile, PREDICTION)


async def source(config: FetcherConfig, image: Image) -> str | None:
    """Start on a node; where that has its profile from."""
    async with node(config) as fetcher:
        await pulled(fetcher, image)
        await until(lambda: fetcher.profiles.replayed(image.manifest) is not None)
        await start(fetcher, image)
        (status,) = await fetcher.profiles.status()
        return status.source


async def test_a_prediction_is_replayed_and_the_start_not_recorded(
    config: FetcherConfig, image: Image, profile: Profile
) -> None:
    other = another(config)
    await predicted(config, image, profile)
    async with node(other) as fetcher:
        await pulled(fetcher, image)
        await until(lambda: prefetched(fetcher) == image.compressed_bytes(profile))
        await start(fetcher, image)
        (status,) = await fetcher.profiles.status()
        assert (status.source, status.recording, status.stored) == ("prediction", False, False)
        assert fetcher.status().faults == 0


async def test_what_was_recorded_comes_first(config: FetcherConfig, image: Image, profile: Profile) -> None:
    await predicted(config, image, any_profile(image))
    other = another(config)
    async with node(other) as fetcher:
        await referrers.push(fetcher.client, image.origin, image.manifest, profile)
    assert await source(other, image) == "registry"


async def test_a_node_that_shares_what_it_records_records_in_spite_of_a_prediction(
    config: FetcherConfig, image: Image, profile: Profile
) -> None:
    await predicted(config, image, any_profile(image))
    other = another(config)
    async with node(replace(other, profiles=replace(other.profiles, push=True))) as fetcher:
        await pulled(fetcher, image)
        await until(lambda: prefetched(fetcher) == image.compressed_bytes(any_profile(image)))
        await start(fetcher, image)
        (status,) = await fetcher.profiles.status()
        assert (status.source, status.recording) == ("prediction", True)
        found = await fetcher.profiles.stop(image.manifest)
        assert found is not None and found.ranges() == profile.ranges()
        async with asyncio.timeout(10):
            while not await referrers.listed(fetcher.client, image.origin, image.manifest):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("way", ["switched off", "malformed"])
@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_a_start_without_one_is_recorded(config: FetcherConfig, image: Image, way: str) -> None:
    other = another(config)
    if way == "switched off":
        await predicted(config, image, any_profile(image))
        other = replace(other, profiles=replace(other.profiles, predictions=False))
    else:
        async with node(config) as fetcher:
            body = encode_document("profile", {"layers": "none"})
            subject = (await fetcher.client.manifest(image.origin, image.manifest)).descriptor
            layer = await fetcher.client.push_layer_bytes(image.origin, body, MEDIA_TYPE)
            await fetcher.client.push_referrer(image.origin, subject, PREDICTION, [layer], {})
    async with node(other) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        assert prefetched(fetcher) == 0
        assert await fetcher.profiles.stop(image.manifest) is not None
