"""What the snapshotter needs of whoever holds the layers, and the provider for a node without lazy layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fetcher.model import ImageHint, LayerUnavailable
from fetcher.model import Usage as LayerUsage
from fetcher.registry.reference import Origin
from layerformat.annotations import LayerRef
from layerformat.digest import Digest
from snapshotter.model import SnapshotKey


class LayerProvider(Protocol):
    """The part of `fetcher.Fetcher` the snapshotter uses; the contract is in docs/design/0001-architecture.md."""

    async def admit(self, ref: LayerRef, origins: Sequence[Origin]) -> None: ...

    def announce(self, image: ImageHint) -> None: ...

    async def retain(self, digest: Digest) -> None: ...

    async def mount(self, digest: Digest) -> Path: ...

    async def release(self, digest: Digest) -> None: ...

    def usage(self, digest: Digest) -> LayerUsage: ...


class NoLayers:
    """A node that pulls every image in full: no layer can be had lazily."""

    async def admit(self, ref: LayerRef, origins: Sequence[Origin]) -> None:
        raise LayerUnavailable(f"layer {ref.digest}: lazy layers are switched off")

    def announce(self, image: ImageHint) -> None:
        """Nothing to prepare."""

    async def retain(self, digest: Digest) -> None:
        raise LayerUnavailable(f"layer {digest}: lazy layers are switched off")

    async def mount(self, digest: Digest) -> Path:
        raise LayerUnavailable(f"layer {digest}: lazy layers are switched off")

    async def release(self, digest: Digest) -> None:
        """Nothing is held."""

    def usage(self, digest: Digest) -> LayerUsage:
        return LayerUsage(size=0, inodes=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One Prepare that may be answered with a layer of ours."""

    target: str
    """The chain id the client is about to build, from `containerd.io/snapshot.ref`."""
    parent: SnapshotKey | None
    labels: Mapping[str, str]
    namespace: str | None
    """Of the client, from the request's `containerd-namespace` header; None when it sent none."""
    depth: int
    """How many snapshots lie below it, so the layer's index in its image's manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Which layer a Prepare is for, where it can be had, and the image it belongs to as far as that is known."""

    ref: LayerRef
    origins: tuple[Origin, ...]
    image: ImageHint | None = None


class Resolver(Protocol):
    """Finds out which layer a Prepare is for. None: not one of ours. FormatError: ours, but malformed."""

    async def resolve(self, request: Request) -> Resolved | None: ...


class LabelResolver:
    """Knows nothing but the request's labels, so no origins."""

    async def resolve(self, request: Request) -> Resolved | None:
        ref = LayerRef.from_annotations(request.labels)
        return None if ref is None else Resolved(ref=ref, origins=())
