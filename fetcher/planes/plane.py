"""What the layer store asks of a data plane, whichever way the kernel gets at the bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from fetcher.layers.layer import Layer


class DataPlane(Protocol):
    """Shows layers as directories, and has the governor fetch what is read and not there yet."""

    @property
    def name(self) -> str:
        """For status, configuration and metrics."""

    @property
    def events(self) -> int:
        """Questions of the kernel answered since the daemon started."""

    async def start(self, layers: Iterable[Layer]) -> None:
        """Take over what a predecessor left; comes before the process opens anything else. Raises OSError."""

    def protect(self, layer: Layer) -> None:
        """From now on a read of bytes that are absent waits for them. Idempotent."""

    def unprotect(self, layer: Layer) -> None:
        """The layer is complete, or nobody can read it any more. Idempotent."""

    async def mount(self, layer: Layer) -> None:
        """Show the layer's files at ``layer.mount_point``, protected unless complete. Idempotent; raises OSError."""

    async def unmount(self, layer: Layer) -> None:
        """Take the mount point away; whoever uses the layer through another mount goes on, protected. Idempotent."""

    async def close(self) -> None:
        """Stop answering; readers wait for the next daemon."""
