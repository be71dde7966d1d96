"""Pushing an image as it is, from any source the converter reads."""

import asyncio
from collections.abc import Sequence

from converter.copying import BlobCopier
from converter.locations import parse_location
from converter.transports import open_destination, open_source
from fastpull.registry_access import open_client
from fetcher.registry import Descriptor, Reference, descriptors
from layerformat.digest import Digest


async def push_archive(source: str, reference: Reference, plain_http: Sequence[str]) -> Digest:
    """Copy the image at `source` (as on convert's command line) to a tag; its digest, which does not change.

    Raises:
        ConvertError: it cannot be read, or not be pushed; the tag then stands for what it stood for before.
    """
    async with open_client(plain_http) as client:
        reader = await open_source(parse_location(source), client)
        writer = await open_destination(reference, client)
        copier = BlobCopier(reader, writer, ())
        root = await reader.root()
        if root.is_index:
            for child in root.manifests:
                await copier.copy_manifest(child)
        else:
            await _copy_all(copier, (root.config, *descriptors(root.document, "layers")))
        return await writer.publish(root.body, root.descriptor.media_type)


async def _copy_all(copier: BlobCopier, blobs: Sequence[Descriptor]) -> None:
    unique = {blob.digest: blob for blob in blobs}
    async with asyncio.TaskGroup() as tasks:
        for blob in unique.values():
            tasks.create_task(copier.copy(blob))
