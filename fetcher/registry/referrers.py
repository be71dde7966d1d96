"""Referrers: what says it is about a manifest. The API where there is one, else the fallback tag.

Distribution specification, "Listing referrers" and "Referrers tag schema".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urljoin

import structlog

from fetcher.registry.challenge import pull
from fetcher.registry.descriptor import (
    EMPTY_TYPE,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    descriptors,
    encode_json,
    parse_json_object,
)
from fetcher.registry.errors import NotFound, ProtocolViolation, Rejected
from fetcher.registry.hosts import Endpoint
from fetcher.registry.manifests import MAX_MANIFEST_BYTES, ManifestStore
from fetcher.registry.pushing import BlobWriter
from fetcher.registry.reference import Origin
from fetcher.registry.router import Router
from fetcher.registry.session import Call, Session, same_server
from layerformat.digest import Digest, sha256_digest

log = structlog.get_logger(__name__)
_NEXT = re.compile(r"<([^>]+)>\s*;[^,]*\brel=\"?next\"?")
_MAX_PAGES = 100
_FALLBACK_TRIES = 5
_EMPTY = b"{}"


class Referrers:
    """Lists and pushes referrers."""

    def __init__(self, session: Session, router: Router, manifests: ManifestStore, writer: BlobWriter) -> None:
        self._session = session
        self._router = router
        self._manifests = manifests
        self._writer = writer

    async def find(self, origin: Origin, digest: Digest, artifact_type: str | None) -> list[Descriptor]:
        """See :meth:`RegistryClient.referrers`."""
        try:
            found = await self._by_api(origin, digest, artifact_type)
        except (NotFound, Rejected, ProtocolViolation):
            found = await self._by_tag(origin, digest)
        # Servers may filter, and say so in a header; filtering here as well costs nothing and cannot be wrong.
        return [one for one in found if artifact_type is None or one.artifact_type == artifact_type]

    async def push(
        self,
        origin: Origin,
        subject: Descriptor,
        artifact_type: str,
        layers: Sequence[Descriptor],
        annotations: Mapping[str, str],
    ) -> Descriptor:
        """See :meth:`RegistryClient.push_referrer`."""
        config = await self._writer.push_bytes(origin, _EMPTY)
        manifest = encode_json(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "artifactType": artifact_type,
                "config": Descriptor(media_type=EMPTY_TYPE, digest=config, size=len(_EMPTY)).to_json(),
                "layers": [layer.to_json() for layer in layers],
                "subject": _bare(subject),
                **({"annotations": dict(annotations)} if annotations else {}),
            }
        )
        digest, noted = await self._manifests.put(origin, sha256_digest(manifest), manifest, OCI_MANIFEST)
        made = Descriptor(
            media_type=OCI_MANIFEST,
            digest=digest,
            size=len(manifest),
            annotations=dict(annotations),
            artifact_type=artifact_type,
        )
        if not noted:
            await self._add_to_tag(origin, subject.digest, made)
        return made

    async def _by_api(self, origin: Origin, digest: Digest, artifact_type: str | None) -> list[Descriptor]:
        subject = f"referrers of {origin}@{digest}"
        query = f"artifactType={quote(artifact_type, safe='')}" if artifact_type else ""

        async def fetch(endpoint: Endpoint) -> list[Descriptor]:
            url: str | None = endpoint.url(f"{origin.repository}/referrers/{digest}", query)
            found: list[Descriptor] = []
            for _ in range(_MAX_PAGES):
                page, url = await self._page(endpoint, origin, url or "", subject)
                found += page
                if url is None:
                    break
            return found

        return await self._router.run(origin, "pull", subject, fetch)

    async def _page(
        self, endpoint: Endpoint, origin: Origin, url: str, subject: str
    ) -> tuple[tuple[Descriptor, ...], str | None]:
        call = Call(
            method="GET",
            endpoint=endpoint,
            url=url,
            subject=subject,
            scopes=(pull(origin.repository),),
            headers={"Accept": OCI_INDEX},
        )
        async with self._session.open(call, frozenset({200})) as response:
            document = parse_json_object(await response.read(subject, MAX_MANIFEST_BYTES), subject)
            return descriptors(document, "manifests"), _next_page(response.headers.getall("Link", ()), url)

    async def _by_tag(self, origin: Origin, digest: Digest) -> list[Descriptor]:
        index = await self._manifests.get_or_none(origin, fallback_tag(digest))
        return list(index.manifests) if index else []

    async def _add_to_tag(self, origin: Origin, subject: Digest, made: Descriptor) -> None:
        """Add to the fallback index.

        Registries have no compare-and-swap: read back, and add again if another writer won.
        """
        tag = fallback_tag(subject)
        for _ in range(_FALLBACK_TRIES):
            index = await self._manifests.get_or_none(origin, tag)
            document: dict[str, Any] = dict(index.document) if index else {"schemaVersion": 2, "mediaType": OCI_INDEX}
            rows = index.manifests if index else ()
            if any(row.digest == made.digest for row in rows):
                return
            document["manifests"] = [row.to_json() for row in (*rows, made)]
            await self._manifests.put(origin, tag, encode_json(document), OCI_INDEX)
        index = await self._manifests.get_or_none(origin, tag)
        if index is None or all(row.digest != made.digest for row in index.manifests):
            log.warning("registry_referrers_tag_contended", origin=str(origin), tag=tag)


def fallback_tag(digest: Digest) -> str:
    """``sha256-<hex>``."""
    return digest.replace(":", "-")


def _next_page(links: Iterable[str], url: str) -> str | None:
    for link in links:
        if match := _NEXT.search(link):
            target = urljoin(url, match[1])
            return target if same_server(target, url) else None
    return None


def _bare(descriptor: Descriptor) -> dict[str, Any]:
    """A subject is named by type, digest and size only."""
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}
