"""Where images are read from. Everything that a source gives out is verified against the digest it was asked for by."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, Final, Protocol

from converter.errors import AuthError, ConvertError, MalformedInput, SourceNotFound, SourceUnavailable
from converter.files import ArchiveFiles, DirectoryFiles, Files, required, verified_document
from converter.locations import LocalLocation
from fetcher.registry import (
    MANIFEST_TYPES,
    CredentialsUnavailable,
    Denied,
    Descriptor,
    DigestMismatch,
    Manifest,
    NotFound,
    Origin,
    ProtocolViolation,
    Reference,
    RegistryClient,
    RegistryError,
    Unauthorized,
    descriptors,
)
from fetcher.registry.descriptor import parse_json_object
from layerformat.digest import Digest, sha256_digest

REF_NAME: Final = "org.opencontainers.image.ref.name"
_MAX_DOCUMENT: Final = 64 << 20


class ImageSource(Protocol):
    """An image to read. Raises ConvertError only."""

    @property
    def origin(self) -> Origin | None:
        """The repository, for a registry: blobs can be mounted from there."""
        ...

    async def root(self) -> Manifest:
        """The manifest or index that the name stands for."""
        ...

    async def manifest(self, descriptor: Descriptor) -> Manifest:
        """A manifest that an index lists."""
        ...

    def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """A whole blob; an error instead of its end when the bytes are not the descriptor's."""
        ...

    async def blob_range(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        """Part of a blob, **not verified**."""
        ...


def oci_files(location: LocalLocation) -> Files:
    """Files of an OCI image layout; SourceNotFound where there is none."""
    files: Files = ArchiveFiles(location.path) if location.transport == "oci-archive" else DirectoryFiles(location.path)
    if files.locate("index.json") is None:
        raise SourceNotFound(f"{location.path}: no OCI image layout (index.json) there")
    return files


async def read_small_blob(source: ImageSource, descriptor: Descriptor) -> bytes:
    """A config or another document, verified."""
    if descriptor.size > _MAX_DOCUMENT:
        raise MalformedInput(f"{descriptor.digest}: a config of {descriptor.size} bytes")
    async with aclosing_if_possible(source.blob(descriptor)) as chunks:
        return b"".join([chunk async for chunk in chunks])


def aclosing_if_possible(chunks: AsyncIterator[bytes]) -> "aclosing[Any]":
    """`aclosing` for what are async generators in fact: connections must not wait for the garbage collector."""
    return aclosing(chunks)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns a registry's or the file system's errors into the source's."""
    try:
        yield
    except RegistryError as exc:
        raise source_error(exc) from exc
    except OSError as exc:
        raise SourceUnavailable(f"{what}: {exc.strerror or exc}") from exc


def source_error(exc: RegistryError) -> ConvertError:
    """The error a person sees, by kind."""
    if isinstance(exc, NotFound):
        return SourceNotFound(str(exc))
    if isinstance(exc, Unauthorized | Denied | CredentialsUnavailable):
        return AuthError(str(exc))
    if isinstance(exc, DigestMismatch | ProtocolViolation):
        return MalformedInput(str(exc))
    return SourceUnavailable(str(exc))


class RegistrySource:
    """A repository of a registry."""

    def __init__(self, reference: Reference, client: RegistryClient) -> None:
        self._reference = reference
        self._client = client
        self.origin: Origin | None = reference.origin

    async def root(self) -> Manifest:
        with reading(str(self._reference)):
            return await self._client.manifest(self._reference.origin, self._reference.target)

    async def manifest(self, descriptor: Descriptor) -> Manifest:
        with reading(str(self._reference)):
            return await self._client.manifest(self._reference.origin, descriptor.digest)

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        with reading(str(self._reference)):
            async with aclosing_if_possible(
                self._client.pull_blob(self._reference.origin, descriptor.digest)
            ) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def blob_range(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        with reading(str(self._reference)):
            reader = self._client.read_blob(self._reference.origin, descriptor.digest, offset=offset, length=length)
            async with reader as chunks:
                return b"".join([chunk async for chunk in chunks])


def blob_name(digest: Digest) -> str:
    """Path of a blob in an OCI image layout."""
    return "blobs/" + digest.replace(":", "/", 1)


class OciSource:
    """An OCI image layout, in a directory or an archive."""

    origin: Origin | None = None

    def __init__(self, files: Files, tag: str | None) -> None:
        self._files = files
        self._tag = tag

    async def root(self) -> Manifest:
        with reading(self._files.label):
            body = await asyncio.to_thread(required(self._files, "index.json").document)
            index = parse_json_object(body, f"{self._files.label}/index.json")
            return await self.manifest(choose(descriptors(index, "manifests"), self._tag, self._files.label))

    async def manifest(self, descriptor: Descriptor) -> Manifest:
        with reading(self._files.label):
            body = await asyncio.to_thread(
                verified_document, self._files, blob_name(descriptor.digest), descriptor.digest
            )
            return make_manifest(body, descriptor.media_type, self._files.label)

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        with reading(self._files.label):
            extent = await asyncio.to_thread(required, self._files, blob_name(descriptor.digest))
            async with aclosing_if_possible(extent.verified(descriptor.digest)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def blob_range(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        with reading(self._files.label):
            extent = await asyncio.to_thread(required, self._files, blob_name(descriptor.digest))
            return await asyncio.to_thread(extent.read, offset, length)


def choose(rows: tuple[Descriptor, ...], tag: str | None, label: str) -> Descriptor:
    """The image that `tag` names in a layout; without a tag, the only image there is."""
    images = [row for row in rows if row.media_type in MANIFEST_TYPES]
    found = images if tag is None else [row for row in images if row.annotations.get(REF_NAME) == tag]
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(row.annotations.get(REF_NAME, "(untagged)") for row in images)) or "none"
    if found:
        raise SourceNotFound(f"{label}: {len(found)} images match", hint=f"add :TAG; images there: {names}")
    raise SourceNotFound(f"{label}: no image {tag or ''}".rstrip(), hint=f"images there: {names}")


def make_manifest(body: bytes, media_type: str, label: str) -> Manifest:
    """A manifest from its bytes; the media type it states itself wins over the descriptor's."""
    document: Mapping[str, Any] = parse_json_object(body, label)
    stated = document.get("mediaType")
    media_type = stated if isinstance(stated, str) else media_type
    return Manifest(
        descriptor=Descriptor(media_type=media_type, digest=sha256_digest(body), size=len(body)),
        body=body,
        document=document,
    )
