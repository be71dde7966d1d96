"""What every data plane owes, whichever way the kernel gets at the bytes; and which of them a node gets."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import fetcher.planes.fuse
from fetcher import kernel
from fetcher.model import FetcherConfig, GovernorConfig, LayerState
from fetcher.node import Fetcher
from fetcher.planes import selection
from fetcher.planes.erofs_mount import ErofsMounter
from fetcher.planes.selection import Capabilities, PlaneUnavailable
from fetcher.planes.teardown import teardown
from fetcher.registry import Origin, RegistryConfig
from tests.harness.fake_registry import FakeRegistry
from tests.harness.fake_server import Fault
from tests.harness.fetcher_process import FetcherProcess, fetcher_process
from tests.harness.layers import TestLayer, make_layer

REPOSITORY = "team/app"
FRAME = 64 << 10
#: As the fuse plane, on a kernel whose EROFS takes block devices only.
FUSE_LOOP = "fuse-loop"
KILLS = 10


@pytest.fixture(scope="module")
def layer() -> TestLayer:
    """200 small files and one of 8 MiB, none of it compressible."""
    noise = random.Random(3)
    files = {f"dir/{number}": noise.randbytes(noise.randrange(1, 20000)) for number in range(200)}
    return make_layer(
        files | {"big": noise.randbytes(8 << 20), "empty": b"", "zeros": bytes(1 << 20)}, frame_bytes=FRAME
    )


@pytest.fixture
async def registry(layer: TestLayer) -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as served:
        served.add_blob(REPOSITORY, layer.blob)
        yield served


@pytest.fixture(params=["fanotify", "fuse", FUSE_LOOP, "eager"])
def plane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each plane in turn; the name to configure."""
    name = str(request.param)
    if name == FUSE_LOOP:
        monkeypatch.setattr(fetcher.planes.fuse, "ErofsMounter", partial(ErofsMounter, file_backed=False))
        return "fuse"
    return name


@pytest.fixture
def config(tmp_path: Path, plane: str) -> FetcherConfig:
    return FetcherConfig(
        root=tmp_path / "root",
        run=tmp_path / "run",
        registry=RegistryConfig(),
        data_plane=plane,
        background_fill=False,
        governor=GovernorConfig(fault_deadline_s=3, retry_interval_s=0.1),
    )


@asynccontextmanager
async def mounted(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> AsyncIterator[tuple[Fetcher, Path]]:
    """A fetcher with the layer admitted, retained and mounted; everything is undone at the end."""
    try:
        async with Fetcher(config) as fetcher:
            await fetcher.admit(layer.ref, [Origin(host=registry.host, repository=REPOSITORY)])
            await fetcher.retain(layer.ref.digest)
            yield fetcher, await fetcher.mount(layer.ref.digest)
    finally:
        await asyncio.to_thread(teardown, config.root, config.run)


async def read(path: Path) -> bytes:
    return await asyncio.to_thread(path.read_bytes)


async def complete(fetcher: Fetcher) -> None:
    """Wait until the layer is there and verified as a whole."""
    async with asyncio.timeout(20):
        while fetcher.status().layers[0].state is not LayerState.COMPLETE:
            await asyncio.sleep(0.02)


def mounts(config: FetcherConfig) -> list[str]:
    """Kinds of what is mounted below the layers."""
    return [kind for _, kind in kernel.mounts_below(config.root)]


# The bytes


@pytest.mark.root
async def test_shows_every_file(config: FetcherConfig, layer: TestLayer, registry: FakeRegistry) -> None:
    async with mounted(config, layer, registry) as (_, files):
        assert sorted(os.listdir(files / "dir")) == sorted(str(number) for number in range(200))
        for name, data in layer.files.items():
            assert await read(files / name) == data, name


PROBE = """
import mmap, os, random, sys
path, how, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(path, "rb", buffering=0) as stream:
    size = os.fstat(stream.fileno()).st_size
    view = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) if how == "mmap" else None
    for offset in random.Random(seed).sample(range(size - 100), 200):
        data = view[offset : offset + 100] if view else os.pread(stream.fileno(), 100, offset)
        sys.stdout.buffer.write(data)
"""


@pytest.mark.root
@pytest.mark.parametrize("how", ["mmap", "pread"])
async def test_reads_in_any_order_from_several_processes(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry, how: str
) -> None:
    """In processes of their own: a page fault under this interpreter's lock could not be served by its event loop."""
    expected = layer.files["big"]

    async def probe(path: Path, seed: int) -> None:
        arguments = (sys.executable, "-c", PROBE, str(path), how, str(seed))
        process = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE)
        output, _ = await process.communicate()
        offsets = random.Random(seed).sample(range(len(expected) - 100), 200)
        assert output == b"".join(expected[offset : offset + 100] for offset in offsets)

    async with mounted(config, layer, registry) as (_, files):
        await asyncio.gather(*(probe(files / "big", seed) for seed in range(4)))


