"""Profiles at work on a node: found and replayed when an image is announced, recorded when it starts.

A start never waits for any of this, and none of it can fail a start. ``docs/design/0003-profiles.md`` tells how an
image passes through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from fetcher.layers.layer import Layer
from fetcher.model import ImageHint, LayerUnavailable, ProfilesConfig
from fetcher.profiles.document import ProfileError
from fetcher.profiles.node import Node
from fetcher.profiles.profile import Profile
from fetcher.profiles.recorder import Recorder, RecordingStarted
from fetcher.profiles.replay import PREDICTION, Image, Replay
from fetcher.profiles.store import ProfileStore, load_sound
from fetcher.profiles.warming import Warming
from fetcher.registry import RegistryClient
from fetcher.scheduler.governor import QUIET_S
from fetcher.tasks import TaskSet
from layerformat.annotations import LayerRef
from layerformat.digest import Digest

#: Announced images remembered; the oldest are forgotten first.
MAX_IMAGES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileStatus:
    """What the node knows of one image's profile."""

    manifest: Digest
    name: str | None
    recording: bool
    reads: int  # of the recording under way, else of the profile
    touched_bytes: int
    recordings: int
    source: str | None  # of the profile that was replayed: "local", "registry" or "prediction"
    frames_prefetched: int  # handed to the governor at the last announcement
    frames_packed: int  # of those, what a pack in the registry has
    stored: bool  # on this node
    problem: str | None  # why the stored one is no good


