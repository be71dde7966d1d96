"""Pushing blobs: mount, one PUT for small ones, resumable chunks for the rest.

Distribution specification, "Pushing blobs". A chunk is kept until the registry has said how much of it arrived, so
memory is bounded by one chunk per upload.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from urllib.parse import quote, urljoin

import structlog

from fetcher.registry.blobs import BlobReader
from fetcher.registry.challenge import Scope, pull, push
from fetcher.registry.config import RegistryConfig
from fetcher.registry.errors import (
    Denied,
    DigestMismatch,
    NotFound,
    ProtocolViolation,
    RegistryError,
    Rejected,
    Unauthorized,
    Unavailable,
    UploadLost,
    is_transient,
    retry_after_s,
)
from fetcher.registry.hosts import Endpoint
from fetcher.registry.reference import Origin
from fetcher.registry.retry import retrying
from fetcher.registry.router import Router
from fetcher.registry.session import Call, Session
from fetcher.registry.transport import Response
from layerformat.digest import Digest, sha256_digest

log = structlog.get_logger(__name__)
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})")
_OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload in progress: where to send what follows, and how many bytes the registry has."""

    origin: Origin
    endpoint: Endpoint
    location: str = field(repr=False)  # may hold a signed state
    offset: int = 0
    min_chunk_bytes: int = 0

    @property
    def subject(self) -> str:
        return f"upload to {self.endpoint.authority}/{self.origin.repository}"


