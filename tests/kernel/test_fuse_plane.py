"""The fuse plane where it differs from the others: the session that outlives the daemon, and what ends it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fetcher import kernel
from fetcher.model import FetcherConfig, LayerUnavailable
from fetcher.node import Fetcher
from fetcher.planes.teardown import keeper_pid, teardown
from fetcher.registry import Origin, RegistryConfig
from tests.harness.fake_registry import FakeRegistry
from tests.harness.fake_server import Fault
from tests.harness.fetcher_process import FetcherProcess, fetcher_process
from tests.harness.layers import TestLayer, make_layer

pytestmark = pytest.mark.root

REPOSITORY = "team/app"


@pytest.fixture(scope="module")
def layer() -> TestLayer:
    noise = random.Random(13)
    return make_layer({"big": noise.randbytes(8 << 20), "small": noise.randbytes(5000)}, frame_bytes=256 << 10)


@pytest.fixture
async def registry(layer: TestLayer) -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as served:
        served.add_blob(REPOSITORY, layer.blob)
        yield served


@pytest.fixture
def config(tmp_path: Path) -> Iterator[FetcherConfig]:
    made = FetcherConfig(
        root=tmp_path / "root",
        run=tmp_path / "run",
        registry=RegistryConfig(),
        data_plane="fuse",
        background_fill=False,
    )
    yield made
    teardown(made.root, made.run)


async def use(fetcher: Fetcher, layer: TestLayer, registry: FakeRegistry) -> Path:
    await fetcher.admit(layer.ref, [Origin(host=registry.host, repository=REPOSITORY)])
    await fetcher.retain(layer.ref.digest)
    return await fetcher.mount(layer.ref.digest)


async def read(path: Path) -> bytes:
    async with asyncio.timeout(30):
        return await asyncio.to_thread(path.read_bytes)


async def kill_keeper(config: FetcherConfig) -> None:
    pid = keeper_pid(config.run)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        while keeper_pid(config.run) == pid:
            await asyncio.sleep(0.02)


async def test_the_directory_shows_each_layer_file(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    async with Fetcher(config) as fetcher:
        files = await use(fetcher, layer, registry)
        top = config.run / "fuse"
        assert await asyncio.to_thread(os.listdir, top) == [files.parent.name]
        status = await asyncio.to_thread((top / files.parent.name).stat)
        assert (status.st_size, status.st_mode & 0o7777) == (len(layer.tar), 0o400)
        assert await read(top / files.parent.name) == layer.tar
        with pytest.raises(FileNotFoundError):
            await read(top / ("0" * 16))
        with pytest.raises(OSError) as failure:
            await asyncio.to_thread((top / "new").touch)
        assert failure.value.errno == errno.EROFS


async def test_an_open_file_does_not_stop_the_daemon_from_forking(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    """The child closes what it inherits while its parent, who answers the session, waits for it."""
    async with Fetcher(config) as fetcher:
        files = await use(fetcher, layer, registry)
        fd = await asyncio.to_thread(os.open, config.run / "fuse" / files.parent.name, os.O_RDONLY)
        try:
            process = await asyncio.create_subprocess_exec("true")
            assert await process.wait() == 0
        finally:
            os.close(fd)


async def test_nobody_else_may_look_at_the_session(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    async with Fetcher(config) as fetcher:
        files = await use(fetcher, layer, registry)
        look = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "cat"]
        process = await asyncio.create_subprocess_exec(
            *look, str(config.run / "fuse" / files.parent.name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert await process.wait() != 0
        # What EROFS shows is for everybody, whoever has to ask the session for it.
        config.root.chmod(0o755)
        (config.root / "layers").chmod(0o755)
        for directory in (files.parent, *config.root.parents):
            directory.chmod(directory.stat().st_mode | 0o055)
        process = await asyncio.create_subprocess_exec(*look, str(files / "small"), stdout=subprocess.PIPE)
        assert (await process.communicate())[0] == layer.files["small"]


async def test_the_keeper_is_replaced(config: FetcherConfig, layer: TestLayer, registry: FakeRegistry) -> None:
    async with Fetcher(config) as fetcher:
        files = await use(fetcher, layer, registry)
        await kill_keeper(config)
        async with asyncio.timeout(10):
            while keeper_pid(config.run) is None:
                await asyncio.sleep(0.02)
        assert await read(files / "small") == layer.files["small"]
    async with Fetcher(config):
        assert await read(files / "big") == layer.files["big"]


async def test_without_anybody_reads_fail_and_a_new_daemon_starts_afresh(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Fetcher(config) as fetcher:
        files = await use(fetcher, layer, registry)
        assert await read(files / "small") == layer.files["small"]
    await kill_keeper(config)
    with pytest.raises(OSError) as failure:
        await read(files / "big")
    assert failure.value.errno == errno.EIO
    async with Fetcher(config) as fetcher:
        assert "layer_session_was_lost" in capsys.readouterr().out
        assert await fetcher.mount(layer.ref.digest) == files
        for name, data in layer.files.items():
            assert await read(files / name) == data


async def test_an_aborted_session_is_renewed(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry, tmp_path: Path
) -> None:
    async with Fetcher(config) as fetcher:
        files = await use(fetcher, layer, registry)
        device = os.minor(await asyncio.to_thread(lambda: (config.run / "fuse").stat().st_dev))
        control = tmp_path / "control"
        control.mkdir()
        kernel.mount("none", control, "fusectl")
        try:
            (control / str(device) / "abort").write_text("1")
        finally:
            kernel.umount(control)
        with pytest.raises(OSError):
            await read(files / "big")
        await asyncio.gather(*(fetcher.mount(layer.ref.digest) for _ in range(3)))
        assert await read(files / "big") == layer.files["big"]


async def test_complete_layers_read_through_the_session_survive_a_restart(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    async with Fetcher(config) as fetcher:
        files = await use(fetcher, layer, registry)
        assert await read(files / "big") == layer.files["big"]
        assert await read(files / "small") == layer.files["small"]
        await asyncio.to_thread((config.run / "fuse" / files.parent.name).read_bytes)
        async with asyncio.timeout(20):
            while fetcher.status().layers[0].state != "complete":
                await asyncio.sleep(0.02)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    async with Fetcher(config) as fetcher:
        assert await read(files / "big") == layer.files["big"]
        assert fetcher.plane.events > 0


async def test_a_layer_that_comes_back_is_served_again(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    """The kernel still knows the name and the inode; pages it kept are of the same digest, and so the same bytes."""
    async with Fetcher(config) as fetcher:
        for _ in range(3):
            files = await use(fetcher, layer, registry)
            assert await read(files / "small") == layer.files["small"]
            await fetcher.release(layer.ref.digest)
            await fetcher.evict(layer.ref.digest)
        files = await use(fetcher, layer, registry)
        assert await read(files / "big") == layer.files["big"]


@contextmanager
def process_for(directory: Path, registry: FakeRegistry, layer: TestLayer) -> Iterator[FetcherProcess]:
    """A fetcher process over a fresh root; unmounted and gone at the end."""
    document: dict[str, object] = {
        "root": str(directory / "root"),
        "run": str(directory / "run"),
        "host": registry.host,
        "repository": REPOSITORY,
        "annotations": layer.ref.to_annotations(),
        "data_plane": "fuse",
    }
    directory.mkdir()
    try:
        with fetcher_process(directory, document) as process:
            yield process
    finally:
        teardown(directory / "root", directory / "run")


async def test_killed_again_and_again_with_many_readers(
    tmp_path: Path, layer: TestLayer, registry: FakeRegistry
) -> None:
    """Each life is too short to finish; what a daemon takes over may be its grandparent's."""
    registry.fault(Fault(path="/blobs/", times=None, piece_bytes=16 << 10, piece_delay_s=0.001))
    expected = hashlib.sha256(layer.files["big"]).hexdigest()
    delays = random.Random(8)
    with process_for(tmp_path / "a", registry, layer) as process:
        files = await asyncio.to_thread(process.start)
        readers = [subprocess.Popen(["sha256sum", str(files / "big")], stdout=subprocess.PIPE) for _ in range(4)]
        try:
            for _ in range(8):
                await asyncio.sleep(delays.uniform(0.0, 0.15))
                process.kill()
                await asyncio.to_thread(process.start)
            for reader in readers:
                async with asyncio.timeout(60):
                    output, _ = await asyncio.to_thread(reader.communicate)
                assert output.split()[0].decode() == expected
        finally:
            for reader in readers:
                reader.kill()
                await asyncio.to_thread(reader.wait)
        assert "fuse_request_inherited" in process.log.read_text()


