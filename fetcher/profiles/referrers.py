"""Profiles beside their images: OCI referrers of the image's manifest, so that the image's digest does not change.

A referrer is one manifest with one layer, the document. Several may be there, from several nodes: they are merged by
whoever reads them, the newest few.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from typing import Final

import structlog

from fetcher.profiles.document import MAX_BYTES, MAX_ROWS, ProfileError
from fetcher.profiles.merging import merge
from fetcher.profiles.profile import MEDIA_TYPE, Profile, decode_profile, encode_profile
from fetcher.registry import Descriptor, NotFound, Origin, RegistryClient, RegistryError
from layerformat.digest import DiffID, Digest

log = structlog.get_logger(__name__)

#: Artifact types: of what starts were seen to read, and of what nobody has seen yet but the image's files tell.
RECORDED: Final = MEDIA_TYPE
PREDICTION: Final = "application/vnd.fastpull.prediction.v1+json"
#: Annotation of the specification, RFC 3339: which referrers are the newest.
CREATED = "org.opencontainers.image.created"
#: Referrers that are read, and merged.
NEWEST = 8


async def listed(
    client: RegistryClient, origin: Origin, manifest: Digest, artifact_type: str = RECORDED
) -> list[Descriptor]:
    """The profiles of an image, or what else is attached to it, the newest first. Raises RegistryError."""
    found = await client.referrers(origin, manifest, artifact_type)
    unique = {descriptor.digest: descriptor for descriptor in found}
    return sorted(unique.values(), key=lambda each: (each.annotations.get(CREATED, ""), each.digest), reverse=True)


async def pull(
    client: RegistryClient, origin: Origin, manifest: Digest, diff_ids: Collection[DiffID]
) -> Profile | None:
    """The image's profile, merged from what its newest referrers hold; None if none is good.

    Each that is not good, or not of these layers, is left out with one log line. Raises RegistryError when the registry
    does not list them.
    """
    good: list[Profile] = []
    async with aclosing(_good(client, origin, manifest, diff_ids, RECORDED)) as profiles:
        async for profile in profiles:
            # Merging takes time in proportion; the newest count.
            if sum(len(each.reads) for each in (*good, profile)) <= MAX_ROWS:
                good.append(profile)
    return merge(good) if len(good) > 1 else good[0] if good else None


async def pull_prediction(
    client: RegistryClient, origin: Origin, manifest: Digest, diff_ids: Collection[DiffID]
) -> Profile | None:
    """The newest good prediction, for an image that has no profile; the rest as `pull`."""
    async with aclosing(_good(client, origin, manifest, diff_ids, PREDICTION)) as profiles:
        async for profile in profiles:
            return profile
    return None


async def _good(
    client: RegistryClient, origin: Origin, manifest: Digest, diff_ids: Collection[DiffID], artifact_type: str
) -> AsyncGenerator[Profile, None]:
    for descriptor in (await listed(client, origin, manifest, artifact_type))[:NEWEST]:
        try:
            profile = await _pull_one(client, origin, descriptor)
            profile.check_fits(diff_ids)
        except (ProfileError, RegistryError) as error:
            source = f"{origin.host}/{origin.repository}@{descriptor.digest}"
            log.warning("profile_ignored", manifest=manifest, source=source, reason=str(error))
            continue
        yield profile


async def _pull_one(client: RegistryClient, origin: Origin, descriptor: Descriptor) -> Profile:
    referrer = await client.manifest(origin, descriptor.digest)
    layers: Sequence[Descriptor] = referrer.layers
    if len(layers) != 1 or layers[0].media_type != MEDIA_TYPE:
        raise ProfileError("its manifest names no profile")
    return await asyncio.to_thread(decode_profile, await pull_document(client, origin, layers[0]))


async def pull_document(client: RegistryClient, origin: Origin, layer: Descriptor) -> bytes:
    """A referrer's layer, which may not be large. Raises ProfileError or RegistryError."""
    if layer.size > MAX_BYTES:
        raise ProfileError(f"is larger than {MAX_BYTES} bytes")
    parts, size = [], 0
    async for chunk in client.pull_blob(origin, layer.digest):
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_BYTES:
            raise ProfileError(f"is larger than {MAX_BYTES} bytes")
    return b"".join(parts)


async def push(
    client: RegistryClient, origin: Origin, manifest: Digest, profile: Profile, artifact_type: str = RECORDED
) -> Descriptor:
    """Attach a profile to an image; the referrer's descriptor. Raises RegistryError."""
    subject = (await client.manifest(origin, manifest)).descriptor
    layer = await client.push_layer_bytes(origin, encode_profile(profile), MEDIA_TYPE)
    return await client.push_referrer(origin, subject, artifact_type, [layer], {CREATED: profile.created})


async def remove(client: RegistryClient, origin: Origin, manifest: Digest, artifact_type: str = RECORDED) -> int:
    """Delete the image's profiles, or what else is attached to it; how many there were.

    Raises RegistryError (Rejected: no deleting there).
    """
    found = await listed(client, origin, manifest, artifact_type)
    for descriptor in found:
        try:
            await client.delete_manifest(origin, descriptor.digest)
        except NotFound:
            continue  # listed by the fallback tag, but gone
    return len(found)
