"""The fanotify plane over a real kernel: laziness, verification, completion, failing sources."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fetcher.model import FetcherConfig, GovernorConfig, LayerState, LayerUnavailable
from fetcher.node import HASH_ALONG_BYTES, Fetcher
from fetcher.planes.teardown import teardown
from fetcher.registry import Origin, RegistryConfig
from layerformat.digest import DiffID, sha256_digest
from layerformat.index import encode_index
from tests.harness.fake_registry import FakeRegistry
from tests.harness.fake_server import Fault
from tests.harness.layers import TestLayer, make_layer, with_index

pytestmark = pytest.mark.root

REPOSITORY = "team/app"
FRAME = 64 << 10
Running = Callable[..., AbstractAsyncContextManager[Fetcher]]


@pytest.fixture(scope="module")
def layer() -> TestLayer:
    """300 small files and one of 8 MiB, none of it compressible."""
    noise = random.Random(7)
    files = {f"dir/{number}": noise.randbytes(noise.randrange(1, 20000)) for number in range(300)}
    return make_layer(
        files | {"big": noise.randbytes(8 << 20), "empty": b"", "zeros": bytes(1 << 20)}, frame_bytes=FRAME
    )


@pytest.fixture
async def registry(layer: TestLayer) -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as served:
        served.add_blob(REPOSITORY, layer.blob)
        yield served


@pytest.fixture
def config(tmp_path: Path) -> FetcherConfig:
    return FetcherConfig(
        root=tmp_path / "root",
        run=tmp_path / "run",
        registry=RegistryConfig(),
        data_plane="fanotify",
        background_fill=False,
        governor=GovernorConfig(fault_deadline_s=3, retry_interval_s=0.1),
    )


@asynccontextmanager
async def mounted(config: FetcherConfig, layer: TestLayer, *origins: Origin) -> AsyncIterator[tuple[Fetcher, Path]]:
    """A fetcher with the layer admitted, retained and mounted; everything is undone at the end."""
    try:
        async with Fetcher(config) as fetcher:
            await fetcher.admit(layer.ref, origins)
            await fetcher.retain(layer.ref.digest)
            yield fetcher, await fetcher.mount(layer.ref.digest)
    finally:
        await asyncio.to_thread(teardown, config.root, config.run)


def origin(registry: FakeRegistry) -> Origin:
    return Origin(host=registry.host, repository=REPOSITORY)


async def read(path: Path) -> bytes:
    return await asyncio.to_thread(path.read_bytes)


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


async def test_reads_only_what_is_touched(config: FetcherConfig, layer: TestLayer, registry: FakeRegistry) -> None:
    async with mounted(config, layer, origin(registry)) as (fetcher, files):
        assert await read(files / "dir/7") == layer.files["dir/7"]
        assert await read(files / "empty") == b""
        assert sum(fetcher.status().fetched_bytes.values()) <= 4 * FRAME
        assert sorted(os.listdir(files / "dir")) == sorted(str(number) for number in range(300))
        for name, data in layer.files.items():
            assert await read(files / name) == data, name


PROBE = """
import mmap, random, sys
path, seed = sys.argv[1], int(sys.argv[2])
with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as view:
    for offset in random.Random(seed).sample(range(len(view) - 100), 200):
        sys.stdout.buffer.write(view[offset : offset + 100])
"""


async def test_mapped_and_random_reads(config: FetcherConfig, layer: TestLayer, registry: FakeRegistry) -> None:
    """In processes of their own: a page fault under this interpreter's lock could not be served by its event loop."""
    expected = layer.files["big"]

    async def probe(path: Path, seed: int) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROBE, str(path), str(seed), stdout=subprocess.PIPE
        )
        output, _ = await process.communicate()
        offsets = random.Random(seed).sample(range(len(expected) - 100), 200)
        assert output == b"".join(expected[offset : offset + 100] for offset in offsets)

    async with mounted(config, layer, origin(registry)) as (_, files):
        await asyncio.gather(*(probe(files / "big", seed) for seed in range(4)))


