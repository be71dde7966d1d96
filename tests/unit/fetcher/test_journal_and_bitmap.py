"""What survives the daemon: the event journal, the frame bitmaps, the keeper."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest

from fetcher.layers.bitmap import FrameBitmap
from fetcher.planes.event_journal import SLOTS, Journal, Unanswered
from fetcher.planes.keeper_client import KeeperClient
from fetcher.planes.teardown import keeper_pid, teardown


def test_a_successor_finds_what_was_not_answered() -> None:
    fd = Journal.create()
    try:
        first = Journal(fd)
        first.limit = 8192
        first.begin_read()
        for number in (5, 6, SLOTS - 1):
            first.record(number, 1000 + number, number * 4096, 4096)
        first.end_read()
        first.forget(6)
        first.close()
        second = Journal(fd)
        assert list(second.unanswered()) == [
            Unanswered(5, 1005, 5 * 4096, 4096),
            Unanswered(SLOTS - 1, 1000 + SLOTS - 1, (SLOTS - 1) * 4096, 4096),
        ]
        assert (second.interrupted, second.limit, second.floor) == (False, 8192, 0)
        second.begin_read()
        second.floor = 77
        second.close()
        third = Journal(fd)
        assert (third.interrupted, third.floor) == (True, 77)
        third.close()
        assert os.fstat(fd).st_blocks * 512 < 64 << 10, "slots that were never used take no memory"
    finally:
        os.close(fd)


def test_a_foreign_journal_is_refused() -> None:
    fd = os.memfd_create("foreign")
    os.ftruncate(fd, 4096 + SLOTS * 24)
    with pytest.raises(ValueError, match="magic"):
        Journal(fd)
    os.close(fd)


def test_a_bitmap_counts_and_finds(tmp_path: Path) -> None:
    bitmap = FrameBitmap(tmp_path, 21)
    for number in range(17):
        bitmap.add(number)
        bitmap.add(number)
    assert (bitmap.count, bitmap.complete, len(bitmap)) == (17, False, 21)
    assert (bitmap.first_absent(0), bitmap.first_absent(18), 16 in bitmap, 17 in bitmap) == (17, 18, True, False)
    for number in range(17, 21):
        bitmap.add(number)
    assert bitmap.complete
    assert bitmap.first_absent(0) == 21
    bitmap.close()
    again = FrameBitmap(tmp_path, 21)
    assert again.complete, "the page cache outlives a process"
    again.close()


def another_boot(directory: Path) -> None:
    present = bytearray((directory / "present").read_bytes())
    present[8:44] = b"-" * 36
    (directory / "present").write_bytes(present)


def test_after_a_reboot_only_durable_bits_count(tmp_path: Path) -> None:
    bitmap = FrameBitmap(tmp_path, 100)
    bitmap.add(3)
    claimed = bitmap.snapshot()
    bitmap.add(50)
    bitmap.write_durable(claimed)
    bitmap.close()
    another_boot(tmp_path)
    after = FrameBitmap(tmp_path, 100)
    assert [number for number in range(100) if number in after] == [3]
    after.close()


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 30])
def test_a_damaged_durable_bitmap_claims_nothing(tmp_path: Path, damage: bytes) -> None:
    FrameBitmap(tmp_path, 100).close()
    another_boot(tmp_path)
    (tmp_path / "durable").write_bytes(damage)
    bitmap = FrameBitmap(tmp_path, 100)
    assert bitmap.count == 0
    bitmap.close()


@pytest.mark.leaks_checked
def test_the_keeper_holds_descriptors_until_nothing_matters(tmp_path: Path) -> None:
    socket = tmp_path / "keeper.sock"
    reader, writer = os.pipe()
    try:
        with KeeperClient.attach(socket)[0] as first:
            first.put("fill:x", writer)
            first.put(".state", writer)
        os.close(writer)
        pid = keeper_pid(tmp_path)
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        client, found = KeeperClient.attach(socket)
        with client:
            assert found, "it declines to go while a reader may depend on it"
            held = client.take_over()
            assert sorted(held) == [".state", "fill:x"]
            os.write(held["fill:x"], b"alive")
            assert os.read(reader, 10) == b"alive"
            for fd in held.values():
                os.close(fd)
            client.drop("fill:x")
        handle = os.pidfd_open(pid)
        with os.fdopen(handle) as ended:
            assert select.select([ended], [], [], 5)[0], "now it goes"
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)
        teardown(tmp_path, tmp_path)


@pytest.mark.leaks_checked
def test_nonsense_does_not_hurt_the_keeper(tmp_path: Path) -> None:
    socket = tmp_path / "keeper.sock"
    try:
        for packet in (b"{", b"[]", b'{"op": "nonsense"}', b'{"op": "put", "name": "no descriptor"}', b"\xff" * 100):
            with KeeperClient.attach(socket)[0] as client:
                client._connection.send(packet)
        client, found = KeeperClient.attach(socket)
        with client:
            assert found
            assert client.take_over() == {}
    finally:
        teardown(tmp_path, tmp_path)
