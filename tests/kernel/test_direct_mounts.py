"""When a complete layer is mounted by direct I/O: large files, out of the page cache, nobody on the mount there is."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fetcher import kernel
from fetcher.model import FetcherConfig, LayerState
from fetcher.node import Fetcher
from fetcher.planes.erofs_mount import BACKING_DEVICES, READ_AHEAD_KIB, is_cold
from fetcher.planes.teardown import teardown
from fetcher.registry import Origin, RegistryConfig
from tests.harness.fake_registry import FakeRegistry
from tests.harness.layers import TestLayer, make_layer
from tests.harness.page_cache import cool

pytestmark = pytest.mark.root

REPOSITORY = "team/app"
#: A system call that no kernel has.
NO_SUCH_CALL = 1023
MS_BIND = 0x1000  # include/uapi/linux/mount.h


@pytest.fixture(scope="module")
def small_files() -> TestLayer:
    noise = random.Random(18)
    return make_layer({f"dir/{number}": noise.randbytes(9000) for number in range(400)}, frame_bytes=256 << 10)


@pytest.fixture(scope="module")
def layer() -> TestLayer:
    """Larger than what is looked at of a layer file at once; two thirds of it are a hole."""
    noise = random.Random(17)
    files = {"big": noise.randbytes(12 << 20), "small": noise.randbytes(5000), "zeros": bytes(24 << 20)}
    return make_layer(files, frame_bytes=256 << 10)


@pytest.fixture
async def registry(layer: TestLayer) -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as served:
        served.add_blob(REPOSITORY, layer.blob)
        yield served


@pytest.fixture(params=["fanotify", "fuse"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FetcherConfig]:
    made = FetcherConfig(
        root=tmp_path / "root",
        run=tmp_path / "run",
        registry=RegistryConfig(),
        data_plane=request.param,
        background_fill=True,
    )
    yield made
    teardown(made.root, made.run)


@pytest.fixture
async def fetcher(config: FetcherConfig, layer: TestLayer, registry: FakeRegistry) -> AsyncIterator[Fetcher]:
    """With the layer complete, retained and not mounted."""
    async with Fetcher(config) as running:
        await fetch(running, layer, registry)
        yield running


async def fetch(fetcher: Fetcher, layer: TestLayer, registry: FakeRegistry) -> None:
    """Until it is complete."""
    await fetcher.admit(layer.ref, [Origin(host=registry.host, repository=REPOSITORY)])
    await fetcher.retain(layer.ref.digest)
    async with asyncio.timeout(20):
        while any(status.state is not LayerState.COMPLETE for status in fetcher.status().layers):
            await asyncio.sleep(0.02)


def tar_of(fetcher: Fetcher, layer: TestLayer) -> Path:
    found = fetcher.layer(layer.ref.digest)
    assert found is not None
    return found.tar_path


def warm(tar: Path) -> None:
    """In the page cache."""
    tar.read_bytes()


def missing_pages(file: Path) -> int:
    """How many pages of a file are out of the page cache."""
    fd = os.open(file, os.O_RDONLY)
    try:
        return -(-file.stat().st_size // os.sysconf("SC_PAGE_SIZE")) - kernel.cachestat(fd, 0, 0).nr_cache
    finally:
        os.close(fd)


def how(files: Path) -> list[str]:
    """How a layer is mounted, once for each mount at its mount point."""
    here = [mount for mount in kernel.mounts() if mount.point == files]
    return sorted("direct" if "directio" in mount.options else "buffered" for mount in here)


@contextmanager
def overlay_on(lower: Path, space: Path) -> Iterator[Path]:
    """A container's root file system."""
    for name in ("base", "merged", "upper", "work"):
        (space / name).mkdir()
    options = f"lowerdir={lower}:{space / 'base'},upperdir={space / 'upper'},workdir={space / 'work'}"
    kernel.mount("overlay", space / "merged", "overlay", data=options)
    try:
        yield space / "merged"
    finally:
        kernel.umount(space / "merged")


@contextmanager
def bind_of(files: Path, space: Path) -> Iterator[Path]:
    """A view of one layer."""
    (space / "bound").mkdir()
    kernel.mount(str(files), space / "bound", "", MS_BIND)
    try:
        yield space / "bound"
    finally:
        kernel.umount(space / "bound")