class BlobWriter:
    """Pushes to any origin."""

    def __init__(self, session: Session, router: Router, reader: BlobReader, config: RegistryConfig) -> None:
        self._session = session
        self._router = router
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
            upload = await self._begin(origin, query, scopes)
        except (Denied, Unauthorized, NotFound, Rejected) as exc:
            log.info("registry_mount_refused", origin=str(origin), source=str(source), error=str(exc))
            return False
        if upload is None:
            return True
        await self._cancel(upload)
        return False

    async def push_bytes(self, origin: Origin, data: bytes) -> Digest:
        """See :meth:`RegistryClient.push_blob_bytes`."""
        digest = await self._digest(data)
        if await self._reader.size(origin, digest) == len(data):
            return digest

        async def whole() -> None:
            await self._finish(await self._started(origin), digest, data)

        await retrying(self._patience, f"{origin}@{digest}", whole)
        return digest

    async def push(self, origin: Origin, chunks: AsyncIterator[bytes]) -> tuple[Digest, int]:
        """See :meth:`RegistryClient.push_blob`."""
        pieces = _regroup(chunks, self._config.upload_chunk_bytes)
        first, second = await anext(pieces, b""), await anext(pieces, b"")
        if not second:
            return await self.push_bytes(origin, first), len(first)
        upload = await self._started(origin)
        if any(fnmatchcase(upload.endpoint.authority, host) for host in self._config.unchunked_hosts):
            return await self._stream(upload, first, second, pieces)
        if upload.min_chunk_bytes > self._config.upload_chunk_bytes:
            raise Rejected(f"{upload.subject}: it wants chunks of {upload.min_chunk_bytes} bytes", status=416)
        hasher = hashlib.sha256()
        piece = first
        while piece:
            await asyncio.to_thread(hasher.update, piece)
            upload = await self._send_chunk(upload, piece)
            piece, second = second, await anext(pieces, b"")
        digest = Digest(f"sha256:{hasher.hexdigest()}")
        await self._finish_checked(upload, digest)
        return digest, upload.offset

    async def _stream(
        self, upload: Upload, first: bytes, second: bytes, rest: AsyncIterator[bytes]
    ) -> tuple[Digest, int]:
        """Everything in one PATCH, as Docker sends it. A failure loses the upload."""
        hasher, size = hashlib.sha256(), 0

        async def hashed() -> AsyncIterator[bytes]:
            nonlocal size
            async for piece in _chained(first, second, rest):
                await asyncio.to_thread(hasher.update, piece)
                size += len(piece)
                yield piece

        call = self._call("PATCH", upload, upload.location)
        call = replace(call, headers={"Content-Type": _OCTETS}, body=hashed(), answer_s=self._config.timeouts.finish_s)
        try:
            async with self._session.open(call, frozenset({202, 204, 201})) as response:
                await response.drain(upload.subject)
                location = _location(response, upload.location, upload.subject)
        except Unavailable as exc:
            raise UploadLost(f"{upload.subject}: it cannot be resumed: {exc}") from exc
        digest = Digest(f"sha256:{hasher.hexdigest()}")
        await self._finish_checked(replace(upload, location=location, offset=size), digest)
        return digest, size

    async def _digest(self, data: bytes) -> Digest:
        return await asyncio.to_thread(sha256_digest, data)

    async def _started(self, origin: Origin) -> Upload:
        upload = await self._begin(origin, "", (push(origin.repository),))
        if upload is None:
            raise ProtocolViolation(f"{origin}: the registry claims to have a blob that was not named")
        return upload

    async def _begin(self, origin: Origin, query: str, scopes: tuple[Scope, ...]) -> Upload | None:
        """POST: an upload, or None if the registry mounted the blob."""

        async def post(endpoint: Endpoint) -> Upload | None:
            url = endpoint.url(f"{origin.repository}/blobs/uploads/", query)
            subject = f"upload to {endpoint.authority}/{origin.repository}"
            call = Call(method="POST", endpoint=endpoint, url=url, subject=subject, scopes=scopes, body=b"")
            async with self._session.open(call, frozenset({201, 202})) as response:
                await response.drain(subject)
                if response.status == 201:
                    return None
                least = response.headers.get("OCI-Chunk-Min-Length", "")
                return Upload(
                    origin=origin,
                    endpoint=endpoint,
                    location=_location(response, url, subject),
                    min_chunk_bytes=int(least) if least.isdigit() else 0,
                )

        return await self._router.run(origin, "push", f"upload to {origin}", post)

    async def _send_chunk(self, upload: Upload, chunk: bytes) -> Upload:
        """PATCH; after a failure, ask how much arrived and send the rest."""
        start, state, doubtful = upload.offset, upload, False

        async def send() -> Upload:
            nonlocal state, doubtful
            if doubtful:
                state = await self._status(state)
                doubtful = False
            done = state.offset - start
            if not 0 <= done <= len(chunk):
                raise UploadLost(
                    f"{upload.subject}: the registry has {state.offset} bytes, {start} were confirmed before"
                )
            if done < len(chunk):
                doubtful = True
                state = await self._patch(state, memoryview(chunk)[done:])
                doubtful = False
            if state.offset != start + len(chunk):
                raise UploadLost(f"{upload.subject}: the registry has {state.offset} of {start + len(chunk)} bytes")
            return state

        return await retrying(self._patience, upload.subject, send)

    async def _patch(self, upload: Upload, body: memoryview) -> Upload:
        end = upload.offset + len(body)
        headers = {
            "Content-Type": _OCTETS,
            "Content-Range": f"{upload.offset}-{end - 1}",
        }
        call = replace(self._call("PATCH", upload, upload.location), headers=headers, body=body)
        async with self._session.open(call, frozenset({202, 204, 201})) as response:
            await response.drain(upload.subject)
            # Registries that leave out Range took everything, or they would have failed.
            has = _received(response, default=end)
            return replace(upload, location=_location(response, upload.location, upload.subject), offset=has)

    async def _status(self, upload: Upload) -> Upload:
        try:
            async with self._session.open(
                self._call("GET", upload, upload.location), frozenset({204, 202, 200})
            ) as response:
                await response.drain(upload.subject)
                location = _location(response, upload.location, upload.subject, default=upload.location)
                return replace(upload, location=location, offset=_received(response, default=0))
        except NotFound as exc:
            raise UploadLost(f"{upload.subject}: the registry no longer knows it") from exc

    async def _finish_checked(self, upload: Upload, digest: Digest) -> None:
        """PUT without a body; if the answer is lost, the blob may be there all the same."""
        failures = 0
        while True:
            try:
                return await self._finish(upload, digest, b"")
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

    async def _finish(self, upload: Upload, digest: Digest, body: bytes) -> None:
        joint = "&" if "?" in upload.location else "?"
        url = f"{upload.location}{joint}digest={quote(digest, safe='')}"
        call = self._call("PUT", upload, url)
        call = replace(call, headers={"Content-Type": _OCTETS}, body=body, answer_s=self._config.timeouts.finish_s)
        async with self._session.open(call, frozenset({201, 204})) as response:
            await response.drain(upload.subject)
            stored = response.headers.get("Docker-Content-Digest", digest)
            if stored != digest:
                raise DigestMismatch(f"{upload.subject}: pushed {digest}, the registry stored {stored}")

    async def _cancel(self, upload: Upload) -> None:
        """Registries clean up by themselves some day; being told is a courtesy that may fail."""
        try:
            async with self._session.open(self._call("DELETE", upload, upload.location), frozenset({200, 202, 204})):
                pass
        except RegistryError as exc:
            log.debug("registry_upload_cancel_failed", origin=str(upload.origin), error=str(exc))

    def _call(self, method: str, upload: Upload, url: str) -> Call:
        scopes = (push(upload.origin.repository),)
        return Call(method=method, endpoint=upload.endpoint, url=url, subject=upload.subject, scopes=scopes)


def _location(response: Response, base: str, subject: str, default: str | None = None) -> str:
    """Absolute, or relative to what was asked; the query is the registry's and is left as spelled."""
    location = response.headers.get("Location", default)
    if not location:
        raise ProtocolViolation(f"{subject}: the answer names no Location")
    target = urljoin(base, location)
    if not target.startswith(("https://", "http://")) or (base.startswith("https:") and target.startswith("http:")):
        raise ProtocolViolation(f"{subject}: the Location is no URL to upload to")
    return target


def _received(response: Response, default: int) -> int:
    """Bytes the registry has, of its ``Range: 0-<last>``. Registries write 0-0 for both none and one byte; none is
    right in practice.
    """
    match = _RANGE.fullmatch(response.headers.get("Range", "").strip())
    if match is None:
        return default
    last = int(match[1])
    return last + 1 if last else 0


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
