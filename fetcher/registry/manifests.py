"""Manifests: resolve, get, put, delete."""

from fetcher.registry.challenge import Scope, delete, pull, push
from fetcher.registry.descriptor import MANIFEST_TYPES, Descriptor, Manifest, parse_json_object
from fetcher.registry.errors import DigestMismatch, NotFound, ProtocolViolation, Rejected
from fetcher.registry.hosts import Endpoint
from fetcher.registry.reference import Origin, Reference
from fetcher.registry.router import Router
from fetcher.registry.session import Call, Session
from layerformat.digest import Digest, parse_digest, sha256_digest

# The specification lets registries refuse above 4 MiB; nothing sensible is larger than this.
MAX_MANIFEST_BYTES = 16 << 20
_ACCEPT = ", ".join((*MANIFEST_TYPES, "*/*;q=0.1"))


class ManifestStore:
    """The manifests of any origin."""

    def __init__(self, session: Session, router: Router) -> None:
        self._session = session
        self._router = router

    async def resolve(self, ref: Reference) -> Descriptor:
        """See :meth:`RegistryClient.resolve`."""
        try:
            found = await self._head(ref)
        except (Rejected, ProtocolViolation):
            found = None  # no HEAD, or one that does not say what it must
        if found is None:
            return (await self.get(ref.origin, ref.target)).descriptor
        return found

    async def _head(self, ref: Reference) -> Descriptor | None:
        capability = "pull" if ref.digest else "resolve"

        async def head(endpoint: Endpoint) -> Descriptor | None:
            call = _call("HEAD", endpoint, ref.origin, ref.target, pull(ref.repository), {"Accept": _ACCEPT})
            async with self._session.open(call, frozenset({200})) as response:
                digest = response.headers.get("Docker-Content-Digest")
                media_type = _media_type(response.headers.get("Content-Type"))
                if digest is None or response.length is None or not media_type:
                    return None
                if ref.digest and digest != ref.digest:
                    raise DigestMismatch(f"{ref}: the registry answers with {digest}")
                return Descriptor(media_type=media_type, digest=_digest(digest, str(ref)), size=response.length)

        return await self._router.run(ref.origin, capability, str(ref), head)

    async def get(self, origin: Origin, reference: str) -> Manifest:
        """See :meth:`RegistryClient.manifest`."""
        subject = _subject(origin, reference)

        async def fetch(endpoint: Endpoint) -> Manifest:
            call = _call("GET", endpoint, origin, reference, pull(origin.repository), {"Accept": _ACCEPT})
            async with self._session.open(call, frozenset({200})) as response:
                body = await response.read(subject, MAX_MANIFEST_BYTES)
                header = response.headers.get("Docker-Content-Digest")
                return _verified(body, reference, header, _media_type(response.headers.get("Content-Type")), subject)

        return await self._router.run(origin, "pull" if ":" in reference else "resolve", subject, fetch)

    async def put(self, origin: Origin, reference: str, body: bytes, media_type: str) -> tuple[Digest, bool]:
        """The digest, and whether the registry took note of the manifest's ``subject`` (so that no fallback tag is
        needed).
        """
        subject, digest = _subject(origin, reference), sha256_digest(body)
        if ":" in reference and reference != digest:
            raise ValueError(f"{subject}: the manifest's digest is {digest}")

        async def send(endpoint: Endpoint) -> tuple[Digest, bool]:
            headers = {"Content-Type": media_type}
            call = _call("PUT", endpoint, origin, reference, push(origin.repository), headers, body)
            async with self._session.open(call, frozenset({200, 201, 202})) as response:
                await response.drain(subject)
                stored = response.headers.get("Docker-Content-Digest", digest)
                if stored != digest:
                    raise DigestMismatch(f"{subject}: pushed {digest}, the registry stored {stored}")
                return digest, "OCI-Subject" in response.headers

        return await self._router.run(origin, "push", subject, send)

    async def delete(self, origin: Origin, digest: Digest) -> None:
        """See :meth:`RegistryClient.delete_manifest`."""

        async def send(endpoint: Endpoint) -> None:
            call = _call("DELETE", endpoint, origin, digest, delete(origin.repository), {})
            async with self._session.open(call, frozenset({200, 202, 204})) as response:
                await response.drain(call.subject)

        await self._router.run(origin, "push", _subject(origin, digest), send)

    async def get_or_none(self, origin: Origin, reference: str) -> Manifest | None:
        """:meth:`get`, None where there is no such manifest."""
        try:
            return await self.get(origin, reference)
        except NotFound:
            return None


def _call(
    method: str,
    endpoint: Endpoint,
    origin: Origin,
    reference: str,
    scope: Scope,
    headers: dict[str, str],
    body: bytes | None = None,
) -> Call:
    return Call(
        method=method,
        endpoint=endpoint,
        url=endpoint.url(f"{origin.repository}/manifests/{reference}"),
        subject=_subject(Origin(host=endpoint.authority, repository=origin.repository), reference),
        scopes=(scope,),
        headers=headers,
        body=body,
    )


def _subject(origin: Origin, reference: str) -> str:
    return f"{origin}{'@' if ':' in reference else ':'}{reference}"


def _media_type(value: str | None) -> str:
    return (value or "").partition(";")[0].strip()


def _digest(text: str, subject: str) -> Digest:
    try:
        return parse_digest(text)
    except ValueError as exc:
        raise ProtocolViolation(f"{subject}: Docker-Content-Digest is no SHA-256 digest") from exc


def _verified(body: bytes, reference: str, header: str | None, media_type: str, subject: str) -> Manifest:
    digest = sha256_digest(body)
    expected = reference if ":" in reference else header
    if expected is not None and expected.startswith("sha256:") and expected != digest:
        raise DigestMismatch(f"{subject}: the manifest received has digest {digest}, not {expected}")
    document = parse_json_object(body, subject)
    # The manifest's own word counts: it is covered by the digest, the header is not.
    own = document.get("mediaType")
    descriptor = Descriptor(
        media_type=own if isinstance(own, str) and own else media_type, digest=digest, size=len(body)
    )
    return Manifest(descriptor=descriptor, body=body, document=document)