async def test_a_waiting_reader_can_be_killed(tmp_path: Path, layer: TestLayer, registry: FakeRegistry) -> None:
    """Its sleep is EROFS's, for a page, not FUSE's for an answer."""
    with process_for(tmp_path / "a", registry, layer) as process:
        files = await asyncio.to_thread(process.start)
        registry.fault(Fault(path="/blobs/", times=None, delay_s=30))
        with subprocess.Popen(["cat", str(files / "big")], stdout=subprocess.DEVNULL) as reader:
            await asyncio.sleep(0.5)
            assert reader.poll() is None
            reader.kill()
            async with asyncio.timeout(5):
                await asyncio.to_thread(reader.wait)
        registry.faults.clear()


async def test_a_layer_is_released_though_a_killed_reader_left_reads_open(
    config: FetcherConfig, layer: TestLayer, registry: FakeRegistry
) -> None:
    async with Fetcher(config) as fetcher:
        files = await use(fetcher, layer, registry)
        registry.fault(Fault(path="/blobs/", times=None, delay_s=60))
        with subprocess.Popen(["cat", str(files / "big")], stdout=subprocess.DEVNULL) as reader:
            await asyncio.sleep(0.3)
            reader.kill()
            await asyncio.to_thread(reader.wait)
        async with asyncio.timeout(10):
            await fetcher.release(layer.ref.digest)
            while fetcher.status().layers:
                with suppress(LayerUnavailable):  # until the kernel has let go
                    await fetcher.evict(layer.ref.digest)
                await asyncio.sleep(0.02)
        assert not kernel.mounts_below(config.root)


async def test_unmounts_below_a_dead_daemon(tmp_path: Path, layer: TestLayer, registry: FakeRegistry) -> None:
    with process_for(tmp_path / "a", registry, layer) as process:
        await asyncio.to_thread(process.start)
        process.kill()
        async with asyncio.timeout(10):
            points = await asyncio.to_thread(teardown, tmp_path / "a/root", tmp_path / "a/run")
        assert len(points) == 2
        assert not kernel.mounts_below(tmp_path / "a")
