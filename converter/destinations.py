"""Where converted images go. Nothing is visible under the image's name before `publish`."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Protocol

from converter.errors import AuthError, ConvertError, DestinationError, DestinationUnavailable
from converter.sources import RegistrySource
from fetcher.registry import (
    CredentialsUnavailable,
    Denied,
    Descriptor,
    Manifest,
    NotFound,
    Origin,
    Reference,
    RegistryClient,
    RegistryError,
    Unauthorized,
    is_transient,
)
from layerformat.digest import Digest, sha256_digest


class ImageDestination(Protocol):
    """An image to write. Raises ConvertError only, and whatever an iterator of chunks raises."""

    @property
    def origin(self) -> Origin | None:
        """The repository, for a registry."""
        ...

    async def existing_root(self) -> Manifest | None:
        """What the name stands for now, None if nothing."""
        ...

    async def existing_manifest(self, descriptor: Descriptor) -> Manifest:
        """A manifest that the existing index lists."""
        ...

    async def blob_range(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        """Part of a blob that is there, **not verified**."""
        ...

    async def keeps(self, digest: Digest) -> bool:
        """Whether a blob that the existing image refers to is still there, as cheaply as the place allows."""
        ...

    async def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is there."""
        ...

    async def mount_blob(self, digest: Digest, source: Origin) -> bool:
        """Take the blob over from another repository of the same registry; False where that cannot be."""
        ...

    async def push_blob(self, chunks: AsyncIterator[bytes]) -> tuple[Digest, int]:
        """Store what `chunks` yields; digest and size."""
        ...

    async def push_bytes(self, data: bytes) -> Digest:
        """Store a small blob."""
        ...

    async def push_manifest(self, body: bytes, media_type: str) -> Digest:
        """Store a manifest under its digest."""
        ...

    async def publish(self, body: bytes, media_type: str) -> Digest:
        """Store a manifest or index and let the name stand for it."""
        ...


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turns a registry's or the file system's errors into the destination's."""
    try:
        yield
    except RegistryError as exc:
        raise destination_error(exc) from exc
    except OSError as exc:
        raise DestinationError(f"{what}: {exc.strerror or exc}") from exc


def destination_error(exc: RegistryError) -> ConvertError:
    """The error a person sees, by kind."""
    if isinstance(exc, Unauthorized | Denied | CredentialsUnavailable):
        return AuthError(str(exc))
    if is_transient(exc):
        return DestinationUnavailable(str(exc))
    return DestinationError(str(exc))


class RegistryDestination:
    """A tag of a registry's repository."""

    def __init__(self, reference: Reference, client: RegistryClient) -> None:
        self._reference = reference
        self._client = client
        self.origin: Origin | None = reference.origin
        self._here = reference.origin

    async def existing_root(self) -> Manifest | None:
        with writing(str(self._reference)):
            try:
                return await self._client.manifest(self._here, self._reference.target)
            except NotFound:
                return None
            except Unauthorized:
                # Some registries answer so for a repository that does not exist yet; a push will tell.
                return None

    async def existing_manifest(self, descriptor: Descriptor) -> Manifest:
        with writing(str(self._reference)):
            return await self._client.manifest(self._here, descriptor.digest)

    async def blob_range(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        return await RegistrySource(self._reference, self._client).blob_range(descriptor, offset, length)

    async def keeps(self, digest: Digest) -> bool:
        # A registry keeps the blobs of a tagged manifest, and checks them when a manifest is pushed.
        return True

    async def has_blob(self, digest: Digest) -> bool:
        with writing(str(self._reference)):
            return await self._client.blob_exists(self._here, digest) is not None

    async def mount_blob(self, digest: Digest, source: Origin) -> bool:
        if source.host != self._here.host:
            return False
        with writing(str(self._reference)):
            return await self._client.mount_blob(self._here, digest, source)

    async def push_blob(self, chunks: AsyncIterator[bytes]) -> tuple[Digest, int]:
        with writing(str(self._reference)):
            return await self._client.push_blob(self._here, chunks)

    async def push_bytes(self, data: bytes) -> Digest:
        with writing(str(self._reference)):
            return await self._client.push_blob_bytes(self._here, data)

    async def push_manifest(self, body: bytes, media_type: str) -> Digest:
        with writing(str(self._reference)):
            return await self._client.push_manifest(self._here, sha256_digest(body), body, media_type)

    async def publish(self, body: bytes, media_type: str) -> Digest:
        with writing(str(self._reference)):
            return await self._client.push_manifest(self._here, self._reference.target, body, media_type)
