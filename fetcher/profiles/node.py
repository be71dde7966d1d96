"""What profiles need of the node they work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fetcher.layers.layer import Layer
from fetcher.registry import Origin
from fetcher.scheduler.governor import Governor
from layerformat.annotations import LayerRef
from layerformat.digest import Digest


class Node(Protocol):
    """The part of :class:`fetcher.node.Fetcher` that is used."""

    @property
    def governor(self) -> Governor:
        """Of the node."""

    @property
    def reports_reads(self) -> bool:
        """Whether the data plane sees reads at all."""

    @property
    def tells_readers(self) -> bool:
        """Whether the data plane knows which process reads."""

    def layer(self, digest: Digest) -> Layer | None:
        """An admitted layer."""

    def in_use(self, digest: Digest) -> bool:
        """Whether a snapshot uses the layer."""

    async def admit(self, ref: LayerRef, origins: Sequence[Origin]) -> None:
        """Raises LayerUnavailable or OSError."""

    async def open_for_prefetch(self, ref: LayerRef, origins: Sequence[Origin]) -> Layer | None:
        """The layer, ready for the governor, though nobody may see it yet; None if it is of no use to it.

        Raises LayerUnavailable or OSError.
        """

    async def abandon(self, digest: Digest) -> None:
        """Stop fetching a layer that no snapshot uses."""

    async def unwatch(self, digest: Digest) -> None:
        """No recording wants the layer's reads any more."""