class Profiles:
    """All profiles of a node. What is not a coroutine is quick."""

    def __init__(
        self, config: ProfilesConfig, store: ProfileStore, client: RegistryClient, node: Node, tasks: TaskSet
    ) -> None:
        self._config = config
        self._store = store
        self._node = node
        self._tasks = tasks
        self._replay = Replay(config, store, client, node)
        self._recorder = Recorder(config, store, client, node, tasks)
        self._warming = Warming()
        self._images: dict[Digest, Image] = {}

    # What the node tells.

    def announce(self, hint: ImageHint) -> None:
        """An image is about to be used. Told once for every layer, so most calls find it under way."""
        manifest = hint.manifest_digest
        if manifest is None or not hint.layers:
            return
        known = self._images.pop(manifest, None)
        if known is not None and (known.following or all(self._node.in_use(ref.digest) for ref in hint.layers)):
            self._images[manifest] = known
            return
        while len(self._images) >= MAX_IMAGES:
            self._images.pop(next(iter(self._images)))
        image = self._images[manifest] = Image(hint, manifest)
        self._tasks.start(self._follow(image), f"profile of {manifest[7:19]}")

    async def _follow(self, image: Image) -> None:
        """From the announcement until all layers are in use, or it is clear that they will not be."""
        try:
            await self._follow_profile(image)
            await self._replay.watch(image)
        finally:
            image.leave()

    async def _follow_profile(self, image: Image) -> None:
        """Replay it if there is one. What is filled until that is known would stand in its way."""
        governor, config = self._node.governor, self._config
        digests = [ref.digest for ref in image.hint.layers] if config.replay else []
        hold = governor.hold_fill(digests, at_most_s=config.lookup_timeout_s, quiet_s=QUIET_S)
        await self._replay.find(image)
        if image.profile is not None:
            if not self._to_be_recorded(image):
                await self._recorder.discard(image.manifest)
            if config.replay:
                await self._replay.start(image, image.profile)
                self._tasks.start(self._warm(image), f"warm {image.manifest[7:19]}")
        if not image.frames:
            governor.let_fill(hold)
        elif image.profile is not None:
            await self._replay.join_pack(image, image.profile)

    async def _warm(self, image: Image) -> None:
        """Spare the program its first reads, unless somebody wants to see them."""
        profile = image.profile
        if profile is None or not self._config.warm or not self._node.tells_readers:
            return
        layers = [layer for ref in image.hint.layers if (layer := await self._admitted(image, ref)) is not None]
        if not any(self._recorder.wants(layer.digest) for layer in layers):
            places = {layer.ref.diff_id: (layer.digest, layer.directory) for layer in layers}
            await self._warming.run(image.manifest, profile, places)

    async def _admitted(self, image: Image, ref: LayerRef) -> Layer | None:
        """One of the image's layers when it is there for others to see; None if it will not be."""
        with suppress(LayerUnavailable, OSError):
            await self._node.admit(ref, image.hint.origins)
        return self._node.layer(ref.digest)

    def readers_ahead(self) -> Collection[int]:
        """Processes whose reads are no program's."""
        return self._warming.pids

    def retained(self, digest: Digest) -> None:
        """A snapshot uses the layer from now on."""
        for image in self._images.values():
            if image.has(digest):
                image.progress.set()

    def mounting(self, digest: Digest) -> None:
        """A layer is about to be mounted: the first one of an image is the beginning of its first start here."""
        for image in self._images.values():
            if image.has(digest) and not image.mounted:
                image.mounted = True
                if self._to_be_recorded(image):
                    self._recorder.begin_automatically(image.manifest, image.hint)

    def _to_be_recorded(self, image: Image) -> bool:
        """A prediction spares this node a recording, by which nothing could be read ahead, but not all the others."""
        return image.profile is None or (image.source == PREDICTION and self._config.push)

    async def releasing(self, digest: Digest) -> None:
        """No snapshot uses the layer any more, and it is about to be unmounted."""
        await self._warming.stop({digest})

    def released(self, digest: Digest) -> None:
        """The layer is unmounted."""
        self._recorder.released(digest)

    def wants(self, digest: Digest) -> bool:
        """Whether a layer's reads are to be reported even when it is complete."""
        return self._recorder.wants(digest)

    def touch(self, layer: Layer, offset: int, count: int) -> None:
        """A read of a layer file that the page cache could not serve."""
        self._recorder.touch(layer, offset, count)

    async def close(self) -> None:
        """Keep what was recorded so far."""
        await self._recorder.close()

    # What people ask.

    async def start(self, manifest: Digest, hint: ImageHint | None, window_s: float | None = None) -> RecordingStarted:
        """Record from now on. ``hint`` is needed for an image that was not announced. Raises ProfileError."""
        image = self._images.get(manifest)
        found = hint or (image.hint if image is not None else None)
        if found is None or not found.layers:
            raise ProfileError("the image was not announced to this node, and none of its layers is named")
        await self._warming.stop({ref.digest for ref in found.layers})
        return self._recorder.start(manifest, found, window_s)

    async def stop(self, manifest: Digest, *, keep: bool = True) -> Profile | None:
        """End a recording; the node's profile of the image, None if nothing was read or it is not kept.

        Raises ProfileError when no recording is on.
        """
        return await self._recorder.stop(manifest, keep=keep)

    async def get(self, manifest: Digest) -> Profile | None:
        """The profile stored on this node. Raises ProfileError or OSError for one that is no good."""
        return await asyncio.to_thread(self._store.load, manifest)

    def replayed(self, manifest: Digest) -> Profile | None:
        """The profile, of this node or from the registry, that the image's last announcement was answered with."""
        image = self._images.get(manifest)
        return image.profile if image is not None else None

    async def remove(self, manifest: Digest) -> bool:
        """Forget the profile stored on this node; tells whether there was one."""
        return await asyncio.to_thread(self._store.remove, manifest)

    async def status(self) -> list[ProfileStatus]:
        """Of every image that has a profile here, was announced, or is being recorded."""
        stored = set(await asyncio.to_thread(self._store.manifests))
        known = sorted({*stored, *self._images, *self._recorder.manifests})
        return [await self._status(manifest, stored=manifest in stored) for manifest in known]

    async def _status(self, manifest: Digest, *, stored: bool) -> ProfileStatus:
        image, recording = self._images.get(manifest), manifest in self._recorder.manifests
        profile, problem = await asyncio.to_thread(load_sound, self._store, manifest)
        if profile is None and image is not None:
            profile = image.profile
        reads = len(profile.reads) if profile is not None else 0
        return ProfileStatus(
            manifest=manifest,
            name=image.hint.name if image is not None else None,
            recording=recording,
            reads=self._recorder.read_count(manifest) if recording else reads,
            touched_bytes=profile.touched_bytes if profile is not None else 0,
            recordings=profile.recordings if profile is not None else 0,
            source=image.source if image is not None else None,
            frames_prefetched=image.frames if image is not None else 0,
            frames_packed=image.packed if image is not None else 0,
            stored=stored,
            problem=problem,
        )
