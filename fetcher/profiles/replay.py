"""Images that were announced: their profile is found, and its frames are fetched before anyone asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog

from fetcher.layers.layer import Layer
from fetcher.model import ImageHint, LayerUnavailable, ProfilesConfig
from fetcher.profiles import packs, referrers
from fetcher.profiles.document import ProfileError
from fetcher.profiles.node import Node
from fetcher.profiles.packs import FoundPack
from fetcher.profiles.profile import Profile, wanted_frames
from fetcher.profiles.store import ProfileStore
from fetcher.registry import Origin, RegistryClient, RegistryError
from fetcher.scheduler.governor import QUIET_S, START_S
from fetcher.scheduler.packed import Place
from layerformat.annotations import LayerRef
from layerformat.digest import DiffID, Digest

log = structlog.get_logger(__name__)

Found = TypeVar("Found")

#: The source of a profile that no start was recorded for.
PREDICTION: Final = "prediction"

#: Layers do not wait for each other to be admitted: what there is is looked at after this, then twice this, and so on.
FIRST_LOOK_S = 0.02


@dataclass(slots=True, eq=False)
class Image:
    """An announced image. ``source`` of its profile: "local", "registry" or "prediction"; None without one."""

    hint: ImageHint
    manifest: Digest
    profile: Profile | None = None
    source: str | None = None
    frames: int = 0  # handed to the governor
    packed: int = 0  # of those, frames that a pack has
    layers: list[Layer] = field(default_factory=list)  # whose frames they are
    pack: asyncio.Task[FoundPack | None] | None = None
    mounted: bool = False
    following: bool = True  # it is still being looked after
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def diff_ids(self) -> frozenset[DiffID]:
        """Of the layers."""
        return frozenset(ref.diff_id for ref in self.hint.layers)

    def leave(self) -> None:
        """It is not looked after any more: keep nothing that takes memory."""
        self.following = False
        if self.pack is not None:
            self.pack.cancel()
            self.pack = None
        self.layers.clear()

    def has(self, digest: Digest) -> bool:
        """Whether the layer belongs to the image."""
        return any(ref.digest == digest for ref in self.hint.layers)


#: The same where the program finds its pages ready, and no reads of it are seen.
WARM_QUIET_S = 5.0


class Replay:
    """Finds profiles and hands them to the governor."""

    def __init__(self, config: ProfilesConfig, store: ProfileStore, client: RegistryClient, node: Node) -> None:
        self._config = config
        self._store = store
        self._client = client
        self._node = node

    async def find(self, image: Image) -> None:
        """The node's own profile, else the registry's or a prediction, into ``image``; until a deadline."""
        if self._config.replay and self._config.packs and self._lacks_bytes(image):
            image.pack = asyncio.ensure_future(self._pack(image))
        if (local := await self._local(image)) is not None:
            image.profile, image.source = local, "local"
        elif (found := await self._look_up(image, lambda origin: self._remote(image, origin))) is not None:
            image.profile, image.source = found

    def _lacks_bytes(self, image: Image) -> bool:
        layers = [self._node.layer(ref.digest) for ref in image.hint.layers]
        return any(layer is None or not layer.present.complete for layer in layers)

    async def _local(self, image: Image) -> Profile | None:
        try:
            profile = await asyncio.to_thread(self._store.load, image.manifest)
            if profile is not None:
                profile.check_fits(image.diff_ids)
            return profile
        except (ProfileError, OSError) as error:
            log.warning("profile_ignored", manifest=image.manifest, source="local", reason=str(error))
            return None

    async def _remote(self, image: Image, origin: Origin) -> tuple[Profile, str] | None:
        """What the registry has, and what that is."""
        ask = (self._client, origin, image.manifest, image.diff_ids)
        if (profile := await referrers.pull(*ask)) is not None:
            return profile, "registry"
        if self._config.predictions and self._config.replay:
            profile = await referrers.pull_prediction(*ask)
        return (profile, PREDICTION) if profile is not None else None

    async def _pack(self, image: Image) -> FoundPack | None:
        digests = frozenset(ref.digest for ref in image.hint.layers)
        return await self._look_up(image, lambda origin: packs.find(self._client, origin, image.manifest, digests))

    async def _look_up(self, image: Image, ask: Callable[[Origin], Awaitable[Found | None]]) -> Found | None:
        """What the first origin says that can be asked."""
        try:
            async with asyncio.timeout(self._config.lookup_timeout_s):
                for origin in image.hint.origins:
                    with suppress(RegistryError):
                        return await ask(origin)
        except TimeoutError:
            log.info("profile_lookup_timed_out", manifest=image.manifest, after_s=self._config.lookup_timeout_s)
        return None

    async def start(self, image: Image, profile: Profile) -> None:
        """Hand the frames to the governor, in the profile's order over all layers."""
        try:
            await self._start(image, profile)
        except ProfileError as error:
            log.warning("profile_ignored", manifest=image.manifest, source=image.source, reason=str(error))
            image.profile = image.source = None
        else:
            counts = {"frames": image.frames, "packed": image.packed}
            log.info("profile_replayed", manifest=image.manifest, source=image.source, **counts)

    async def _start(self, image: Image, profile: Profile) -> None:
        named = {profile.layers[read.layer] for read in profile.reads}
        opening = {asyncio.ensure_future(self._open(image, ref)) for ref in _one_each(image.hint.layers, named)}
        look_s = FIRST_LOOK_S
        try:
            while opening:
                done, opening = await asyncio.wait(opening, timeout=look_s)
                look_s *= 2
                if found := [layer for task in done if (layer := task.result()) is not None]:
                    begins = not image.layers
                    image.layers += found
                    await self._prefetch(image, profile)
                    if begins:  # what joins later belongs to the same start
                        self._hold_fill(image)
        finally:
            for task in opening:
                task.cancel()

    async def join_pack(self, image: Image, profile: Profile) -> None:
        """Take what is still to come from the pack, if there is one that was found after all layers were."""
        if image.pack is not None and not image.packed and await image.pack is not None:
            await self._prefetch(image, profile)
            log.info("pack_joined", manifest=image.manifest, packed=image.packed)

    async def _open(self, image: Image, ref: LayerRef) -> Layer | None:
        try:
            return await self._node.open_for_prefetch(ref, image.hint.origins)
        except (LayerUnavailable, OSError):
            return None  # whoever needs the layer is told

    async def _prefetch(self, image: Image, profile: Profile) -> None:
        pack = image.pack.result() if image.pack is not None and image.pack.done() else None
        wanted = await asyncio.to_thread(_placed, profile, {layer.ref.diff_id: layer for layer in image.layers}, pack)
        image.frames = len(wanted)
        image.packed = sum(place is not None for _, _, place in wanted)
        self._node.governor.prefetch(wanted)

    def _hold_fill(self, image: Image) -> None:
        quiet_s = WARM_QUIET_S if self._config.warm and self._node.tells_readers else QUIET_S
        self._node.governor.hold_fill((ref.digest for ref in image.hint.layers), at_most_s=START_S, quiet_s=quiet_s)

    async def watch(self, image: Image) -> None:
        """Wait for the layers to be used; when nothing has happened for a while, stop what nobody waits for."""
        while unused := [ref.digest for ref in image.hint.layers if not self._node.in_use(ref.digest)]:
            image.progress.clear()
            try:
                async with asyncio.timeout(self._config.unused_timeout_s):
                    await image.progress.wait()
            except TimeoutError:
                for digest in unused:
                    await self._node.abandon(digest)
                log.info("image_not_used", manifest=image.manifest, layers=len(unused))
                return


def _placed(
    profile: Profile, layers: Mapping[DiffID, Layer], pack: FoundPack | None
) -> list[tuple[Layer, int, Place | None]]:
    """The frames that a profile names, and where in the pack they are. Raises ProfileError where it does not fit."""
    frames = wanted_frames(profile, {diff_id: layer.frames for diff_id, layer in layers.items()})
    wanted = [(layers[diff_id], number) for diff_id, number in frames]
    if pack is None:
        return [(layer, number, None) for layer, number in wanted]
    return [(layer, number, pack.place(layer.digest, layer.frames[number])) for layer, number in wanted]


def _one_each(layers: Iterable[LayerRef], diff_ids: set[DiffID]) -> list[LayerRef]:
    """One layer of each diff id: an image may have equal layers."""
    return list({ref.diff_id: ref for ref in layers if ref.diff_id in diff_ids}.values())
