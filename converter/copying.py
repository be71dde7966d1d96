"""Blobs and manifests that go to the destination as they are."""

from collections.abc import Collection

from converter.destinations import ImageDestination
from converter.errors import MalformedInput
from converter.media import is_foreign
from converter.sources import ImageSource, aclosing_if_possible
from fetcher.registry import INDEX_TYPES, Descriptor, Manifest, RegistryError, descriptors
from layerformat.digest import Digest


class BlobCopier:
    """`known`: blobs of the image that is at the destination now."""

    def __init__(self, source: ImageSource, destination: ImageDestination, known: Collection[Digest]) -> None:
        self._source = source
        self._destination = destination
        self._known = known

    async def copy(self, descriptor: Descriptor) -> str:
        """Bring one blob over the cheapest way; how: kept (was there, or is not ours to copy), mounted or copied."""
        if is_foreign(descriptor) or await self._is_there(descriptor.digest):
            return "kept"
        origin = self._source.origin
        if origin is not None and await self._destination.mount_blob(descriptor.digest, origin):
            return "mounted"
        async with aclosing_if_possible(self._source.blob(descriptor)) as chunks:
            await self._destination.push_blob(chunks)
        return "copied"

    async def _is_there(self, digest: Digest) -> bool:
        if digest in self._known:
            return await self._destination.keeps(digest)
        return await self._destination.has_blob(digest)

    async def copy_manifest(self, descriptor: Descriptor) -> None:
        """A manifest or nested index with all it refers to, byte for byte."""
        manifest = await self._source.manifest(descriptor)
        for child in _children(manifest):
            await self.copy_manifest(child)
        for blob in _blobs(manifest):
            await self.copy(blob)
        await self._destination.push_manifest(manifest.body, manifest.descriptor.media_type)


def _children(manifest: Manifest) -> tuple[Descriptor, ...]:
    return manifest.manifests if manifest.descriptor.media_type in INDEX_TYPES else ()


def _blobs(manifest: Manifest) -> tuple[Descriptor, ...]:
    if manifest.descriptor.media_type in INDEX_TYPES:
        return ()
    try:
        return (manifest.config, *descriptors(manifest.document, "layers"))
    except RegistryError as exc:
        raise MalformedInput(f"manifest {manifest.descriptor.digest}: {exc}") from exc