async def mount_cold(fetcher: Fetcher, layer: TestLayer) -> Path:
    """Ask for the mount as after a reboot."""
    cool(tar_of(fetcher, layer))
    return await fetcher.mount(layer.ref.digest)


async def check(files: Path, layer: TestLayer) -> None:
    for name, data in layer.files.items():
        assert await asyncio.to_thread((files / name).read_bytes) == data, name


async def test_in_memory_is_buffered(fetcher: Fetcher, layer: TestLayer) -> None:
    assert not is_cold(tar_of(fetcher, layer))
    files = await fetcher.mount(layer.ref.digest)
    assert how(files) == ["buffered"]
    await check(files, layer)


async def test_out_of_memory_is_direct_and_stays_so(fetcher: Fetcher, layer: TestLayer) -> None:
    files = await mount_cold(fetcher, layer)
    assert how(files) == ["direct"]
    await check(files, layer)
    assert is_cold(tar_of(fetcher, layer))  # nothing of it was read through its own pages
    tar_of(fetcher, layer).read_bytes()
    mounted = files.stat().st_dev
    await fetcher.mount(layer.ref.digest)
    assert (how(files), files.stat().st_dev) == (["direct"], mounted)


async def test_small_files_are_buffered(fetcher: Fetcher, small_files: TestLayer, registry: FakeRegistry) -> None:
    registry.add_blob(REPOSITORY, small_files.blob)
    await fetch(fetcher, small_files, registry)
    files = await mount_cold(fetcher, small_files)
    assert how(files) == ["buffered"]
    await check(files, small_files)


async def test_what_was_mounted_in_memory_is_mounted_anew_once(
    fetcher: Fetcher, small_files: TestLayer, registry: FakeRegistry
) -> None:
    registry.add_blob(REPOSITORY, small_files.blob)
    await fetch(fetcher, small_files, registry)
    mounts = []
    for _ in range(3):
        files = await fetcher.mount(small_files.ref.digest)
        mounts.append(files.stat().st_dev)
        cool(tar_of(fetcher, small_files))
    assert mounts[0] != mounts[1] == mounts[2]
    assert how(files) == ["buffered"]
    await check(files, small_files)


async def test_a_mount_that_nobody_uses_is_replaced(fetcher: Fetcher, config: FetcherConfig, layer: TestLayer) -> None:
    files = await fetcher.mount(layer.ref.digest)
    await mount_cold(fetcher, layer)
    assert how(files) == ["direct"]
    await check(files, layer)
    await fetcher.release(layer.ref.digest)
    assert not kernel.mounts_below(config.root)


