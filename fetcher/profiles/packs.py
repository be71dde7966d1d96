"""Packs in the registry: OCI referrers of the image's manifest, each with two layers, the table and the frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass

import structlog

from fetcher.profiles import referrers
from fetcher.profiles.document import ProfileError
from fetcher.profiles.pack import DATA_TYPE, MEDIA_TYPE, Pack, Places, decode_pack, encode_pack
from fetcher.profiles.referrers import CREATED
from fetcher.registry import Descriptor, Origin, RegistryClient, RegistryError
from fetcher.scheduler.packed import PackBlob, Place
from layerformat.digest import Digest
from layerformat.frames import Frame

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class FoundPack:
    """A pack of an image, to be looked frames up in."""

    blob: PackBlob
    places: Places

    def place(self, digest: Digest, frame: Frame) -> Place | None:
        """Where in it a layer's frame is, if it is."""
        offset = self.places.find(digest, frame)
        return Place(self.blob, offset) if offset is not None else None


async def find(
    client: RegistryClient, origin: Origin, manifest: Digest, digests: Collection[Digest]
) -> FoundPack | None:
    """The newest pack that is good for an image with these layers; None without one.

    Each that is not is left out with one log line. Raises RegistryError when the registry does not list them.
    """
    for descriptor in (await referrers.listed(client, origin, manifest, MEDIA_TYPE))[: referrers.NEWEST]:
        try:
            return await _pull_one(client, origin, descriptor, digests)
        except (ProfileError, RegistryError) as error:
            source = f"{origin.host}/{origin.repository}@{descriptor.digest}"
            log.warning("pack_ignored", manifest=manifest, source=source, reason=str(error))
    return None


async def _pull_one(
    client: RegistryClient, origin: Origin, descriptor: Descriptor, digests: Collection[Digest]
) -> FoundPack:
    layers = (await client.manifest(origin, descriptor.digest)).layers
    if [layer.media_type for layer in layers] != [MEDIA_TYPE, DATA_TYPE]:
        raise ProfileError("its manifest names no pack")
    table, data = layers
    pack = await asyncio.to_thread(decode_pack, await referrers.pull_document(client, origin, table))
    if pack.size != data.size:
        raise ProfileError(f"has {data.size} bytes, and its table tells of {pack.size}")
    if strangers := set(pack.layers) - set(digests):
        raise ProfileError(f"is of another image: layer {min(strangers)} is not of this one")
    return FoundPack(PackBlob(origin, data.digest), pack.places())


async def push(
    client: RegistryClient, origin: Origin, manifest: Digest, pack: Pack, chunks: AsyncIterator[bytes], created: str
) -> Descriptor:
    """Attach a pack to an image; ``chunks`` yields its bytes. Raises RegistryError."""
    subject = (await client.manifest(origin, manifest)).descriptor
    digest, size = await client.push_blob(origin, chunks)
    table = await client.push_layer_bytes(origin, encode_pack(pack), MEDIA_TYPE)
    data = Descriptor(media_type=DATA_TYPE, digest=digest, size=size)
    return await client.push_referrer(origin, subject, MEDIA_TYPE, [table, data], {CREATED: created})
