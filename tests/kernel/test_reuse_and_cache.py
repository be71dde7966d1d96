"""Frames copied between layers, and layers given up when the cache is full."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fetcher import kernel
from fetcher.cache import CacheConfig
from fetcher.model import FetcherConfig, LayerState, LayerUnavailable
from fetcher.node import Fetcher
from fetcher.planes.teardown import teardown
from fetcher.registry import Origin, RegistryConfig
from tests.harness.fake_registry import FakeRegistry
from tests.harness.layers import TestLayer, make_layer

pytestmark = pytest.mark.root

REPOSITORY = "team/app"
FRAME = 64 << 10
MIB = 1 << 20


@pytest.fixture(scope="module")
def versions() -> tuple[TestLayer, TestLayer]:
    """Two builds of one layer: the large file is the same, a small one is not."""
    noise = random.Random(23)
    big = noise.randbytes(4 * MIB)
    first = make_layer({"big": big, "app": noise.randbytes(FRAME)}, frame_bytes=FRAME)
    second = make_layer({"big": big, "app": noise.randbytes(FRAME)}, frame_bytes=FRAME)
    return first, second


@pytest.fixture
async def registry(versions: tuple[TestLayer, TestLayer]) -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as served:
        for layer in versions:
            served.add_blob(REPOSITORY, layer.blob)
        yield served


@pytest.fixture
def config(tmp_path: Path) -> FetcherConfig:
    return FetcherConfig(root=tmp_path / "root", run=tmp_path / "run", registry=RegistryConfig(), data_plane="fanotify")


@asynccontextmanager
async def running(config: FetcherConfig) -> AsyncIterator[Fetcher]:
    try:
        async with Fetcher(config) as fetcher:
            yield fetcher
    finally:
        await asyncio.to_thread(teardown, config.root, config.run)


async def complete(fetcher: Fetcher, layer: TestLayer, registry: FakeRegistry) -> None:
    """Admit, retain and wait until every byte is there."""
    await fetcher.admit(layer.ref, [Origin(host=registry.host, repository=REPOSITORY)])
    await fetcher.retain(layer.ref.digest)
    async with asyncio.timeout(30):
        while state_of(fetcher, layer) is not LayerState.COMPLETE:
            await asyncio.sleep(0.02)


def state_of(fetcher: Fetcher, layer: TestLayer) -> LayerState | None:
    return next((one.state for one in fetcher.status().layers if one.digest == layer.ref.digest), None)


async def test_a_new_build_costs_what_changed(
    config: FetcherConfig, versions: tuple[TestLayer, TestLayer], registry: FakeRegistry
) -> None:
    async with running(config) as fetcher:
        await complete(fetcher, versions[0], registry)
        before = registry.bytes_sent("/blobs/")
        await complete(fetcher, versions[1], registry)
        changed = 2 * FRAME + versions[1].ref.index_size
        assert registry.bytes_sent("/blobs/") - before <= 1.2 * changed
        assert fetcher.status().reused_bytes >= 4 * MIB
        files = await fetcher.mount(versions[1].ref.digest)
        assert await asyncio.to_thread((files / "big").read_bytes) == versions[1].files["big"]


async def test_a_file_that_a_layer_has_twice_is_fetched_once(config: FetcherConfig, registry: FakeRegistry) -> None:
    noise = random.Random(29)
    big = noise.randbytes(4 * MIB)
    # What is fed ahead of the first one's reader ends before the second.
    layer = make_layer({"one": big, "other": noise.randbytes(9 * MIB), "two": big}, frame_bytes=FRAME)
    registry.add_blob(REPOSITORY, layer.blob)
    async with running(replace(config, background_fill=False)) as fetcher:
        await fetcher.admit(layer.ref, [Origin(host=registry.host, repository=REPOSITORY)])
        await fetcher.retain(layer.ref.digest)
        files = await fetcher.mount(layer.ref.digest)
        for name in ("one", "two", "other"):
            assert await asyncio.to_thread((files / name).read_bytes) == layer.files[name], name
        assert fetcher.status().reused_bytes >= 4 * MIB
        assert sum(fetcher.status().fetched_bytes.values()) < 14 * MIB


async def test_a_spoiled_neighbour_is_not_believed(
    config: FetcherConfig, versions: tuple[TestLayer, TestLayer], registry: FakeRegistry
) -> None:
    async with running(config) as fetcher:
        await complete(fetcher, versions[0], registry)
        [directory] = list((config.root / "layers").iterdir())
        with (directory / "tar").open("r+b") as tar:
            tar.write(b"spoiled")
        await complete(fetcher, versions[1], registry)
        files = await fetcher.mount(versions[1].ref.digest)
        assert await asyncio.to_thread((files / "big").read_bytes) == versions[1].files["big"]


async def test_over_quota_the_longest_unused_layer_goes(
    config: FetcherConfig, versions: tuple[TestLayer, TestLayer], registry: FakeRegistry
) -> None:
    tight = replace(config, cache=CacheConfig(max_bytes=6 * MIB, min_free_bytes=0))
    async with running(tight) as fetcher:
        for layer in versions:
            await complete(fetcher, layer, registry)
        assert state_of(fetcher, versions[0]) is LayerState.COMPLETE, "layers in use are never given up"
        await fetcher.release(versions[0].ref.digest)
        assert state_of(fetcher, versions[0]) is None
        await fetcher.release(versions[1].ref.digest)
        assert state_of(fetcher, versions[1]) is LayerState.COMPLETE
        assert len(os.listdir(config.root / "layers")) == 1
        assert await fetcher.clear_cache() == [versions[1].ref.digest]


async def test_what_a_container_still_reads_is_kept(
    config: FetcherConfig, versions: tuple[TestLayer, TestLayer], registry: FakeRegistry, tmp_path: Path
) -> None:
    """An overlay keeps its lower layers in use after their mount points are gone."""
    async with running(replace(config, background_fill=False)) as fetcher:
        layer = versions[0]
        await fetcher.admit(layer.ref, [Origin(host=registry.host, repository=REPOSITORY)])
        await fetcher.retain(layer.ref.digest)
        files = await fetcher.mount(layer.ref.digest)
        merged = tmp_path / "merged"
        for name in ("upper", "work", "merged"):
            (tmp_path / name).mkdir()
        options = f"lowerdir={files},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        await asyncio.to_thread(kernel.mount, "overlay", merged, "overlay", 0, options)
        try:
            await fetcher.release(layer.ref.digest)
            with pytest.raises(LayerUnavailable, match="still read"):
                await fetcher.evict(layer.ref.digest)
            assert await asyncio.to_thread((merged / "big").read_bytes) == layer.files["big"]
        finally:
            await asyncio.to_thread(kernel.umount, merged)
        await fetcher.evict(layer.ref.digest)


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A file system that can share blocks."""
    image, point = tmp_path / "xfs.img", tmp_path / "xfs"
    with image.open("wb") as stream:
        stream.truncate(400 * MIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


async def test_blocks_are_shared_where_the_file_system_can(
    config: FetcherConfig, versions: tuple[TestLayer, TestLayer], registry: FakeRegistry, xfs: Path
) -> None:
    def used() -> int:
        fd = os.open(xfs, os.O_RDONLY)
        kernel.syncfs(fd)
        os.close(fd)
        stat = os.statvfs(xfs)
        return (stat.f_blocks - stat.f_bfree) * stat.f_frsize

    async with running(replace(config, root=xfs / "root")) as fetcher:
        await complete(fetcher, versions[0], registry)
        before = used()
        await complete(fetcher, versions[1], registry)
        files = await fetcher.mount(versions[1].ref.digest)
        assert await asyncio.to_thread((files / "big").read_bytes) == versions[1].files["big"]
        assert used() - before < MIB