@pytest.mark.parametrize("names", ["absolute", "relative"])
async def test_a_mount_under_an_overlay_stays(
    fetcher: Fetcher, layer: TestLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    files = await fetcher.mount(layer.ref.digest)
    layers = files.parent.parent
    lower = files
    if names == "relative":  # as containerd does it where options would get too long
        monkeypatch.chdir(layers)
        lower = files.relative_to(layers)
    with overlay_on(lower, tmp_path) as merged:
        await mount_cold(fetcher, layer)
        assert how(files) == ["buffered"]
        await check(merged, layer)
    await mount_cold(fetcher, layer)
    assert how(files) == ["direct"]


async def test_a_mount_that_is_bound_elsewhere_stays(fetcher: Fetcher, layer: TestLayer, tmp_path: Path) -> None:
    files = await fetcher.mount(layer.ref.digest)
    with bind_of(files, tmp_path) as bound:
        await mount_cold(fetcher, layer)
        assert how(files) == ["buffered"]
        await check(bound, layer)


async def test_an_open_file_keeps_the_mount_until_it_is_closed(fetcher: Fetcher, layer: TestLayer) -> None:
    files = await fetcher.mount(layer.ref.digest)
    with (files / "big").open("rb") as opened:
        shown = files.stat().st_dev
        for _ in range(2):
            await mount_cold(fetcher, layer)
            assert (how(files), files.stat().st_dev) == (["buffered", "direct"], shown)
        assert await asyncio.to_thread(opened.read) == layer.files["big"]
    await mount_cold(fetcher, layer)
    assert how(files) == ["direct"]
    await check(files, layer)


async def test_killed_while_it_replaced_a_mount(fetcher: Fetcher, layer: TestLayer) -> None:
    files = await fetcher.mount(layer.ref.digest)
    options = [("source", files.parent / "meta.erofs"), ("device", tar_of(fetcher, layer)), ("directio", None)]
    kernel.mount_new("erofs", files, options, beneath=True)
    assert how(files) == ["buffered", "direct"]
    await fetcher.release(layer.ref.digest)
    assert not how(files)
    await fetcher.retain(layer.ref.digest)
    await fetcher.mount(layer.ref.digest)
    kernel.mount_new("erofs", files, options, beneath=True)
    await mount_cold(fetcher, layer)
    assert how(files) == ["direct"]
    await check(files, layer)


async def test_a_new_daemon_goes_on_with_what_is_mounted(
    config: FetcherConfig, fetcher: Fetcher, layer: TestLayer
) -> None:
    files = await mount_cold(fetcher, layer)
    mounted = files.stat().st_dev
    await fetcher.__aexit__()
    async with Fetcher(config) as successor:
        await successor.retain(layer.ref.digest)
        await successor.mount(layer.ref.digest)
        assert (how(files), files.stat().st_dev) == (["direct"], mounted)
        await check(files, layer)


async def test_without_cachestat_all_is_buffered(
    fetcher: Fetcher, layer: TestLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "SYS_cachestat", NO_SUCH_CALL)
    for _ in range(2):
        files = await mount_cold(fetcher, layer)
        assert how(files) == ["buffered"]
    await check(files, layer)


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_a_layer_whose_reads_are_watched_is_left_alone(fetcher: Fetcher, layer: TestLayer) -> None:
    found = fetcher.layer(layer.ref.digest)
    assert found is not None
    fetcher.plane.protect(found)
    cool(found.tar_path)
    files = await fetcher.mount(layer.ref.digest)
    assert how(files) == ["buffered"]
    fetcher.plane.unprotect(found)
    await fetcher.mount(layer.ref.digest)
    assert how(files) == ["direct"]


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_an_incomplete_layer_is_never_direct(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    """Its fresh pages are in the page cache and nowhere else."""
    async with Fetcher(replace(config, background_fill=False)) as fetcher:
        await fetcher.admit(layer.ref, [Origin(host=registry.host, repository=REPOSITORY)])
        await fetcher.retain(layer.ref.digest)
        files = await mount_cold(fetcher, layer)
        assert await asyncio.to_thread((files / "small").read_bytes) == layer.files["small"]
        await mount_cold(fetcher, layer)
        assert how(files) == ["buffered"]
        await check(files, layer)


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
@pytest.mark.parametrize("state", [cool, warm])
async def test_large_files_are_read_far_ahead(
    fetcher: Fetcher, layer: TestLayer, small_files: TestLayer, registry: FakeRegistry, state: Callable[[Path], None]
) -> None:
    registry.add_blob(REPOSITORY, small_files.blob)
    await fetch(fetcher, small_files, registry)
    for made, expected in ((layer, READ_AHEAD_KIB), (small_files, 128)):
        known = set(BACKING_DEVICES.glob("erofs-*"))
        state(tar_of(fetcher, made))
        await fetcher.mount(made.ref.digest)
        (mine,) = set(BACKING_DEVICES.glob("erofs-*")) - known
        assert int((mine / "read_ahead_kb").read_text()) == expected


async def test_metadata_come_in_one_go(fetcher: Fetcher, small_files: TestLayer, registry: FakeRegistry) -> None:
    registry.add_blob(REPOSITORY, small_files.blob)
    await fetch(fetcher, small_files, registry)
    tar = tar_of(fetcher, small_files)
    for state in (warm, cool, cool):  # mounted, replaced, as it is
        state(tar)
        cool(tar.with_name("meta.erofs"))
        assert missing_pages(tar.with_name("meta.erofs")) > 8
        await fetcher.mount(small_files.ref.digest)
        async with asyncio.timeout(10):
            while missing_pages(tar.with_name("meta.erofs")):
                await asyncio.sleep(0.02)
