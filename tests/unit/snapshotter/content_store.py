"""containerd's content and image services, over a real socket: what the resolver asks while an image is pulled."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from layerformat.digest import Digest, sha256_digest
from snapshotter._pb import content_pb2 as content
from snapshotter._pb import content_pb2_grpc, images_pb2_grpc
from snapshotter._pb import images_pb2 as images
from snapshotter.filters import parse_filters

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class Namespace:
    blobs: dict[str, tuple[bytes, dict[str, str], int]] = field(default_factory=dict)
    """digest -> content, labels, when it was updated (seconds)."""
    names: list[str] = field(default_factory=list)


class ContentStore(content_pb2_grpc.ContentServicer):
    """`calls` counts what was asked; `down` refuses everything."""

    def __init__(self) -> None:
        self.namespaces: dict[str, Namespace] = {}
        self.calls: list[str] = []
        self.down = False

    def add_manifest(
        self,
        layers: Sequence[Mapping[str, Any]],
        *,
        sources: Mapping[str, str],
        namespace: str = "ns",
        updated_s: int = 1,
    ) -> Digest:
        """As a pull leaves it before the first layer is prepared."""
        body = json.dumps({"schemaVersion": 2, "layers": layers, "updated": updated_s}).encode()
        labels = {f"containerd.io/gc.ref.content.l.{number}": each["digest"] for number, each in enumerate(layers)}
        labels |= {f"containerd.io/distribution.source.{host}": names for host, names in sources.items()}
        return self.add_blob(body, labels, namespace=namespace, updated_s=updated_s)

    def add_blob(self, body: bytes, labels: dict[str, str], *, namespace: str = "ns", updated_s: int = 1) -> Digest:
        digest = sha256_digest(body)
        self.namespaces.setdefault(namespace, Namespace()).blobs[digest] = (body, labels, updated_s)
        return digest

    @asynccontextmanager
    async def serve(self, socket: Path) -> AsyncIterator[None]:
        server = grpc.aio.server()
        content_pb2_grpc.add_ContentServicer_to_server(self, server)
        images_pb2_grpc.add_ImagesServicer_to_server(ImageNames(self), server)
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        yield
        await server.stop(None)

    async def namespace(self, call: str, context: Context) -> Namespace:
        self.calls.append(call)
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down for a test")
        name = dict(context.invocation_metadata() or ()).get("containerd-namespace")
        if name is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "namespace is required")
        return self.namespaces.get(str(name), Namespace())

    async def Info(self, request: content.InfoRequest, context: Context) -> content.InfoResponse:
        blobs = (await self.namespace("Info", context)).blobs
        if request.digest not in blobs:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
        return content.InfoResponse(info=_info(request.digest, *blobs[request.digest]))

    async def List(
        self, request: content.ListContentRequest, context: Context
    ) -> AsyncIterator[content.ListContentResponse]:
        blobs = (await self.namespace("List", context)).blobs
        wanted = parse_filters(request.filters)
        for digest, (body, labels, updated_s) in blobs.items():
            if wanted.matches(lambda path, labels=labels: labels.get(".".join(path[1:]))):  # type: ignore[misc]
                yield content.ListContentResponse(info=[_info(digest, body, labels, updated_s)])

    async def Read(
        self, request: content.ReadContentRequest, context: Context
    ) -> AsyncIterator[content.ReadContentResponse]:
        body, _, _ = (await self.namespace("Read", context)).blobs[request.digest]
        for start in range(0, len(body), 100):
            yield content.ReadContentResponse(offset=start, data=body[start : start + 100])


class ImageNames(images_pb2_grpc.ImagesServicer):
    """The image service of a `ContentStore`: its call `List` has the name of another there."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store

    async def List(self, request: images.ListImagesRequest, context: Context) -> images.ListImagesResponse:
        names = (await self._store.namespace("Images", context)).names
        return images.ListImagesResponse(images=[images.Image(name=name) for name in names])


def _info(digest: str, body: bytes, labels: Mapping[str, str], updated_s: int) -> content.Info:
    info = content.Info(digest=digest, size=len(body), labels=labels)
    info.updated_at.FromSeconds(updated_s)
    return info
