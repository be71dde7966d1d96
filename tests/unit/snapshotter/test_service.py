"""The service as a client sees it: over a unix socket, every call, every status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from snapshotter import service
from snapshotter._pb import snapshots_pb2 as pb
from snapshotter._pb.snapshots_pb2_grpc import SnapshotsStub
from snapshotter.calls import CallLog
from snapshotter.core import Snapshotter
from snapshotter.model import SNAPSHOT_REF, Layout
from snapshotter.service import LIST_CHUNK, SnapshotService, key_namespace
from tests.unit.snapshotter.layer_directories import DirectoryLayers, layer_ref

if TYPE_CHECKING:  # the generated stubs have this name for the type checker only
    from snapshotter._pb.snapshots_pb2_grpc import SnapshotsAsyncStub

A = layer_ref("a")


@pytest.fixture
async def client(core: Snapshotter, tmp_path: Path) -> AsyncIterator[SnapshotsAsyncStub]:
    server = grpc.aio.server()
    service.add_to_server(core, server)
    server.add_insecure_port(f"unix:{tmp_path / 's'}")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        yield SnapshotsStub(channel)
    await server.stop(None)


async def status_of(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), caught.value.details() or ""


async def test_a_whole_life(client: SnapshotsAsyncStub, layout: Layout) -> None:
    prepared = await client.Prepare(pb.PrepareSnapshotRequest(snapshotter="any", key="k", labels={"a": "1"}))
    [mount] = prepared.mounts
    assert (mount.type, mount.target, list(mount.options)) == ("bind", "", ["rw", "rbind"])
    mounted = await client.Mounts(pb.MountsRequest(key="k"))
    assert mounted.mounts == prepared.mounts
    usage = await client.Usage(pb.UsageRequest(key="k"))
    assert usage.inodes == 1
    await client.Commit(pb.CommitSnapshotRequest(key="k", name="n", labels={"b": "2"}))
    stat = await client.Stat(pb.StatSnapshotRequest(key="n"))
    assert (stat.info.kind, stat.info.parent, dict(stat.info.labels)) == (pb.COMMITTED, "", {"b": "2"})
    assert stat.info.created_at == stat.info.updated_at
    updated = await client.Update(
        pb.UpdateSnapshotRequest(info=pb.Info(name="n", labels={"c": "3"}), update_mask=FieldMask(paths=["labels.c"]))
    )
    assert dict(updated.info.labels) == {"b": "2", "c": "3"}
    assert updated.info.updated_at.ToNanoseconds() > stat.info.updated_at.ToNanoseconds()
    viewed = await client.View(pb.ViewSnapshotRequest(key="v", parent="n"))
    assert list(viewed.mounts[0].options) == ["ro", "rbind"]
    (layout.snapshots / "99").mkdir()
    await client.Cleanup(pb.CleanupRequest())
    assert not (layout.snapshots / "99").exists()
    await client.Remove(pb.RemoveSnapshotRequest(key="v"))
    await client.Remove(pb.RemoveSnapshotRequest(key="n"))
    assert [reply async for reply in client.List(pb.ListSnapshotsRequest())] == []


async def test_commit_takes_a_parent(client: SnapshotsAsyncStub) -> None:
    for key, name in (("k1", "base"), ("k2", "top")):
        await client.Prepare(pb.PrepareSnapshotRequest(key=key))
        parent = "" if name == "base" else "base"
        await client.Commit(pb.CommitSnapshotRequest(key=key, name=name, parent=parent))
    assert (await client.Stat(pb.StatSnapshotRequest(key="top"))).info.parent == "base"


async def test_every_status(client: SnapshotsAsyncStub) -> None:
    await client.Prepare(pb.PrepareSnapshotRequest(key="k"))
    await client.Commit(pb.CommitSnapshotRequest(key="k", name="base"))
    await client.Prepare(pb.PrepareSnapshotRequest(key="child", parent="base"))
    prepare = client.Prepare(pb.PrepareSnapshotRequest(key="child"))
    assert (await status_of(prepare))[0] is grpc.StatusCode.ALREADY_EXISTS
    assert (await status_of(client.Stat(pb.StatSnapshotRequest(key="no"))))[0] is grpc.StatusCode.NOT_FOUND
    code, text = await status_of(client.Remove(pb.RemoveSnapshotRequest(key="base")))
    assert (code, "remove" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    update = pb.UpdateSnapshotRequest(info=pb.Info(name="base"), update_mask=FieldMask(paths=["parent"]))
    assert (await status_of(client.Update(update)))[0] is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in client.List(pb.ListSnapshotsRequest(filters=["kind=active"])):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_layer_of_ours_is_already_there(client: SnapshotsAsyncStub, provider: DirectoryLayers) -> None:
    labels = {SNAPSHOT_REF: A.diff_id, **A.to_annotations()}
    code, _ = await status_of(client.Prepare(pb.PrepareSnapshotRequest(key="ns/1/extract", labels=labels)))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    # The question containerd's metadata store asks next, and the answer it needs.
    wanted = f'labels."{SNAPSHOT_REF}"=={A.diff_id},parent==""'
    [reply] = [reply async for reply in client.List(pb.ListSnapshotsRequest(filters=[wanted]))]
    [info] = reply.info
    assert (info.kind, info.labels[SNAPSHOT_REF], info.parent) == (pb.COMMITTED, A.diff_id, "")


async def test_a_bug_is_told_and_ends_nothing(
    client: SnapshotsAsyncStub, provider: DirectoryLayers, layout: Layout
) -> None:
    provider.unavailable[A.digest] = ZeroDivisionError("bug")
    request = pb.PrepareSnapshotRequest(key="k", labels={SNAPSHOT_REF: A.diff_id, **A.to_annotations()})
    assert await status_of(client.Prepare(request)) == (grpc.StatusCode.UNKNOWN, "bug")
    await client.Prepare(pb.PrepareSnapshotRequest(key="k"))


async def test_a_long_list_comes_in_pieces(client: SnapshotsAsyncStub) -> None:
    for number in range(LIST_CHUNK + 5):
        await client.View(pb.ViewSnapshotRequest(key=f"k{number:03}"))
    replies = [reply async for reply in client.List(pb.ListSnapshotsRequest(filters=["kind==view"]))]
    assert [len(reply.info) for reply in replies] == [LIST_CHUNK, 5]
    # Other calls go on while a list is being read.
    async for reply in client.List(pb.ListSnapshotsRequest()):
        for info in reply.info[:3]:
            assert (await client.Stat(pb.StatSnapshotRequest(key=info.name))).info == info


async def test_calls_are_counted_by_how_they_ended(core: Snapshotter) -> None:
    calls = CallLog()
    served = SnapshotService(core, calls)

    class Context:
        def invocation_metadata(self) -> tuple[()]:
            return ()

        async def abort(self, code: grpc.StatusCode, details: str) -> None:
            raise grpc.aio.AbortError(code, details)

    context: Any = Context()
    await served.Prepare(pb.PrepareSnapshotRequest(key="k"), context)
    for _ in range(2):
        with pytest.raises(grpc.aio.AbortError):
            await served.Prepare(pb.PrepareSnapshotRequest(key="k"), context)
    task = asyncio.ensure_future(served.Cleanup(pb.CleanupRequest(), context))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    counted = {key: stats.count for key, stats in calls.stats.items()}
    assert counted == {("Prepare", "OK"): 1, ("Prepare", "ALREADY_EXISTS"): 2, ("Cleanup", "CANCELLED"): 1}
    assert calls.stats["Prepare", "OK"].seconds > 0


@pytest.mark.parametrize(
    ("key", "namespace"),
    [
        ("k8s.io/12/extract-1 sha256:aa", "k8s.io"),
        ("moby/7/x/8/y", "moby"),
        ("a-b_c/1/", "a-b_c"),
        ("extract-1 sha256:aa", None),
        ("ns/x/key", None),
        ("/1/key", None),
        ("", None),
    ],
)
def test_the_namespace_in_a_key(key: str, namespace: str | None) -> None:
    assert key_namespace(key) == namespace
