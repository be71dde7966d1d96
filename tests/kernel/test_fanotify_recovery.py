"""Daemon and keeper killed at any moment: readers wait, and what they read in the end is right."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fetcher import kernel
from fetcher.planes.event_journal import Journal
from fetcher.planes.keeper_client import KeeperClient
from fetcher.planes.teardown import keeper_pid, teardown
from tests.harness.fake_registry import FakeRegistry
from tests.harness.fake_server import Fault
from tests.harness.fetcher_process import FetcherProcess, fetcher_process
from tests.harness.layers import TestLayer, make_layer

pytestmark = pytest.mark.root

REPOSITORY = "team/app"
KILLS = 50


@pytest.fixture(scope="module")
def layer() -> TestLayer:
    noise = random.Random(11)
    return make_layer({"big": noise.randbytes(24 << 20), "small": noise.randbytes(5000)}, frame_bytes=256 << 10)


@pytest.fixture
async def registry(layer: TestLayer) -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as served:
        served.add_blob(REPOSITORY, layer.blob)
        yield served


@contextmanager
def process_for(
    directory: Path, registry: FakeRegistry, layer: TestLayer, *, fill: bool = False
) -> Iterator[FetcherProcess]:
    """A fetcher process over a fresh root; unmounted and gone at the end."""
    document: dict[str, object] = {
        "root": str(directory / "root"),
        "run": str(directory / "run"),
        "host": registry.host,
        "repository": REPOSITORY,
        "annotations": layer.ref.to_annotations(),
        "background_fill": fill,
    }
    directory.mkdir()
    try:
        with fetcher_process(directory, document) as process:
            yield process
    finally:
        teardown(directory / "root", directory / "run")


@contextmanager
def hashing(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads a file to its end."""
    with subprocess.Popen(["sha256sum", str(path)], stdout=subprocess.PIPE) as reader:
        try:
            yield reader
        finally:
            reader.kill()


async def digest_of(reader: subprocess.Popen[bytes]) -> str:
    async with asyncio.timeout(60):
        output, _ = await asyncio.to_thread(reader.communicate)
    return output.split()[0].decode()


async def logged(process: FetcherProcess, event: str) -> None:
    """Wait until the process has logged an event."""
    async with asyncio.timeout(10):
        while event not in process.log.read_text():
            await asyncio.sleep(0.02)


def slow(registry: FakeRegistry) -> None:
    """About 100 MB/s, so that a kill lands in the middle of things."""
    registry.fault(Fault(path="/blobs/", times=None, piece_bytes=64 << 10, piece_delay_s=0.0005))


@pytest.mark.timeout(600)
async def test_killed_in_the_middle_of_a_cold_read(tmp_path: Path, layer: TestLayer, registry: FakeRegistry) -> None:
    slow(registry)
    expected = hashlib.sha256(layer.files["big"]).hexdigest()
    delays = random.Random(5)
    inherited = 0
    for attempt in range(KILLS):
        with process_for(tmp_path / f"{attempt}", registry, layer) as process:
            mount_point = await asyncio.to_thread(process.start)
            with hashing(mount_point / "big") as reader:
                await asyncio.sleep(delays.uniform(0.0, 0.25))
                process.kill()
                await asyncio.sleep(delays.uniform(0.0, 0.05))
                await asyncio.to_thread(process.start)
                assert await digest_of(reader) == expected, attempt
            inherited += process.log.read_text().count("event_inherited")
    # Otherwise the kills all missed and the test has shown nothing.
    assert inherited > KILLS / 4


async def test_readers_wait_while_nobody_serves(tmp_path: Path, layer: TestLayer, registry: FakeRegistry) -> None:
    with process_for(tmp_path / "a", registry, layer) as process:
        mount_point = await asyncio.to_thread(process.start)
        process.kill()
        with hashing(mount_point / "big") as reader:
            await asyncio.sleep(1.0)
            assert reader.poll() is None
            await asyncio.to_thread(process.start)
            assert await digest_of(reader) == hashlib.sha256(layer.files["big"]).hexdigest()


async def test_stopped_politely_in_the_middle_of_a_cold_read(
    tmp_path: Path, layer: TestLayer, registry: FakeRegistry
) -> None:
    registry.fault(Fault(path="/blobs/", times=None, piece_bytes=64 << 10, piece_delay_s=0.02))
    with process_for(tmp_path / "a", registry, layer) as process:
        mount_point = await asyncio.to_thread(process.start)
        with hashing(mount_point / "big") as reader:
            await asyncio.sleep(0.3)
            await asyncio.to_thread(process.stop)
            registry.faults.clear()
            await asyncio.to_thread(process.start)
            assert await digest_of(reader) == hashlib.sha256(layer.files["big"]).hexdigest()


async def test_a_waiting_reader_can_be_killed(tmp_path: Path, layer: TestLayer, registry: FakeRegistry) -> None:
    with process_for(tmp_path / "a", registry, layer) as process:
        mount_point = await asyncio.to_thread(process.start)
        process.kill()
        with hashing(mount_point / "big") as reader:
            await asyncio.sleep(0.3)
            reader.kill()
            assert await asyncio.to_thread(reader.wait, 5) == -signal.SIGKILL


async def test_the_keeper_is_replaced_when_it_dies(tmp_path: Path, layer: TestLayer, registry: FakeRegistry) -> None:
    with process_for(tmp_path / "a", registry, layer) as process:
        mount_point = await asyncio.to_thread(process.start)
        first = keeper_pid(tmp_path / "a/run")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(10):
            while keeper_pid(tmp_path / "a/run") in (None, first):
                await asyncio.sleep(0.02)
        await logged(process, "keeper_replaced")
        await asyncio.sleep(0.2)
        process.kill()
        with hashing(mount_point / "big") as reader:
            await asyncio.sleep(0.3)
            assert reader.poll() is None
            await asyncio.to_thread(process.start)
            assert await digest_of(reader) == hashlib.sha256(layer.files["big"]).hexdigest()


async def test_events_read_but_not_recorded_are_answered_in_the_end(
    tmp_path: Path, layer: TestLayer, registry: FakeRegistry
) -> None:
    """The one gap of the journal, made wide: somebody takes events from the group and dies before it records them."""
    run = tmp_path / "a/run"
    with process_for(tmp_path / "a", registry, layer) as process:
        mount_point = await asyncio.to_thread(process.start)
        process.kill()
        with hashing(mount_point / "small") as reader:
            await asyncio.sleep(0.3)
            await asyncio.to_thread(take_events_and_forget, run / "keeper.sock")
            await asyncio.to_thread(process.start)
            with hashing(mount_point / "big") as other:
                assert await digest_of(other) == hashlib.sha256(layer.files["big"]).hexdigest()
            assert await digest_of(reader) == hashlib.sha256(layer.files["small"]).hexdigest()
        assert "events_lost_in_crash" in process.log.read_text()
        await logged(process, "lost_events_answered")


def take_events_and_forget(socket: Path) -> None:
    """What a daemon that dies inside the gap leaves behind."""
    with KeeperClient.attach(socket)[0] as client:
        held = client.take_over()
    journal = Journal(held[".journal"])
    journal.begin_read()
    events = list(kernel.parse_events(os.read(held[".group"], 4096)))
    assert events
    for event in events:
        os.close(event.fd)
    journal.close()
    for fd in held.values():
        os.close(fd)
