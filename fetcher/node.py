""":class:`Fetcher`: all layers of a node, from first sight to eviction."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import structlog

from fetcher import kernel
from fetcher.cache import Candidate, choose_evictions
from fetcher.layers.admission import Admissions
from fetcher.layers.layer import Layer
from fetcher.layers.tar_digest import small_tar_digest, tar_digest
from fetcher.model import (
    FetcherConfig,
    FetcherStatus,
    ImageHint,
    LayerState,
    LayerStatus,
    LayerUnavailable,
    Usage,
)
from fetcher.planes import selection
from fetcher.planes.plane import DataPlane
from fetcher.planes.teardown import keeper_pid
from fetcher.planes.touches import TouchLog
from fetcher.profiles.profiles import Profiles
from fetcher.profiles.store import ProfileStore
from fetcher.registry import Origin, RegistryClient
from fetcher.scheduler.governor import Governor
from fetcher.tasks import TaskSet
from layerformat.annotations import LayerRef
from layerformat.digest import Digest
from layerformat.errors import FormatError

log = structlog.get_logger(__name__)

#: Layer files from this size on are hashed as they grow; smaller ones at their end, from the page cache.
HASH_ALONG_BYTES = 64 << 20


class Fetcher:
    """The fetcher as the snapshotter sees it. An async context manager; entering it never needs the network.

    Methods may be called concurrently from one event loop. Calls that concern one layer are put in order by its lock.
    """

    def __init__(self, config: FetcherConfig) -> None:
        self._config = config
        self._layers: dict[Digest, Layer] = {}
        self._locks: dict[Digest, asyncio.Lock] = {}
        self._retained: set[Digest] = set()
        self._verifying: dict[Digest, asyncio.Task[None]] = {}
        self._tasks = TaskSet()
        self._stack = AsyncExitStack()
        self.touches = TouchLog()
        self.client = RegistryClient(config.registry)
        self.governor = Governor(self.client, config.governor, on_complete=self._verify)
        self.plane: DataPlane  # chosen on entering
        self._admissions = Admissions(
            self.client,
            self._layers_dir,
            index_timeout_s=config.index_timeout_s,
            admitted=self._admitted,
            withdraw=self._withdraw,
        )
        profile_store = ProfileStore(config.root / "profiles")
        self.profiles = Profiles(config.profiles, profile_store, self.client, self, self._tasks)
        self.touches.observer = self.profiles.touch
        self.touches.readers_ahead = self.profiles.readers_ahead

    @property
    def _layers_dir(self) -> Path:
        return self._config.root / "layers"

    async def __aenter__(self) -> Fetcher:
        """Recover layers, keeper and marks. Raises OSError where the plane cannot work."""
        async with AsyncExitStack() as stack:
            layers = await asyncio.to_thread(self._load_layers)
            self._layers = {layer.digest: layer for layer in layers}
            plane = await asyncio.to_thread(selection.select, self._config)
            self.plane = selection.build(plane, self._config, self.governor, self.touches)
            # Left from the bottom up: no question is taken any more, then no run writes, then the layers are closed.
            stack.push_async_callback(self._close_layers)
            await stack.enter_async_context(self.client)
            await stack.enter_async_context(self.governor)
            await self.plane.start(layers)
            stack.push_async_callback(self.plane.close)
            stack.push_async_callback(self._admissions.close)
            await stack.enter_async_context(self._tasks)
            stack.push_async_callback(self.profiles.close)
            self._tasks.start(self._keep_durable(), "make layers durable")
            for layer in layers:
                if layer.state is LayerState.IDLE and layer.present.complete:
                    self._verify(layer)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop. Mounts stay, and so do the keeper and whoever waits for bytes."""
        await self._stack.aclose()

    def _load_layers(self) -> list[Layer]:
        self._layers_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._config.run.mkdir(parents=True, exist_ok=True, mode=0o700)
        layers = []
        for directory in sorted(self._layers_dir.iterdir()):
            if directory.name.startswith("."):
                shutil.rmtree(directory, ignore_errors=True)
                continue
            try:
                layers.append(Layer.load(directory))
            except (FormatError, OSError) as error:
                log.error("layer_on_disk_unusable", directory=directory.name, error=str(error))
        return layers

    async def _close_layers(self) -> None:
        for layer in self._layers.values():
            await asyncio.to_thread(layer.make_durable)
            layer.close()

    # Admission.

    async def admit(self, ref: LayerRef, origins: Sequence[Origin]) -> None:
        """Have the layer's index on disk, verified and validated. Idempotent; concurrent calls share one download.

        Raises LayerUnavailable when no origin has a good index (FormatError is its cause where one was malformed), or
        OSError when the disk refuses.
        """
        layer = self._layers.get(ref.digest) or await self._admissions.layer(ref, origins)
        if layer.ref != ref:
            raise LayerUnavailable(f"layer {ref.digest}: known with another index or diff id")
        if layer.state is LayerState.CORRUPT:
            raise LayerUnavailable(f"layer {ref.digest}: {layer.last_error}")
        if layer.add_origins(origins):
            await asyncio.to_thread(layer.save_origins)

    def _admitted(self, layer: Layer) -> None:
        self._layers[layer.digest] = layer

    async def _withdraw(self, draft: Layer) -> None:
        """Nothing is fetched for a draft any more, and whoever is about to ask finds it closed."""
        async with self._lock(draft.digest):
            await self.governor.drop(draft.digest)
            self.governor.shared.forget(draft.digest)
            draft.close()

    def announce(self, image: ImageHint) -> None:
        """An image is about to be used: admit all its layers at once, replay its profile. Never fails, never blocks."""
        for ref in image.layers:
            if ref.digest not in self._layers and ref.digest not in self._admissions:
                self._tasks.start(self._admit_ahead(ref, image.origins), f"admit {ref.digest[7:19]}")
        self.profiles.announce(image)

    async def _admit_ahead(self, ref: LayerRef, origins: Sequence[Origin]) -> None:
        # Whoever needs the layer asks again and is told then.
        with suppress(LayerUnavailable, OSError):
            await self.admit(ref, origins)

    # Use.

    async def retain(self, digest: Digest) -> None:
        """A snapshot uses the layer. Raises LayerUnavailable for a layer that was never admitted."""
        layer = self._known(digest)
        async with self._lock(digest):
            self._retained.add(digest)
            self.profiles.retained(digest)
            if layer.state is LayerState.COMPLETE:
                return
            layer.open_for_filling()
            if layer.present.complete:
                self._verify(layer)
                return
            self.governor.add(layer)
            await self._look_up(layer)
            if self._config.background_fill:
                layer.state = LayerState.FILLING
                self.governor.fill(layer)
                if layer.frames.tar_size >= HASH_ALONG_BYTES:
                    self._verify(layer)

    async def _look_up(self, layer: Layer) -> None:
        """Which of its frames the node holds elsewhere; once from its first use to its release."""
        if not self.governor.shared.knows(layer.digest):
            await asyncio.to_thread(self.governor.shared.look_up, layer, list(self._layers.values()))

    async def mount(self, digest: Digest) -> Path:
        """The directory that shows the layer's files. Idempotent. Raises LayerUnavailable or OSError."""
        layer = self._known(digest)
        self.profiles.mounting(digest)
        async with self._lock(digest):
            layer.watched = self.profiles.wants(digest) and not layer.mount_point.is_mount()
            await self.plane.mount(layer)
        return layer.mount_point

    async def release(self, digest: Digest) -> None:
        """No snapshot uses the layer: take its mount away and stop fetching. The bytes stay until evicted."""
        layer = self._layers.get(digest)
        if layer is None:
            return
        await self.profiles.releasing(digest)
        async with self._lock(digest):
            self._retained.discard(digest)
            self._stop_verifying(digest)
            await self.plane.unmount(layer)
            await self.governor.drop(digest)
            self.governor.shared.forget(digest)
            if layer.state is LayerState.FILLING:
                layer.state = LayerState.IDLE
            await asyncio.to_thread(layer.note_use)
        self.profiles.released(digest)
        await self.trim_cache()

    async def trim_cache(self) -> list[Digest]:
        """Evict released layers, the longest unused first, as far as the limits ask; returns which went."""
        candidates, free_bytes = await asyncio.to_thread(self._cache_view)
        evicted = []
        for digest in choose_evictions(candidates, self._config.cache, free_bytes):
            with suppress(LayerUnavailable):
                await self.evict(Digest(digest))
                evicted.append(Digest(digest))
        return evicted

    async def clear_cache(self) -> list[Digest]:
        """Evict every layer that no snapshot uses; returns which went."""
        evicted = []
        for digest in [digest for digest in self._layers if digest not in self._retained]:
            with suppress(LayerUnavailable):
                await self.evict(digest)
                evicted.append(digest)
        return evicted

    def _cache_view(self) -> tuple[list[Candidate], int]:
        candidates = [
            Candidate(
                digest=layer.digest,
                size=layer.disk_bytes(),
                last_used=layer.last_used(),
                releasable=layer.digest not in self._retained,
            )
            for layer in list(self._layers.values())
        ]
        stat = os.statvfs(self._layers_dir)
        return candidates, stat.f_bavail * stat.f_frsize

    async def evict(self, digest: Digest) -> None:
        """Forget a released layer and free its disk space.

        Raises LayerUnavailable while a snapshot uses it, or a container that outlived its snapshot still reads it.
        """
        layer = self._layers.get(digest)
        if layer is None:
            return
        if digest in self._retained:
            raise LayerUnavailable(f"layer {digest} is in use")
        async with self._lock(digest):
            await self.plane.unmount(layer)
            if await asyncio.to_thread(kernel.has_other_opens, layer.metadata_path):
                raise LayerUnavailable(f"layer {digest} is still read by a container")
            await self.governor.drop(digest)
            self.plane.unprotect(layer)
            self.governor.shared.forget(digest)
            del self._layers[digest]
            layer.close()
            await asyncio.to_thread(_remove_directory, layer.directory)
        log.info("layer_evicted", layer=digest)

    def usage(self, digest: Digest) -> Usage:
        """What the layer takes on disk; no I/O on its data."""
        layer = self._known(digest)
        return Usage(size=layer.disk_bytes(), inodes=1)

    def _known(self, digest: Digest) -> Layer:
        try:
            return self._layers[digest]
        except KeyError:
            raise LayerUnavailable(f"layer {digest} is not on this node") from None

    def _lock(self, digest: Digest) -> asyncio.Lock:
        return self._locks.setdefault(digest, asyncio.Lock())

    # Completion and durability.

    def _verify(self, layer: Layer) -> None:
        if layer.state is not LayerState.COMPLETE and layer.digest not in self._verifying:
            task = self._tasks.start(self._complete(layer), f"verify {layer.short}")
            self._verifying[layer.digest] = task
            task.add_done_callback(lambda _: self._verifying.pop(layer.digest))

    async def _complete(self, layer: Layer) -> None:
        """When every frame is there, drop the mark if the whole is the tar the image's config names."""
        layer.open_for_filling()
        if layer.frames.tar_size < HASH_ALONG_BYTES:
            found = await asyncio.to_thread(_small_tar_digest, layer)
        else:
            found = await tar_digest(layer.fill_fd, partial(_bytes_from_start, layer))
        async with self._lock(layer.digest):
            if self._layers.get(layer.digest) is not layer:
                return
            if found != layer.ref.diff_id:
                layer.state = LayerState.CORRUPT
                layer.last_error = f"the layer file is {found}, the config says {layer.ref.diff_id}"
                log.error("layer_diff_id_mismatch", layer=layer.digest, found=found, expected=layer.ref.diff_id)
                return
            await asyncio.to_thread(layer.set_complete)
            await self.governor.drop(layer.digest)
            self.governor.shared.forget(layer.digest)
            if not self.profiles.wants(layer.digest):
                self._let_go(layer)
        log.info("layer_complete", layer=layer.digest, bytes=layer.frames.tar_size)

    def _stop_verifying(self, digest: Digest) -> None:
        if (task := self._verifying.get(digest)) is not None:
            task.cancel()

    def _let_go(self, layer: Layer) -> None:
        """A complete layer needs no events and no more writes."""
        layer.watched = False
        self.plane.unprotect(layer)
        layer.close_fill_fd()

    # What profiles need; see fetcher.profiles.node.

    @property
    def reports_reads(self) -> bool:
        """Whether the data plane sees what is read."""
        return self.plane.name != "eager"

    @property
    def tells_readers(self) -> bool:
        """Whether the data plane knows which process reads."""
        return self.plane.name == "fanotify"

    def layer(self, digest: Digest) -> Layer | None:
        """An admitted layer."""
        return self._layers.get(digest)

    def in_use(self, digest: Digest) -> bool:
        """Whether a snapshot uses the layer."""
        return digest in self._retained

    async def open_for_prefetch(self, ref: LayerRef, origins: Sequence[Origin]) -> Layer | None:
        """The layer, ready for the governor, even if its metadata are not checked yet.

        None if it is complete or gone, or is here with another index. Raises LayerUnavailable or OSError.
        """
        layer = self._layers.get(ref.digest) or await self._admissions.draft(ref, origins)
        async with self._lock(ref.digest):
            if layer.closed or layer.ref != ref or layer.state is LayerState.COMPLETE or layer.present.complete:
                return None
            layer.open_for_filling()
            self.governor.add(layer)
            await self._look_up(layer)
            return layer

    async def abandon(self, digest: Digest) -> None:
        """Stop fetching a layer that no snapshot uses and that is not mounted."""
        async with self._lock(digest):
            layer = self._layers.get(digest)
            if layer is not None and digest not in self._retained and not layer.mount_point.is_mount():
                await self.governor.drop(digest)
                self.governor.shared.forget(digest)

    async def unwatch(self, digest: Digest) -> None:
        """No recording wants a layer's reads any more: if it is complete, nothing does."""
        async with self._lock(digest):
            layer = self._layers.get(digest)
            if layer is not None and layer.state is LayerState.COMPLETE and not self.profiles.wants(digest):
                await self.governor.drop(digest)
                self._let_go(layer)

    async def _keep_durable(self) -> None:
        """Claim on disk, every so often, what the page cache has been told."""
        while True:
            await asyncio.sleep(self._config.sync_interval_s)
            for layer in list(self._layers.values()):
                try:
                    await asyncio.to_thread(layer.make_durable)
                except OSError as error:
                    layer.last_error = str(error)
                    log.error("layer_sync_failed", layer=layer.digest, error=str(error))
            await self.trim_cache()

    # Telling.

    def status(self) -> FetcherStatus:
        """A snapshot of everything, for status, metrics and reports."""
        meter = self.governor.meter
        return FetcherStatus(
            plane=self.plane.name,
            layers=tuple(self._layer_status(layer) for layer in self._layers.values()),
            fetched_bytes={str(priority): count for priority, count in meter.bytes.items()},
            reused_bytes=self.governor.reused_bytes,
            faults=self.governor.fault_count,
            fault_wait_s=self.governor.fault_wait_s,
            events=self.plane.events,
            rate_bytes_per_s=meter.rate_bytes_per_s(),
            keeper_pid=keeper_pid(self._config.run),
        )

    def _layer_status(self, layer: Layer) -> LayerStatus:
        return LayerStatus(
            digest=layer.digest,
            state=layer.state,
            plane=self.plane.name,
            mounted=layer.mount_point.is_mount(),
            frames=len(layer.frames),
            frames_present=layer.present.count,
            blob_bytes=layer.ref.size,
            tar_bytes=layer.frames.tar_size,
            present_bytes=layer.present_bytes,
            waiting=self.governor.waiting(layer.digest),
            origins=tuple(f"{origin.host}/{origin.repository}" for origin in layer.origins),
            fetched_bytes=self.governor.fetched(layer.digest),
            last_error=layer.trouble,
        )


def _small_tar_digest(layer: Layer) -> str:
    with layer.borrow_fd() as fd:
        return small_tar_digest(fd)


def _bytes_from_start(layer: Layer) -> int | None:
    """How much of the layer file is there without a gap; None for all of it."""
    number = layer.present.first_absent(0)
    return None if number == len(layer.frames) else layer.frames[number].start


def _remove_directory(directory: Path) -> None:
    """Out of the way by one rename first: a crash leaves a name that the next start sweeps."""
    doomed = directory.with_name(f".old-{directory.name}")
    directory.rename(doomed)
    shutil.rmtree(doomed)