async def test_connections_that_are_slow_each_become_more(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    governor = GovernorConfig(streams=2, run_bytes=256 << 10)
    registry.fault(Fault(path="/blobs/", skip=1, times=None, piece_bytes=FRAME, piece_delay_s=0.1))
    async with mounted(replace(config, governor=governor, background_fill=True), layer, origin(registry)) as (
        fetcher,
        _,
    ):
        await until(lambda: fetcher.governor._parallelism.streams > governor.streams)
        await until(lambda: fetcher.status().layers[0].state is LayerState.COMPLETE, 60)


async def test_many_readers_are_one_download(config: FetcherConfig, layer: TestLayer, registry: FakeRegistry) -> None:
    async with mounted(config, layer, origin(registry)) as (fetcher, files):
        results = await asyncio.gather(*(read(files / "big") for _ in range(8)))
        assert all(data == layer.files["big"] for data in results)
        assert sum(fetcher.status().fetched_bytes.values()) <= len(layer.files["big"]) * 1.1


async def test_neighbouring_misses_are_coalesced(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    async with mounted(config, layer, origin(registry)) as (_, files):
        await read(files / "big")
        frames = len(layer.files["big"]) // FRAME
        assert len(registry.seen("GET", "/blobs/")) < frames / 3


async def test_fill_completes_the_layer_and_drops_the_mark(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    async with mounted(replace(config, background_fill=True), layer, origin(registry)) as (fetcher, files):
        await until(lambda: fetcher.status().layers[0].state is LayerState.COMPLETE)
        assert (files.parent / "tar").read_bytes() == layer.tar
        marks = [Path(f"/proc/self/fdinfo/{fd}").read_text() for fd in os.listdir("/proc/self/fd") if _is_fanotify(fd)]
        assert marks
        assert not any("fanotify ino:" in text for text in marks)
        events = fetcher.status().events
        assert await read(files / "big") == layer.files["big"]
        assert fetcher.status().events == events
        assert sum(fetcher.status().fetched_bytes.values()) == layer.index.frames.data_size


async def test_a_large_layer_is_hashed_as_it_grows(config: FetcherConfig) -> None:
    pattern = random.Random(5).randbytes(1 << 20)
    large = make_layer({"large": pattern * (HASH_ALONG_BYTES >> 20)}, frame_bytes=1 << 20)
    async with FakeRegistry() as registry:
        registry.add_blob(REPOSITORY, large.blob)
        filling = replace(config, background_fill=True)
        async with mounted(filling, large, origin(registry)) as (fetcher, files):
            await until(lambda: fetcher.status().layers[0].state is LayerState.COMPLETE)
            assert await read(files / "large") == large.files["large"]


async def test_a_layer_that_is_not_the_configs_tar_is_never_complete(config: FetcherConfig, layer: TestLayer) -> None:
    """Its frames are those of the index, which the manifest names; but not what other runtimes would extract."""
    other = replace(layer.index, diff_id=DiffID(sha256_digest(b"something else")))
    lying = with_index(layer, other, encode_index(other))
    async with FakeRegistry() as registry:
        registry.add_blob(REPOSITORY, lying.blob)
        async with mounted(replace(config, background_fill=True), lying, origin(registry)) as (fetcher, _):
            await until(lambda: fetcher.status().layers[0].state is LayerState.CORRUPT)
            with pytest.raises(LayerUnavailable, match="config says"):
                await fetcher.admit(lying.ref, [origin(registry)])


def _is_fanotify(fd: str) -> bool:
    try:
        return "[fanotify]" in os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False


async def test_zeros_stay_a_hole(config: FetcherConfig, layer: TestLayer, registry: FakeRegistry) -> None:
    async with mounted(config, layer, origin(registry)) as (_, files):
        assert await read(files / "zeros") == bytes(1 << 20)
        assert (files.parent / "tar").stat().st_blocks * 512 < 4 * FRAME


async def test_a_wrong_frame_is_fetched_from_another_source(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    async with FakeRegistry() as liar:
        liar.add_blob(REPOSITORY, layer.blob)
        async with mounted(config, layer, origin(liar), origin(registry)) as (fetcher, files):
            liar.fault(Fault(path="/blobs/", corrupt_at=100, times=None))
            assert await read(files / "big") == layer.files["big"]
            assert "did not verify" in (fetcher.status().layers[0].last_error or "")


async def test_a_frame_that_never_verifies_is_an_input_output_error(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    async with mounted(config, layer, origin(registry)) as (fetcher, files):
        fault = registry.fault(Fault(path="/blobs/", corrupt_at=100, times=None))
        with pytest.raises(OSError) as caught:
            await read(files / "dir/7")
        assert caught.value.errno == errno.EIO
        assert registry.host in (fetcher.status().layers[0].last_error or "")
        registry.faults.remove(fault)
        assert await read(files / "dir/7") == layer.files["dir/7"]


async def test_readers_wait_while_the_registry_is_away(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    patient = replace(config, governor=replace(config.governor, fault_deadline_s=60))
    async with mounted(patient, layer, origin(registry)) as (fetcher, files):
        fault = registry.fault(Fault(path="/blobs/", status=503, times=None))
        reader = asyncio.ensure_future(read(files / "dir/9"))
        await until(lambda: fetcher.status().layers[0].waiting == 1)
        try:
            await until(lambda: bool(fetcher.status().layers[0].last_error))
            assert not reader.done()
        finally:
            registry.faults.remove(fault)
        assert await reader == layer.files["dir/9"]
        await until(lambda: fetcher.status().layers[0].last_error is None)


async def test_lies_about_the_index_admit_nothing(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    registry.fault(Fault(path="/blobs/", corrupt_at=5, times=None))
    async with Fetcher(config) as fetcher:
        with pytest.raises(LayerUnavailable, match="index"):
            await fetcher.admit(layer.ref, [origin(registry)])
        assert not fetcher.status().layers
        assert not os.listdir(config.root / "layers")
    await asyncio.to_thread(teardown, config.root, config.run)


async def test_release_and_evict_leave_nothing(config: FetcherConfig, layer: TestLayer, registry: FakeRegistry) -> None:
    async with mounted(config, layer, origin(registry)) as (fetcher, files):
        await read(files / "dir/1")
        with pytest.raises(LayerUnavailable, match="in use"):
            await fetcher.evict(layer.ref.digest)
        await fetcher.release(layer.ref.digest)
        assert not files.is_mount()
        await fetcher.evict(layer.ref.digest)
        assert not os.listdir(config.root / "layers")


async def test_releasing_ends_downloads_at_once(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    registry.fault(Fault(path="/blobs/", skip=1, times=None, piece_bytes=4096, piece_delay_s=0.05))
    async with mounted(replace(config, background_fill=True), layer, origin(registry)) as (fetcher, _):
        await until(lambda: sum(fetcher.status().fetched_bytes.values()) > 0)
        async with asyncio.timeout(2):
            await fetcher.release(layer.ref.digest)
        received = sum(fetcher.status().fetched_bytes.values())
        await asyncio.sleep(0.3)
        assert sum(fetcher.status().fetched_bytes.values()) == received


async def test_a_restart_needs_no_network_and_fetches_nothing_again(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    async with mounted(config, layer, origin(registry)) as (_, files):
        await read(files / "big")
    async with mounted(config, layer, Origin(host="127.0.0.1:1", repository="gone")) as (fetcher, files):
        assert await read(files / "big") == layer.files["big"]
        assert fetcher.status().layers[0].frames_present > 100
        assert sum(fetcher.status().fetched_bytes.values()) == 0


async def test_after_a_reboot_only_what_was_durable_is_believed(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    async with mounted(config, layer, origin(registry)) as (_, files):
        await read(files / "dir/3")
        directory = files.parent
    present = directory / "present"
    # As the disk may be after a power cut: bits of another boot, claiming everything.
    frames = bytearray(present.read_bytes())
    frames[8:44] = b"0" * 36
    frames[64:] = b"\xff" * len(frames[64:])
    present.write_bytes(frames)
    (directory / "durable").unlink()
    async with mounted(config, layer, origin(registry)) as (fetcher, files):
        assert fetcher.status().layers[0].frames_present == 0
        assert await read(files / "big") == layer.files["big"]
