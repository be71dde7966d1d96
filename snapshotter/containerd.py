"""What containerd itself knows of an image while it pulls it: its manifests, and where its blobs came from.

A pull fetches and labels the manifest (`containerd.io/gc.ref.content.*` for its children,
`containerd.io/distribution.source.<host>` for the repositories it was seen in) before the first layer is prepared; the
image's record follows only when all is done. Read-only, over containerd's own socket, in the namespace of the client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc

from layerformat.digest import Digest
from snapshotter._pb import content_pb2, content_pb2_grpc, images_pb2, images_pb2_grpc
from snapshotter.service import NAMESPACE_HEADER

DEADLINE_S: Final = 5.0
MAX_MANIFEST_BYTES: Final = 8 << 20
"""Twice what registries have to take (distribution specification: 4 MiB)."""

LAYER_REFERENCE: Final = "containerd.io/gc.ref.content.l."
SOURCE: Final = "containerd.io/distribution.source."


class ContainerdUnavailable(Exception):
    """containerd did not answer, or not with what was asked for; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    digest: str
    size: int
    """Bytes."""
    labels: Mapping[str, str]
    updated_ns: int
    """Nanoseconds since the epoch; a pull that meets a blob updates it, whether or not it was there before."""


class Containerd:
    """Async context manager; connects when first used, so containerd may come later, go and come again."""

    def __init__(self, socket: str) -> None:
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", 2 * MAX_MANIFEST_BYTES),
            # Else a name like "unix:" path becomes the authority, which containerd's HTTP/2 server refuses.
            ("grpc.default_authority", "localhost"),
            # By itself it would wait up to two minutes before it dials a containerd that was down.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=options)
        self._content = content_pb2_grpc.ContentStub(self._channel)
        self._images = images_pb2_grpc.ImagesStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def blobs(self, namespace: str, filters: Iterable[str]) -> list[Blob]:
        """Blobs that match at least one filter."""
        request = content_pb2.ListContentRequest(filters=filters)
        call = self._content.List(request, metadata=_metadata(namespace), timeout=DEADLINE_S)
        try:
            return [_blob(info) async for reply in call for info in reply.info]
        except grpc.aio.AioRpcError as exc:
            raise _unavailable("list the content", exc) from exc

    async def blob(self, namespace: str, digest: str) -> Blob | None:
        """None: containerd has no such blob."""
        request = content_pb2.InfoRequest(digest=digest)
        try:
            reply = await self._content.Info(request, metadata=_metadata(namespace), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as exc:
            if exc.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise _unavailable(f"look for {digest}", exc) from exc
        return _blob(reply.info)

    async def read(self, namespace: str, blob: Blob) -> bytes:
        """The whole of a small blob. Not verified here: containerd did when it stored it."""
        if blob.size > MAX_MANIFEST_BYTES:
            raise ContainerdUnavailable(f"{blob.digest} has {blob.size} bytes, too many for a manifest")
        request = content_pb2.ReadContentRequest(digest=blob.digest)
        call = self._content.Read(request, metadata=_metadata(namespace), timeout=DEADLINE_S)
        try:
            return b"".join([reply.data async for reply in call])
        except grpc.aio.AioRpcError as exc:
            raise _unavailable(f"read {blob.digest}", exc) from exc

    async def image_names(self, namespace: str) -> list[tuple[str, Digest]]:
        """Every image there: its reference, and the digest of its manifest or index."""
        request = images_pb2.ListImagesRequest()
        try:
            reply = await self._images.List(request, metadata=_metadata(namespace), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as exc:
            raise _unavailable("list the images", exc) from exc
        return [(image.name, Digest(image.target.digest)) for image in reply.images]


def _metadata(namespace: str) -> tuple[tuple[str, str], ...]:
    return ((NAMESPACE_HEADER, namespace),)


def _blob(info: content_pb2.Info) -> Blob:
    return Blob(
        digest=info.digest, size=info.size, labels=dict(info.labels), updated_ns=info.updated_at.ToNanoseconds()
    )


def _unavailable(what: str, exc: grpc.aio.AioRpcError) -> ContainerdUnavailable:
    code = exc.code()
    return ContainerdUnavailable(f"containerd could not {what}: {code.name}: {exc.details()}")