@pytest.mark.root
async def test_many_readers_are_one_download(config: FetcherConfig, layer: TestLayer, registry: FakeRegistry) -> None:
    async with mounted(config, layer, registry) as (_, files):
        results = await asyncio.gather(*(read(files / "big") for _ in range(8)))
        assert all(data == layer.files["big"] for data in results)
        assert registry.bytes_sent("/blobs/") <= len(layer.blob) * 1.1


@pytest.mark.root
async def test_a_frame_that_does_not_verify_is_never_shown(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled = bytearray(layer.blob)
    spoiled[layer.index.frames[40].offset + 1000] ^= 0xFF
    registry.blobs[layer.ref.digest] = bytes(spoiled)
    if config.data_plane == "eager":
        with pytest.raises(OSError) as failure:
            async with mounted(config, layer, registry):
                pass
    else:
        async with mounted(config, layer, registry) as (_, files):
            with pytest.raises(OSError) as failure:
                await read(files / "big")
            assert await read(files / "dir/0") == layer.files["dir/0"]
    assert failure.value.errno == errno.EIO
    assert "frame_verification_failed" in capsys.readouterr().out


# Being there, and being gone


@pytest.mark.root
async def test_eviction_leaves_nothing(config: FetcherConfig, layer: TestLayer, registry: FakeRegistry) -> None:
    async with mounted(config, layer, registry) as (fetcher, files):
        assert await fetcher.mount(layer.ref.digest) == files
        assert await read(files / "dir/1") == layer.files["dir/1"]
        await fetcher.release(layer.ref.digest)
        assert not mounts(config)
        await fetcher.evict(layer.ref.digest)
        assert not list((config.root / "layers").iterdir())


@pytest.mark.root
async def test_a_complete_layer_needs_no_answers(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    async with mounted(replace(config, background_fill=True), layer, registry) as (fetcher, files):
        await complete(fetcher)
        await fetcher.release(layer.ref.digest)
        await fetcher.retain(layer.ref.digest)
        await fetcher.mount(layer.ref.digest)
        events, sent = fetcher.plane.events, registry.bytes_sent("/blobs/")
        assert await read(files / "big") == layer.files["big"]
        assert (fetcher.plane.events, registry.bytes_sent("/blobs/")) == (events, sent)


@pytest.mark.root
async def test_a_mount_made_before_completion_goes_on(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    async with mounted(replace(config, background_fill=True), layer, registry) as (fetcher, files):
        await complete(fetcher)
        for name in ("big", "dir/3"):
            assert await read(files / name) == layer.files[name]


@pytest.mark.root
async def test_a_new_daemon_goes_on(config: FetcherConfig, layer: TestLayer, registry: FakeRegistry) -> None:
    try:
        async with Fetcher(config) as fetcher:
            await fetcher.admit(layer.ref, [Origin(host=registry.host, repository=REPOSITORY)])
            await fetcher.retain(layer.ref.digest)
            files = await fetcher.mount(layer.ref.digest)
            assert await read(files / "dir/5") == layer.files["dir/5"]
        async with Fetcher(config) as fetcher:
            assert fetcher.plane.name == config.data_plane
            for name, data in layer.files.items():
                assert await read(files / name) == data, name
    finally:
        await asyncio.to_thread(teardown, config.root, config.run)


# Killed


@contextmanager
def process_for(directory: Path, registry: FakeRegistry, layer: TestLayer, plane: str) -> Iterator[FetcherProcess]:
    """A fetcher process over a fresh root; unmounted and gone at the end."""
    document: dict[str, object] = {
        "root": str(directory / "root"),
        "run": str(directory / "run"),
        "host": registry.host,
        "repository": REPOSITORY,
        "annotations": layer.ref.to_annotations(),
        "data_plane": plane,
    }
    directory.mkdir()
    try:
        with fetcher_process(directory, document) as process:
            yield process
    finally:
        teardown(directory / "root", directory / "run")


async def digest_of(reader: subprocess.Popen[bytes]) -> str:
    async with asyncio.timeout(60):
        output, _ = await asyncio.to_thread(reader.communicate)
    return output.split()[0].decode()


@pytest.mark.root
@pytest.mark.parametrize("lazy_plane", ["fanotify", "fuse"])
async def test_killed_during_a_cold_read(
    tmp_path: Path, layer: TestLayer, registry: FakeRegistry, lazy_plane: str
) -> None:
    registry.fault(Fault(path="/blobs/", times=None, piece_bytes=16 << 10, piece_delay_s=0.0005))
    expected = hashlib.sha256(layer.files["big"]).hexdigest()
    delays = random.Random(5)
    inherited = 0
    for attempt in range(KILLS):
        with process_for(tmp_path / f"{attempt}", registry, layer, lazy_plane) as process:
            files = await asyncio.to_thread(process.start)
            with subprocess.Popen(["sha256sum", str(files / "big")], stdout=subprocess.PIPE) as reader:
                await asyncio.sleep(delays.uniform(0.0, 0.2))
                process.kill()
                await asyncio.sleep(delays.uniform(0.0, 0.05))
                await asyncio.to_thread(process.start)
                assert await digest_of(reader) == expected, attempt
            inherited += process.log.read_text().count("_inherited")
    # Otherwise the kills all missed and the test has shown nothing.
    assert inherited >= KILLS / 2


@pytest.mark.root
async def test_eager_mount_survives_kills(tmp_path: Path, layer: TestLayer, registry: FakeRegistry) -> None:
    registry.fault(Fault(path="/blobs/", times=None, piece_bytes=16 << 10, piece_delay_s=0.0005))
    delays = random.Random(6)
    for attempt in range(KILLS):
        with process_for(tmp_path / f"{attempt}", registry, layer, "eager") as process:
            starting = asyncio.create_task(asyncio.to_thread(process.start))
            await asyncio.sleep(delays.uniform(0.6, 1.6))
            assert process.process is not None
            process.process.kill()
            await asyncio.gather(starting, return_exceptions=True)
            process.kill()
            files = await asyncio.to_thread(process.start)
            for name, data in layer.files.items():
                assert await read(files / name) == data, (attempt, name)


# Choosing

WORKS = Capabilities(pre_content=None, erofs_files=None, erofs_loop=None, fuse=None)


@pytest.mark.parametrize(
    ("missing", "chosen"),
    [
        ((), "fanotify"),
        (("pre_content",), "fuse"),
        (("erofs_files",), "fuse"),
        (("pre_content", "erofs_files"), "fuse"),
        (("erofs_loop",), "fanotify"),
        (("pre_content", "fuse"), "eager"),
        (("erofs_files", "erofs_loop"), "eager"),
        (("pre_content", "erofs_files", "erofs_loop", "fuse"), "eager"),
    ],
)
def test_auto_takes_the_best_that_works(missing: tuple[str, ...], chosen: str) -> None:
    assert selection.choose("auto", replace(WORKS, **dict.fromkeys(missing, "no"))) == chosen


def test_a_plane_that_cannot_work_is_refused_with_its_reason() -> None:
    with pytest.raises(PlaneUnavailable, match="'fanotify' cannot work here: pre-content events: not supported"):
        selection.choose("fanotify", replace(WORKS, pre_content="not supported"))
    with pytest.raises(PlaneUnavailable, match="'fuse' cannot work here: EROFS: no"):
        selection.choose("fuse", replace(WORKS, erofs_files="no", erofs_loop="no"))
    assert selection.choose("eager", replace(WORKS, fuse="no", erofs_files="no")) == "eager"


@pytest.mark.root
def test_probing_finds_what_is_missing(tmp_path: Path) -> None:
    assert selection.probe(tmp_path) == WORKS
    kernel.mount("none", tmp_path, "tmpfs")
    try:
        found = selection.probe(tmp_path)
    finally:
        kernel.umount(tmp_path)
    assert found.pre_content is not None
    assert "not supported" in found.pre_content
    assert selection.choose("auto", found) == "fuse"


@pytest.mark.root
@pytest.mark.parametrize("plane", ["fanotify", "fuse"])
async def test_the_plane_stays_while_layers_are_mounted(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry, plane: str
) -> None:
    async with mounted(config, layer, registry) as (fetcher, files):
        assert selection.select(replace(config, data_plane="auto")) == plane
        other = "fuse" if plane == "fanotify" else "fanotify"
        with pytest.raises(PlaneUnavailable, match=f"mounted through '{plane}'"):
            selection.select(replace(config, data_plane=other))
        assert await read(files / "big") == layer.files["big"]
        await fetcher.release(layer.ref.digest)
        await fetcher.evict(layer.ref.digest)
        assert selection.select(replace(config, data_plane="eager")) == "eager"
