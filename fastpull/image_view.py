"""What an image in a registry is made of, seen from fastpull: which layers are converted, their sizes and indexes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fastpull.registry_access import image_manifests
from fetcher.registry import Descriptor, Manifest, Origin, Platform, Reference, RegistryClient
from layerformat.annotations import LayerRef
from layerformat.errors import FormatError
from layerformat.index import Index, open_index


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """One layer. Sizes in bytes; what only an index can tell is None for a layer that has none."""

    digest: str
    media_type: str
    size: int
    converted: bool
    problem: str = ""
    index_size: int | None = None
    tar_size: int | None = None
    frames: int | None = None
    metadata_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Referrer:
    """Something that refers to the image's manifest, such as a start profile."""

    artifact_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageView:
    """One platform's image."""

    reference: str
    platform: str
    digest: str
    layers: tuple[LayerView, ...]
    referrers: tuple[Referrer, ...]

    @property
    def converted(self) -> str:
        """`yes`, `partly` or `no`."""
        count = sum(layer.converted for layer in self.layers)
        return "no" if not count else "yes" if count == len(self.layers) else "partly"

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "converted": self.converted, "size": self.size}


async def view_image(client: RegistryClient, reference: Reference, platform: Platform | None) -> list[ImageView]:
    """The images at a reference. Reads manifests and the layers' indexes, never a layer."""
    manifests = await image_manifests(client, reference, platform)
    return [await _view(client, reference, which, manifest) for which, manifest in manifests]


async def _view(
    client: RegistryClient, reference: Reference, platform: Platform | None, manifest: Manifest
) -> ImageView:
    origin = reference.origin
    return ImageView(
        reference=str(reference),
        platform=str(platform) if platform is not None else "",
        digest=manifest.descriptor.digest,
        layers=tuple([await _layer(client, origin, layer) for layer in manifest.layers]),
        referrers=await _referrers(client, origin, manifest.descriptor),
    )


async def _layer(client: RegistryClient, origin: Origin, layer: Descriptor) -> LayerView:
    plain = LayerView(digest=layer.digest, media_type=layer.media_type, size=layer.size, converted=False)
    try:
        ref = LayerRef.from_annotations(layer.annotations)
        if ref is None:
            return plain
        index = await fetch_index(client, origin, ref)
    except FormatError as problem:
        return replace(plain, problem=str(problem))
    return replace(
        plain,
        converted=True,
        index_size=ref.index_size,
        tar_size=index.frames.tar_size,
        frames=len(index.frames),
        metadata_size=len(index.metadata),
    )


async def fetch_index(client: RegistryClient, origin: Origin, ref: LayerRef) -> Index:
    """A layer's index, verified against its descriptor.

    Raises:
        FormatError: it is not what the descriptor says, or malformed.
        RegistryError: it cannot be had.
    """
    async with client.read_blob(origin, ref.digest, offset=ref.index_offset, length=ref.index_size) as chunks:
        payload = b"".join([chunk async for chunk in chunks])
    return open_index(payload, ref)


async def _referrers(client: RegistryClient, origin: Origin, subject: Descriptor) -> tuple[Referrer, ...]:
    found: Sequence[Descriptor] = await client.referrers(origin, subject.digest)
    return tuple(Referrer(artifact_type=one.artifact_type or "", digest=one.digest, size=one.size) for one in found)
