"""A disk that fills up: filling pauses, readers are told, nothing is lost, and room heals everything."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from fetcher.cache import CacheConfig
from fetcher.model import FetcherConfig, GovernorConfig, LayerState, LayerUnavailable
from fetcher.node import Fetcher
from fetcher.planes.teardown import teardown
from fetcher.registry import Origin, RegistryConfig
from fetcher.scheduler.disk_pressure import VMSTAT, dirty_share
from tests.harness.fake_registry import FakeRegistry
from tests.harness.layers import TestLayer, make_layer

pytestmark = pytest.mark.root

REPOSITORY = "team/app"
MIB = 1 << 20


@pytest.fixture(scope="module")
def layer() -> TestLayer:
    noise = random.Random(31)
    return make_layer({"big": noise.randbytes(40 * MIB), "small": noise.randbytes(9000)}, frame_bytes=256 << 10)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MiB, all but some 20 MiB of it taken by the file ``ballast``."""
    image, point = tmp_path / "disk.img", tmp_path / "disk"
    with image.open("wb") as stream:
        stream.truncate(96 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        subprocess.run(["fallocate", "-l", str(65 * MIB), point / "ballast"], check=True)
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.fixture
def config(disk: Path, tmp_path: Path) -> FetcherConfig:
    return FetcherConfig(
        root=disk / "root",
        run=tmp_path / "run",
        registry=RegistryConfig(),
        data_plane="fanotify",
        background_fill=False,
        cache=CacheConfig(min_free_bytes=0),
        governor=GovernorConfig(fault_deadline_s=2, retry_interval_s=0.1, reserve_bytes=0),
    )


@asynccontextmanager
async def mounted(config: FetcherConfig, layer: TestLayer) -> AsyncIterator[tuple[Fetcher, Path]]:
    async with FakeRegistry() as registry:
        registry.add_blob(REPOSITORY, layer.blob)
        try:
            async with Fetcher(config) as fetcher:
                await fetcher.admit(layer.ref, [Origin(host=registry.host, repository=REPOSITORY)])
                await fetcher.retain(layer.ref.digest)
                yield fetcher, await fetcher.mount(layer.ref.digest)
        finally:
            await asyncio.to_thread(teardown, config.root, config.run)


def fill_to_the_last_block(path: Path) -> None:
    with path.open("wb", buffering=0) as stream:
        for size in (MIB, 4096):
            with suppress(OSError):
                while stream.write(bytes(size)):
                    pass


async def digest_of(path: Path) -> str:
    process = await asyncio.create_subprocess_exec("sha256sum", str(path), stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    return output.split()[0].decode() if process.returncode == 0 else "failed"


async def test_a_reader_is_told_and_room_heals_it(config: FetcherConfig, layer: TestLayer, disk: Path) -> None:
    async with mounted(config, layer) as (fetcher, files):
        with pytest.raises(OSError) as caught:
            await asyncio.to_thread((files / "big").read_bytes)
        assert caught.value.errno in (errno.ENOSPC, errno.EIO)
        assert "No space left" in (fetcher.status().layers[0].last_error or "")
        (disk / "ballast").unlink()
        assert await digest_of(files / "big") == hashlib.sha256(layer.files["big"]).hexdigest()


def test_teardown_leaves_a_disk_of_its_own_mounted(disk: Path, config: FetcherConfig) -> None:
    """The cache may be one, and the operator mounted it."""
    assert disk in config.root.parents or disk == config.root
    assert teardown(disk, config.run) == []
    assert disk.is_mount()


async def test_a_reader_waits_for_room(config: FetcherConfig, layer: TestLayer, disk: Path) -> None:
    patient = replace(config, governor=replace(config.governor, fault_deadline_s=60))
    async with mounted(patient, layer) as (fetcher, files):
        reader = asyncio.ensure_future(digest_of(files / "big"))
        async with asyncio.timeout(20):
            while not fetcher.status().layers[0].last_error:
                await asyncio.sleep(0.05)
        assert not reader.done()
        (disk / "ballast").unlink()
        assert await reader == hashlib.sha256(layer.files["big"]).hexdigest()


async def test_filling_leaves_the_reserve_alone(config: FetcherConfig, layer: TestLayer, disk: Path) -> None:
    careful = replace(
        config, background_fill=True, governor=replace(config.governor, reserve_bytes=18 * MIB, run_bytes=MIB)
    )
    async with mounted(careful, layer) as (fetcher, files):
        await asyncio.sleep(2)
        status = fetcher.status().layers[0]
        assert status.state is LayerState.FILLING
        assert status.last_error is None, "it stopped before the disk was full"
        assert await asyncio.to_thread((files / "small").read_bytes) == layer.files["small"]
        (disk / "ballast").unlink()
        async with asyncio.timeout(30):
            while fetcher.status().layers[0].state is not LayerState.COMPLETE:
                await asyncio.sleep(0.05)


async def test_filling_waits_for_the_disk_to_keep_up(config: FetcherConfig, layer: TestLayer, disk: Path) -> None:
    (disk / "ballast").unlink()
    await asyncio.to_thread(os.sync)
    (disk / "dirt").write_bytes(bytes(32 * MIB))
    share = dirty_share(VMSTAT.read_text())
    careful = replace(config, background_fill=True, governor=replace(config.governor, dirty_share=share / 2))
    async with mounted(careful, layer) as (fetcher, files):
        await asyncio.sleep(2)
        assert fetcher.status().layers[0].frames_present == 0
        assert await asyncio.to_thread((files / "small").read_bytes) == layer.files["small"]
        assert fetcher.status().layers[0].state is LayerState.FILLING
        async with asyncio.timeout(30):
            while fetcher.status().layers[0].state is not LayerState.COMPLETE:
                await asyncio.to_thread(os.sync)
                await asyncio.sleep(0.05)


async def test_an_index_that_does_not_fit_admits_nothing(config: FetcherConfig, layer: TestLayer, disk: Path) -> None:
    async with FakeRegistry() as registry:
        registry.add_blob(REPOSITORY, layer.blob)
        try:
            async with Fetcher(config) as fetcher:
                fill_to_the_last_block(disk / "filler")
                with pytest.raises((OSError, LayerUnavailable)):
                    await fetcher.admit(layer.ref, [Origin(host=registry.host, repository=REPOSITORY)])
                assert not fetcher.status().layers
                assert not list((config.root / "layers").iterdir())
                (disk / "filler").unlink()
                await fetcher.admit(layer.ref, [Origin(host=registry.host, repository=REPOSITORY)])
        finally:
            await asyncio.to_thread(teardown, config.root, config.run)
