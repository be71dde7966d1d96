"""The recordings of a node: begun by a first mount or by request, ended by request or by the clock, stored, pushed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from fetcher.layers.layer import Layer
from fetcher.model import ImageHint, LayerState, ProfilesConfig
from fetcher.profiles import referrers
from fetcher.profiles.document import ProfileError
from fetcher.profiles.merging import merge
from fetcher.profiles.node import Node
from fetcher.profiles.profile import Profile
from fetcher.profiles.recording import Recording
from fetcher.profiles.store import ProfileStore, load_sound
from fetcher.registry import RegistryClient, RegistryError
from fetcher.tasks import TaskSet
from layerformat.digest import Digest

log = structlog.get_logger(__name__)

#: Recordings under way at most.
MAX_RECORDINGS = 32
#: The longest a recording may be asked to take.
MAX_WINDOW_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingStarted:
    """A recording is on. It will lack what the page cache has of layers that are mounted already."""

    manifest: Digest
    layers: int
    mounted: int  # layers that were mounted before
    silent: int  # of those, layers that are complete and no longer watched: none of their reads is seen


class Recorder:
    """One recording per image at most. Methods are quick unless they are coroutines."""

    def __init__(
        self, config: ProfilesConfig, store: ProfileStore, client: RegistryClient, node: Node, tasks: TaskSet
    ) -> None:
        self._config = config
        self._store = store
        self._client = client
        self._node = node
        self._tasks = tasks
        self._recordings: dict[Digest, Recording] = {}
        self._saving = asyncio.Lock()

    @property
    def manifests(self) -> frozenset[Digest]:
        """Of the images that are being recorded."""
        return frozenset(self._recordings)

    def read_count(self, manifest: Digest) -> int:
        """Ranges recorded so far."""
        recording = self._recordings.get(manifest)
        return recording.read_count if recording is not None else 0

    def wants(self, digest: Digest) -> bool:
        """Whether a layer's reads are to be reported even when it is complete."""
        return any(recording.has(digest) for recording in self._recordings.values())

    def touch(self, layer: Layer, offset: int, count: int) -> None:
        """A read of a layer file that the page cache could not serve."""
        if self._recordings:
            end = min(offset + count, layer.frames.tar_size)
            for recording in self._recordings.values():
                recording.touch(layer.digest, offset, end)

    # Beginning.

    def begin_automatically(self, manifest: Digest, hint: ImageHint) -> None:
        """An image without a profile is about to be mounted for the first time."""
        if self._config.record == "auto" and self._node.reports_reads:
            self._begin(manifest, hint, requested=False, window_s=self._config.window_s)

    def start(self, manifest: Digest, hint: ImageHint, window_s: float | None) -> RecordingStarted:
        """Record from now on, by request, for ``window_s`` from the first read. Raises ProfileError if it cannot be."""
        window_s = self._config.window_s if window_s is None else window_s
        if not 0 < window_s <= MAX_WINDOW_S:
            raise ProfileError(f"a recording takes up to {MAX_WINDOW_S:.0f} s, not {window_s}")
        if not self._node.reports_reads:
            raise ProfileError("this data plane sees no reads")
        before = self._mounted(hint)
        silent = [layer for layer in before if layer.state is LayerState.COMPLETE and layer.fill_fd < 0]
        running = self._recordings.get(manifest)
        if running is not None and running.requested:
            raise ProfileError("a recording of this image is on already")
        if running is not None:
            running.request(window_s)  # it began a moment ago, with the start that was meant
        elif self._begin(manifest, hint, requested=True, window_s=window_s) is None:
            raise ProfileError(f"{MAX_RECORDINGS} recordings are on already")
        return RecordingStarted(manifest=manifest, layers=len(hint.layers), mounted=len(before), silent=len(silent))

    def _mounted(self, hint: ImageHint) -> list[Layer]:
        layers = [layer for ref in hint.layers if (layer := self._node.layer(ref.digest)) is not None]
        return [layer for layer in layers if layer.mount_point.is_mount()]

    def _begin(self, manifest: Digest, hint: ImageHint, *, requested: bool, window_s: float) -> Recording | None:
        if manifest in self._recordings or len(self._recordings) >= MAX_RECORDINGS:
            return None
        recording = Recording(hint, requested=requested, partial=bool(self._mounted(hint)), window_s=window_s)
        self._recordings[manifest] = recording
        self._tasks.start(self._follow(manifest, recording), f"record {manifest[7:19]}")
        log.info("profile_recording", manifest=manifest, requested=requested, partial=recording.partial)
        return recording

    async def _follow(self, manifest: Digest, recording: Recording) -> None:
        await recording.over()
        await self._finish(manifest, recording)
        saved = await asyncio.shield(recording.saved)
        if saved is not None and self._config.push and not recording.partial:
            await self._push(manifest, recording, saved)

    # Ending.

    async def stop(self, manifest: Digest, *, keep: bool = True) -> Profile | None:
        """End a recording; what the node's profile of the image now is, None if nothing was read or it is not kept.

        Raises ProfileError when no recording is on.
        """
        recording = self._recordings.get(manifest)
        if recording is None:
            raise ProfileError("no recording of this image is on")
        recording.keep = keep
        recording.stop()
        return await asyncio.shield(recording.saved)

    def released(self, digest: Digest) -> None:
        """No snapshot uses the layer any more: an image none of whose layers is used has no start to record."""
        for recording in self._recordings.values():
            if recording.has(digest) and not any(map(self._node.in_use, recording.digests)):
                recording.stop()

    async def discard(self, manifest: Digest) -> None:
        """Throw a recording away that began by itself: the image has a profile after all."""
        recording = self._recordings.get(manifest)
        if recording is not None and not recording.requested:
            await self._end(manifest, recording)
            recording.saved.set_result(None)

    async def close(self) -> None:
        """Keep what was recorded so far."""
        for manifest, recording in list(self._recordings.items()):
            await self._finish(manifest, recording)

    async def _end(self, manifest: Digest, recording: Recording) -> None:
        """Take nothing more in, and let go of the layers that only this recording kept awake."""
        recording.stop()
        del self._recordings[manifest]
        for digest in recording.digests:
            await self._node.unwatch(digest)

    async def _finish(self, manifest: Digest, recording: Recording) -> None:
        if self._recordings.get(manifest) is not recording:
            return
        saved: Profile | None = None
        try:
            await self._end(manifest, recording)
            saved = await self._save(manifest, recording)
        except (OSError, ProfileError) as error:
            log.error("profile_not_saved", manifest=manifest, error=str(error))
        finally:
            recording.saved.set_result(saved)

    async def _save(self, manifest: Digest, recording: Recording) -> Profile | None:
        fresh = recording.profile() if recording.keep else None
        if fresh is None:
            log.info("profile_empty", manifest=manifest)
            return None
        async with self._saving:
            old, _ = await asyncio.to_thread(load_sound, self._store, manifest)
            profile = fresh if old is None else await asyncio.to_thread(merge, [old, fresh])
            await asyncio.to_thread(self._store.save, manifest, profile)
        log.info(
            "profile_recorded",
            manifest=manifest,
            reads=len(fresh.reads),
            bytes=fresh.touched_bytes,
            duration_ms=fresh.duration_ms,
            recordings=profile.recordings,
        )
        return profile

    async def _push(self, manifest: Digest, recording: Recording, profile: Profile) -> None:
        """Attach what was recorded to the image, unless enough others have."""
        problem: object = "no registry of the image is known"
        for origin in recording.image.origins:
            try:
                async with asyncio.timeout(self._config.push_timeout_s):
                    there = await referrers.listed(self._client, origin, manifest)
                    if len(there) < referrers.NEWEST:
                        await referrers.push(self._client, origin, manifest, profile)
                        log.info("profile_pushed", manifest=manifest, origin=str(origin))
                return
            except (RegistryError, TimeoutError) as error:
                problem = error or "timed out"
        log.warning("profile_not_pushed", manifest=manifest, error=str(problem))
