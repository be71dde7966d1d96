"""The requests an upload is made of. What to send when, and what to do about failures, is :mod:`.pushing`'s.

Distribution specification, "Pushing blobs".
"""

import re
from dataclasses import dataclass, field, replace
from urllib.parse import quote, urljoin

import structlog

from fetcher.registry.challenge import Scope, push
from fetcher.registry.config import RegistryConfig
from fetcher.registry.errors import DigestMismatch, NotFound, ProtocolViolation, RegistryError, UploadLost
from fetcher.registry.hosts import Endpoint
from fetcher.registry.ranges import parse_count
from fetcher.registry.reference import Origin
from fetcher.registry.router import Router
from fetcher.registry.session import Call, Session
from fetcher.registry.transport import Body, Response
from layerformat.digest import Digest

log = structlog.get_logger(__name__)
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
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


class Uploads:
    """Begins, feeds, asks after, completes and cancels uploads."""

    def __init__(self, session: Session, router: Router, config: RegistryConfig) -> None:
        self._session = session
        self._router = router
        self._config = config

    async def start(self, origin: Origin) -> Upload:
        """A new upload."""
        upload = await self.begin(origin, "", (push(origin.repository),))
        if upload is None:
            raise ProtocolViolation(f"{origin}: the registry claims to have a blob that was not named")
        return upload

    async def begin(self, origin: Origin, query: str, scopes: tuple[Scope, ...]) -> Upload | None:
        """POST: an upload, or None if the registry mounted the blob."""

        async def post(endpoint: Endpoint) -> Upload | None:
            url = endpoint.url(f"{origin.repository}/blobs/uploads/", query)
            subject = f"upload to {endpoint.authority}/{origin.repository}"
            call = Call(method="POST", endpoint=endpoint, url=url, subject=subject, scopes=scopes, body=b"")
            async with self._session.open(call, frozenset({201, 202})) as response:
                await response.drain(subject)
                if response.status == 201:
                    return None
                return Upload(
                    origin=origin,
                    endpoint=endpoint,
                    location=_location(response, url, subject),
                    min_chunk_bytes=parse_count(response.headers.get("OCI-Chunk-Min-Length")) or 0,
                )

        return await self._router.run(origin, "push", f"upload to {origin}", post)

    async def patch(self, upload: Upload, body: memoryview) -> Upload:
        """PATCH one chunk."""
        end = upload.offset + len(body)
        headers = {
            "Content-Type": _OCTETS,
            "Content-Range": f"{upload.offset}-{end - 1}",
        }
        call = replace(self._call("PATCH", upload, upload.location), headers=headers, body=body)
        async with self._session.open(call, frozenset({202, 204, 201})) as response:
            await response.drain(upload.subject)
            # Success means all of it. Range is not asked: some leave it out, and Amazon's stays at the first chunk.
            return replace(upload, location=_location(response, upload.location, upload.subject), offset=end)

    async def stream(self, upload: Upload, body: Body) -> Upload:
        """PATCH everything at once, of a length that is not known yet, as Docker does."""
        call = self._call("PATCH", upload, upload.location)
        call = replace(call, headers={"Content-Type": _OCTETS}, body=body, answer_s=self._config.timeouts.finish_s)
        async with self._session.open(call, frozenset({202, 204, 201})) as response:
            await response.drain(upload.subject)
            return replace(upload, location=_location(response, upload.location, upload.subject))

    async def status(self, upload: Upload) -> Upload:
        """How much the registry has; :class:`UploadLost` if it does not know the upload."""
        try:
            async with self._session.open(
                self._call("GET", upload, upload.location), frozenset({204, 202, 200})
            ) as response:
                await response.drain(upload.subject)
                location = _location(response, upload.location, upload.subject, default=upload.location)
                return replace(upload, location=location, offset=_received(response))
        except NotFound as exc:
            raise UploadLost(f"{upload.subject}: the registry no longer knows it") from exc

    async def finish(self, upload: Upload, digest: Digest, body: bytes) -> None:
        """PUT: what is still missing, and the digest of all of it."""
        joint = "&" if "?" in upload.location else "?"
        url = f"{upload.location}{joint}digest={quote(digest, safe='')}"
        call = self._call("PUT", upload, url)
        call = replace(call, headers={"Content-Type": _OCTETS}, body=body, answer_s=self._config.timeouts.finish_s)
        async with self._session.open(call, frozenset({201, 204})) as response:
            await response.drain(upload.subject)
            stored = response.headers.get("Docker-Content-Digest", digest)
            if stored != digest:
                raise DigestMismatch(f"{upload.subject}: pushed {digest}, the registry stored {stored}")

    async def cancel(self, upload: Upload) -> None:
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


def _received(response: Response) -> int:
    """Bytes the registry has, of its ``Range: 0-<last>``.

    Registries write 0-0 for none as well as for one byte; it is none, as chunks are larger.
    """
    match = _RANGE.fullmatch(response.headers.get("Range", "").strip())
    last = int(match[1]) if match else 0
    return last + 1 if last else 0
