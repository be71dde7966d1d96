"""The eager data plane, for kernels without EROFS or FUSE: the whole layer is fetched, then unpacked to plain files.

Nothing is lazy here, but the transfer is the same parallel, verified one; it beats an ordinary pull in that alone.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog

from fetcher import kernel
from fetcher.layers.layer import Layer
from fetcher.planes import eager_unpack
from fetcher.scheduler.governor import Governor

log = structlog.get_logger(__name__)

#: In the layer's directory: its files are all there.
MARKER = "unpacked"


class EagerPlane:
    """Layers as plain directories. Nothing outlives the daemon, so there is nothing to take over."""

    name = "eager"
    events = 0

    def __init__(self, governor: Governor) -> None:
        self._governor = governor

    async def start(self, layers: Iterable[Layer]) -> None:
        """Nothing to do."""

    def protect(self, layer: Layer) -> None:
        """Nothing reads the layer file but ourselves."""

    def unprotect(self, layer: Layer) -> None:
        """See :meth:`protect`."""

    async def mount(self, layer: Layer) -> None:
        """Fetch what is missing of the layer, then unpack it at its mount point. Idempotent.

        Takes as long as the layer takes to come. Raises OSError when it cannot be fetched or the disk refuses.
        """
        if await asyncio.to_thread(_is_ready, layer):
            return
        if not layer.present.complete:
            await self._fetch(layer)
        await asyncio.to_thread(_clear, layer)
        await _unpack(layer)
        await asyncio.to_thread(_publish, layer)
        log.info("layer_unpacked", layer=layer.digest)

    async def _fetch(self, layer: Layer) -> None:
        layer.open_for_filling()
        self._governor.add(layer)
        self._governor.fill(layer)
        # The frame at the front is the next to come in any case; waiting for it only makes a failure known.
        while (first := layer.present.first_absent(0)) < len(layer.frames):
            arrived: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._governor.demand(layer, [first], partial(_settle, arrived))
            if error := await arrived:
                raise OSError(error, f"{os.strerror(error)}: {layer.trouble}", os.fspath(layer.tar_path))

    async def unmount(self, layer: Layer) -> None:
        """The files stay until the layer is evicted. Only another plane's mount over them is taken away."""
        await asyncio.to_thread(kernel.umount_all, layer.mount_point)

    async def close(self) -> None:
        """Nothing to do."""


def _settle(arrived: asyncio.Future[int], error: int) -> None:
    if not arrived.done():
        arrived.set_result(error)


def _draft(layer: Layer) -> Path:
    return layer.directory / "fs.new"


def _is_ready(layer: Layer) -> bool:
    return (layer.directory / MARKER).exists() or layer.mount_point.is_mount()


def _clear(layer: Layer) -> None:
    """Remove what a crash left of an earlier attempt; its mount point may be whole, but nobody vouches for it."""
    with suppress(FileNotFoundError):
        shutil.rmtree(_draft(layer))
    if layer.mount_point.exists() and any(layer.mount_point.iterdir()):
        shutil.rmtree(layer.mount_point)


def _publish(layer: Layer) -> None:
    """The draft is on disk whole: make it the mount point by one rename, then say so."""
    _draft(layer).rename(layer.mount_point)
    (layer.directory / MARKER).touch()


async def _unpack(layer: Layer) -> None:
    """In a process of its own: tens of thousands of files would take the interpreter from the event loop."""
    command = [sys.executable, "-P", "-m", eager_unpack.__name__]
    paths = [os.fspath(path) for path in (layer.metadata_path, layer.tar_path, _draft(layer))]
    process = await asyncio.create_subprocess_exec(
        *command, *paths, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        reason = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        code = process.returncode if process.returncode > 1 else errno.EIO  # 1: a traceback; negative: killed
        raise OSError(code, f"unpacking failed: {reason or process.returncode}", os.fspath(layer.mount_point))
