"""The gRPC service: decode, one call of the core, encode; errors go through one table (`errors.grpc_status`)."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import ServicerContext

from snapshotter._pb import mount_pb2, snapshots_pb2_grpc
from snapshotter._pb import snapshots_pb2 as pb
from snapshotter.calls import CallLog, Outcome
from snapshotter.core import Snapshotter
from snapshotter.errors import SnapshotError, grpc_status
from snapshotter.model import Info, Kind, Mount, SnapshotKey

log = structlog.get_logger(__name__)

NAMESPACE_HEADER: Final = "containerd-namespace"
_KEY: Final = re.compile(r"([A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*)/[0-9]+/")
"""`<namespace>/<number>/<client's key>`; a namespace is an identifier in containerd's sense."""

LIST_CHUNK: Final = 100
"""Infos in one message of a List stream, as containerd has it."""

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Context = ServicerContext[Any, Any]


async def _fail(context: Context, method: str, exc: Exception, outcome: Outcome) -> NoReturn:
    """End the call with the status of `exc`. What is not foreseen is a bug: logged with its traceback."""
    outcome.status = grpc_status(exc)
    if not isinstance(exc, SnapshotError):
        log.error("call_failed", method=method, status=outcome.status.name, exc_info=exc)
    await context.abort(outcome.status, str(exc) or type(exc).__name__)


def _mapped(
    method: Callable[[Any, Request, Context], Awaitable[Reply]],
) -> Callable[[Any, Request, Context], Awaitable[Reply]]:
    @functools.wraps(method)
    async def call(self: SnapshotService, request: Request, context: Context) -> Reply:
        with self.calls.call(method.__name__, _subject(request)) as outcome:
            try:
                reply = await method(self, request, context)
            except Exception as exc:
                await _fail(context, method.__name__, exc, outcome)
            outcome.status = grpc.StatusCode.OK
            return reply

    return call


def _subject(request: object) -> str:
    """The snapshot a request is about, by whatever field it names it."""
    info = getattr(request, "info", None)
    return str(getattr(request, "key", "") or getattr(info, "name", ""))


class SnapshotService(snapshots_pb2_grpc.SnapshotsServicer):
    """`containerd.services.snapshots.v1.Snapshots`. The field `snapshotter`, the client's name for us, is not read."""

    def __init__(self, core: Snapshotter, calls: CallLog) -> None:
        self._core = core
        self.calls = calls

    @_mapped
    async def Prepare(self, request: pb.PrepareSnapshotRequest, context: Context) -> pb.PrepareSnapshotResponse:
        namespace = _namespace(context) or key_namespace(request.key)
        mounts = await self._core.prepare(
            SnapshotKey(request.key), _optional(request.parent), dict(request.labels), namespace
        )
        return pb.PrepareSnapshotResponse(mounts=map(encode_mount, mounts))

    @_mapped
    async def View(self, request: pb.ViewSnapshotRequest, context: Context) -> pb.ViewSnapshotResponse:
        mounts = await self._core.view(SnapshotKey(request.key), _optional(request.parent), dict(request.labels))
        return pb.ViewSnapshotResponse(mounts=map(encode_mount, mounts))

    @_mapped
    async def Mounts(self, request: pb.MountsRequest, context: Context) -> pb.MountsResponse:
        mounts = await self._core.mounts(SnapshotKey(request.key))
        return pb.MountsResponse(mounts=map(encode_mount, mounts))

    @_mapped
    async def Commit(self, request: pb.CommitSnapshotRequest, context: Context) -> Empty:
        await self._core.commit(
            SnapshotKey(request.key), SnapshotKey(request.name), _optional(request.parent), dict(request.labels)
        )
        return Empty()

    @_mapped
    async def Remove(self, request: pb.RemoveSnapshotRequest, context: Context) -> Empty:
        await self._core.remove(SnapshotKey(request.key))
        return Empty()

    @_mapped
    async def Stat(self, request: pb.StatSnapshotRequest, context: Context) -> pb.StatSnapshotResponse:
        return pb.StatSnapshotResponse(info=encode_info(await self._core.stat(SnapshotKey(request.key))))

    @_mapped
    async def Update(self, request: pb.UpdateSnapshotRequest, context: Context) -> pb.UpdateSnapshotResponse:
        info = await self._core.update(
            SnapshotKey(request.info.name), dict(request.info.labels), list(request.update_mask.paths)
        )
        return pb.UpdateSnapshotResponse(info=encode_info(info))

    async def List(self, request: pb.ListSnapshotsRequest, context: Context) -> AsyncIterator[pb.ListSnapshotsResponse]:
        with self.calls.call("List", ",".join(request.filters)) as outcome:
            try:
                infos = await self._core.walk(request.filters)
            except Exception as exc:
                await _fail(context, "List", exc, outcome)
            for start in range(0, len(infos), LIST_CHUNK):
                yield pb.ListSnapshotsResponse(info=map(encode_info, infos[start : start + LIST_CHUNK]))
            outcome.status = grpc.StatusCode.OK

    @_mapped
    async def Usage(self, request: pb.UsageRequest, context: Context) -> pb.UsageResponse:
        usage = await self._core.usage(SnapshotKey(request.key))
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    @_mapped
    async def Cleanup(self, request: pb.CleanupRequest, context: Context) -> Empty:
        await self._core.cleanup()
        return Empty()


def _optional(name: str) -> SnapshotKey | None:
    """proto3 sends the empty string for what is not there."""
    return SnapshotKey(name) if name else None


def _namespace(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == NAMESPACE_HEADER and isinstance(value, str):
            return value
    return None


def key_namespace(key: str) -> str | None:
    """The namespace in a key made by containerd's metadata store. containerd 1.6 sends no header to a proxy plugin."""
    found = _KEY.match(key)
    return found and found.group(1)


def encode_mount(mount: Mount) -> mount_pb2.Mount:
    return mount_pb2.Mount(type=mount.type, source=mount.source, options=mount.options)


_KINDS: Final = {Kind.VIEW: pb.VIEW, Kind.ACTIVE: pb.ACTIVE, Kind.COMMITTED: pb.COMMITTED}


def encode_info(info: Info) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent or "",
        kind=_KINDS[info.kind],
        created_at=_timestamp(info.created_ns),
        updated_at=_timestamp(info.updated_ns),
        labels=info.labels,
    )


def _timestamp(nanoseconds: int) -> Timestamp:
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)


def add_to_server(core: Snapshotter, server: grpc.aio.Server) -> CallLog:
    """Register the service; gives what will be known of its calls."""
    calls = CallLog()
    snapshots_pb2_grpc.add_SnapshotsServicer_to_server(SnapshotService(core, calls), server)
    return calls
