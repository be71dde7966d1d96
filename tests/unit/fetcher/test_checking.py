"""The check of an index, in a thread and in a process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from fetcher import subprocesses
from fetcher.layers import checking
from fetcher.layers.checking import IndexCheck
from fetcher.layers.extents import ExtentMap
from layerformat.digest import sha256_digest
from layerformat.errors import FormatError
from tests.harness.layers import TestLayer, make_layer, with_spoiled_metadata

LAYER = make_layer({"dir/a": b"a" * 5000, "dir/b": b"b"})


def write_index(directory: Path, layer: TestLayer) -> None:
    ref = layer.ref
    (directory / "index").write_bytes(layer.blob[ref.index_offset : ref.index_offset + ref.index_size])


@pytest.fixture(params=["thread", "process"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    least = 0 if request.param == "process" else 1 << 40
    monkeypatch.setattr(checking, "PROCESS_BYTES", least)
    return str(request.param)


async def test_what_follows_from_a_good_index_is_written(where: str, tmp_path: Path) -> None:
    write_index(tmp_path, LAYER)
    async with IndexCheck(LAYER.ref, asyncio.Lock()) as check:
        digest = await check.run(tmp_path)
    assert (tmp_path / "meta.erofs").read_bytes() == LAYER.index.metadata
    assert digest == sha256_digest(LAYER.index.metadata)
    pieces = ExtentMap.load(tmp_path).pieces(0, len(LAYER.tar))
    assert [(piece.start, piece.end) for piece in pieces] == [(0, 8192), (8192, 12288)]


async def test_a_bad_one_is_refused(where: str, tmp_path: Path) -> None:
    bad = with_spoiled_metadata(LAYER)
    write_index(tmp_path, bad)
    async with IndexCheck(bad.ref, asyncio.Lock()) as check:
        with pytest.raises(FormatError, match="EROFS"):
            await check.run(tmp_path)
    assert not (tmp_path / "meta.erofs").exists()


async def test_a_disk_that_refuses_is_told(where: str, tmp_path: Path) -> None:
    write_index(tmp_path, LAYER)
    (tmp_path / "meta.erofs").mkdir()
    async with IndexCheck(LAYER.ref, asyncio.Lock()) as check:
        with pytest.raises(IsADirectoryError):
            await check.run(tmp_path)


async def test_a_process_that_dies_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "PROCESS_BYTES", 0)
    write_index(tmp_path, LAYER)
    async with IndexCheck(LAYER.ref, asyncio.Lock()) as check:
        assert check._process is not None
        check._process.kill()
        await check._process.wait()
        with pytest.raises(OSError, match="ended with status -9"):
            await check.run(tmp_path)


async def test_leaving_early_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "PROCESS_BYTES", 0)
    async with IndexCheck(LAYER.ref, asyncio.Lock()) as check:
        process = check._process
    assert process is not None and process.returncode == -9


@pytest.mark.parametrize("asked", [False, True])
async def test_a_process_whose_parent_died_says_nothing(tmp_path: Path, *, asked: bool) -> None:
    write_index(tmp_path, LAYER)
    order = {"directory": str(tmp_path), "annotations": LAYER.ref.to_annotations()} if asked else None
    command = [sys.executable, "-I", "-m", "fetcher.layers.checker"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stdin.write(json.dumps(order).encode() if order else b"")
        process.stdin.close()
        assert await asyncio.to_thread(process.stderr.read) == b""
    assert process.returncode == 0 and (tmp_path / "meta.erofs").exists() == asked


async def test_threads_compute_one_at_a_time(tmp_path: Path) -> None:
    write_index(tmp_path, LAYER)
    turn = asyncio.Lock()
    async with IndexCheck(LAYER.ref, turn) as check, turn:
        waiting = asyncio.ensure_future(check.run(tmp_path))
        await asyncio.sleep(0.05)
        assert not (tmp_path / "meta.erofs").exists()
    await waiting


async def test_a_process_that_is_dead_before_it_is_asked_says_nothing() -> None:
    process = await subprocesses.start_module("no.such.module")
    await process.wait()
    assert await subprocesses.ask(process, b"x" * (1 << 20)) == b""


async def test_a_node_without_room_for_a_process_checks_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "PROCESS_BYTES", 0)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    write_index(tmp_path, LAYER)
    with structlog.testing.capture_logs() as told:
        async with IndexCheck(LAYER.ref, asyncio.Lock()) as check:
            assert await check.run(tmp_path) == sha256_digest(LAYER.index.metadata)
    assert [row["event"] for row in told] == ["checking_process_failed"]
