"""Pushing blobs: mounted where possible, in one PUT if small, else in chunks that can be resumed.

A chunk is kept until the registry has said how much of it arrived, so memory is bounded by two chunks per upload.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from fnmatch import fnmatchcase
from urllib.parse import quote

import structlog

from fetcher.registry.blobs import BlobReader
from fetcher.registry.challenge import pull, push
from fetcher.registry.config import RegistryConfig
from fetcher.registry.errors import (
    Denied,
    NotFound,
    RegistryError,
    Rejected,
    Unauthorized,
    Unavailable,
    UploadLost,
    is_transient,
    retry_after_s,
)
from fetcher.registry.reference import Origin
from fetcher.registry.retry import retrying
from fetcher.registry.uploads import Upload, Uploads
from layerformat.digest import Digest, sha256_digest

log = structlog.get_logger(__name__)


class BlobWriter:
    """Pushes to any origin."""

    def __init__(self, uploads: Uploads, reader: BlobReader, config: RegistryConfig) -> None:
        self._uploads = uploads
        self._reader = reader
        self._config = config
        # Every wait within an upload has its own deadline; the one over all is for registries that never get anywhere.
        deadline_s = max(config.retry.deadline_s, 2 * config.timeouts.finish_s)
        self._patience = replace(config.retry, deadline_s=deadline_s)

    async def mount(self, origin: Origin, digest: Digest, source: Origin) -> bool:
        """See :meth:`RegistryClient.mount_blob`."""
        if source.host != origin.host or source.repository == origin.repository:
            return False
        query = f"mount={quote(digest, safe='')}&from={quote(source.repository, safe='')}"
        scopes = (push(origin.repository), pull(source.repository))
        try:
            upload = await self._uploads.begin(origin, query, scopes)
        except (Denied, Unauthorized, NotFound, Rejected) as exc:
            log.info("registry_mount_refused", origin=str(origin), source=str(source), error=str(exc))
            return False
        if upload is None:
            return True
        await self._uploads.cancel(upload)
        return False

    async def push_bytes(self, origin: Origin, data: bytes) -> Digest:
        """See :meth:`RegistryClient.push_blob_bytes`."""
        digest = await asyncio.to_thread(sha256_digest, data)
        if await self._reader.size(origin, digest) == len(data):
            return digest

        async def whole() -> None:
            await self._uploads.finish(await self._uploads.start(origin), digest, data)

        await retrying(self._patience, f"{origin}@{digest}", whole)
        return digest

    async def push(self, origin: Origin, chunks: AsyncIterator[bytes]) -> tuple[Digest, int]:
        """See :meth:`RegistryClient.push_blob`."""
        pieces = _regroup(chunks, self._config.upload_chunk_bytes)
        first, second = await anext(pieces, b""), await anext(pieces, b"")
        if not second:
            return await self.push_bytes(origin, first), len(first)
        upload = await self._uploads.start(origin)
        if self._takes_chunks(upload):
            try:
                begun = await self._send_chunk(upload, first)
            except Rejected as exc:
                # Too large for it (GitHub takes 4 MiB a chunk), or chunks are not its way at all.
                log.info("registry_chunks_refused", origin=str(origin), error=str(exc))
                upload = await self._uploads.start(origin)
            else:
                return await self._in_chunks(begun, first, second, pieces)
        return await self._stream(upload, _chained(first, second, pieces))

    def _takes_chunks(self, upload: Upload) -> bool:
        known = any(fnmatchcase(upload.endpoint.authority, host) for host in self._config.unchunked_hosts)
        return not known and upload.min_chunk_bytes <= self._config.upload_chunk_bytes

    async def _in_chunks(
        self, upload: Upload, first: bytes, second: bytes, rest: AsyncIterator[bytes]
    ) -> tuple[Digest, int]:
        """Send what follows ``first``, which the registry has."""
        hasher = hashlib.sha256()
        await asyncio.to_thread(hasher.update, first)
        piece = second
        while piece:
            await asyncio.to_thread(hasher.update, piece)
            upload = await self._send_chunk(upload, piece)
            piece = await anext(rest, b"")
        digest = Digest(f"sha256:{hasher.hexdigest()}")
        await self._finish_checked(upload, digest)
        return digest, upload.offset

    async def _stream(self, upload: Upload, pieces: AsyncIterator[bytes]) -> tuple[Digest, int]:
        """Everything in one request. A failure loses the upload."""
        hasher, size = hashlib.sha256(), 0
        failure: Exception | None = None

        async def hashed() -> AsyncIterator[bytes]:
            nonlocal size, failure
            try:
                async for piece in pieces:
                    await asyncio.to_thread(hasher.update, piece)
                    size += len(piece)
                    yield piece
            except Exception as exc:
                failure = exc  # the source's own: HTTP would only say that the connection broke
                raise

        try:
            upload = await self._uploads.stream(upload, hashed())
        except Unavailable as exc:
            if failure is not None:
                raise failure from None
            raise UploadLost(f"{upload.subject}: it cannot be resumed: {exc}") from exc
        digest = Digest(f"sha256:{hasher.hexdigest()}")
        await self._finish_checked(replace(upload, offset=size), digest)
        return digest, size

    async def _send_chunk(self, upload: Upload, chunk: bytes) -> Upload:
        """PATCH; after a failure, ask how much arrived and send the rest."""
        start, state, doubtful = upload.offset, upload, False

        async def send() -> Upload:
            nonlocal state, doubtful
            if doubtful:
                state = await self._uploads.status(state)
                doubtful = False
            done = state.offset - start
            if not 0 <= done <= len(chunk):
                raise UploadLost(
                    f"{upload.subject}: the registry has {state.offset} bytes, {start} were confirmed before"
                )
            if done < len(chunk):
                doubtful = True
                state = await self._uploads.patch(state, memoryview(chunk)[done:])
                doubtful = False
            if state.offset != start + len(chunk):
                raise UploadLost(f"{upload.subject}: the registry has {state.offset} of {start + len(chunk)} bytes")
            return state

        return await retrying(self._patience, upload.subject, send)

    async def _finish_checked(self, upload: Upload, digest: Digest) -> None:
        """PUT without a body; if the answer is lost, the blob may be there all the same."""
        failures = 0
        while True:
            try:
                return await self._uploads.finish(upload, digest, b"")
            except RegistryError as exc:
                failures += 1
                if not is_transient(exc) and not isinstance(exc, NotFound):
                    raise
                if await self._reader.size(upload.origin, digest) == upload.offset:
                    return None
                if isinstance(exc, NotFound) or failures >= self._config.retry.attempts:
                    raise UploadLost(f"{upload.subject}: it could not be completed") from exc
                delay_s = self._config.retry.delay_s(failures, retry_after_s(exc), 1.0)
            await asyncio.sleep(delay_s)


async def _chained(first: bytes, second: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    yield second
    async for piece in rest:
        yield piece


async def _regroup(chunks: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in pieces of ``size``, the last one shorter."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        while len(held) >= size:
            yield bytes(memoryview(held)[:size])
            del held[:size]
    if held:
        yield bytes(held)
