"""A registry in the test's own event loop that can be told to misbehave. Not a mock: it stores, serves, checks and
counts.

    async with FakeRegistry() as registry:
        origin = Origin(host=registry.host, repository="team/app")
        digest = registry.add_blob("team/app", data)
        registry.fault(Fault(path=r"/blobs/", status=429, headers={"Retry-After": "1"}))      # the next blob GET only
        registry.fault(Fault(path=r"/blobs/", truncate_at=1000, times=3, skip=2))             # the third to the fifth
        ...
        assert registry.bytes_sent("/blobs/") == 4096
        assert [seen.range for seen in registry.seen("GET", "/blobs/")] == ["bytes=0-4095"]

What can be set on a registry, at any time:

``auth``           None, or a :class:`FakeAuth` (``scheme`` bearer or basic). ``auth.expire()`` makes all tokens stale.
``redirect``       blob GETs and HEADs are answered 307 to ``registry.storage``, another server on another port, with a
                   URL signed for GET; ``registry.storage.revoke()`` makes all URLs signed so far answer 403.
                   ``storage`` takes faults and counts as well.
``referrers_api``  False: as a registry older than the referrers API (404, no OCI-Subject).
``referrers_page`` at most so many referrers in a page.
``chunked``        False: PATCH with Content-Range is refused, as Google's registries do.
``max_chunk_bytes``  larger chunks are refused, as GitHub does. ``stale_range``: a PATCH's Range stays at the first
                   chunk, as Amazon's does.
``mounts``         False: cross-repository mounts are answered with an ordinary upload session.
``ssl_context``    serve HTTPS.

A :class:`Fault` applies to the requests its ``method`` and ``path`` (a regular expression, searched) match: not to
the first ``skip``, then to ``times`` (None: for ever). Blobs, manifests and uploads are plain attributes to look into
and to spoil.
"""

import base64
import hashlib
import json
import re
import secrets
import ssl
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from tests.harness.fake_server import ConnectionCut, FakeServer, Fault, Seen

Digest = str
_INDEX = "application/vnd.oci.image.index.v1+json"


class FakeStorage(FakeServer):
    """The object store a registry redirects to: takes signed URLs, and must never see an Authorization header."""

    def __init__(self, blobs: Mapping[Digest, bytes], **options: Any) -> None:
        super().__init__(**options)
        self._blobs = blobs
        self._signatures: set[str] = set()

    def sign(self, digest: Digest) -> str:
        """A URL that works until :meth:`revoke`."""
        signature = secrets.token_urlsafe(16)
        self._signatures.add(signature)
        return f"{self.url}/data/{digest.replace(':', '/')}?X-Signature={signature}"

    def revoke(self) -> None:
        """All URLs signed so far are expired."""
        self._signatures.clear()

    async def answer(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        # Signed for GET alone, as the large stores do.
        if request.method != "GET" or request.query.get("X-Signature") not in self._signatures:
            return web.Response(status=403, text=f"<Error>expired {request.path_qs}</Error>")
        data = self._blobs.get(request.path.removeprefix("/data/").replace("/", ":"))
        if data is None:
            return web.Response(status=404)
        return await self.send(request, data, fault, {})


@dataclass(kw_only=True)
class FakeAuth:
    """Who may do what. ``users``: password by name; ``refresh``: identity tokens that are taken."""

    scheme: str = "bearer"
    users: Mapping[str, str] = field(default_factory=dict)
    refresh: frozenset[str] = frozenset()
    anonymous_pull: bool = False
    lifetime_s: int = 300
    realm: str = ""  # another server's token endpoint; empty: our own
    stale_status: int = 401  # what an expired token is answered: some registries say 403
    tokens: dict[str, tuple[float, frozenset[str]]] = field(default_factory=dict)  # -> expiry, "repository:action"
    token_requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)

    def expire(self) -> None:
        """Every token given so far is stale."""
        self.tokens.clear()

    def knows_basic(self, header: str) -> bool:
        try:
            user, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
        except ValueError:
            return False
        return header.startswith("Basic ") and user in self.users and self.users[user] == password

    def allows(self, header: str, repository: str, action: str) -> bool:
        if self.scheme == "basic":
            return self.knows_basic(header) or (self.anonymous_pull and action == "pull")
        expiry, granted = self.tokens.get(header.removeprefix("Bearer "), (0.0, frozenset()))
        return time.monotonic() < expiry and f"{repository}:{action}" in granted

    async def token(self, request: web.Request) -> web.Response:
        """The token endpoint: GET with Basic or nothing, POST with a refresh token."""
        form = {key: str(value) for key, value in (await request.post()).items()}
        self.token_requests.append((request.method, dict(request.query) | form))
        scopes = request.query.getall("scope", []) + form.get("scope", "").split()
        header = request.headers.get("Authorization", "")
        known = form.get("refresh_token") in self.refresh if request.method == "POST" else self.knows_basic(header)
        if not known and (header or form or not self.anonymous_pull):
            return web.json_response({"errors": [{"code": "UNAUTHORIZED", "message": "who are you"}]}, status=401)
        granted = {f"{one.split(':')[1]}:{action}" for one in scopes for action in one.split(":")[2].split(",")}
        allowed = frozenset(one for one in granted if known or one.endswith(":pull"))
        value = secrets.token_urlsafe(24)
        self.tokens[value] = (time.monotonic() + self.lifetime_s, allowed)
        return web.json_response({"token": value, "expires_in": self.lifetime_s})


class FakeRegistry(FakeServer):
    """The registry. See the module's docstring."""

    def __init__(
        self,
        *,
        auth: FakeAuth | None = None,
        redirect: bool = False,
        referrers_api: bool = True,
        address: str = "127.0.0.1",
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(address=address, ssl_context=ssl_context)
        self.auth = auth
        self.redirect = redirect
        self.referrers_api = referrers_api
        self.referrers_page: int | None = None
        self.chunked = True
        self.max_chunk_bytes: int | None = None
        self.stale_range = False
        self.mounts = True
        self.min_chunk_bytes = 0
        self.blobs: dict[Digest, bytes] = {}
        self.links: set[tuple[str, Digest]] = set()  # repository, digest: which repository shows which blob
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}  # repository, tag or digest -> type, body
        self.uploads: dict[str, bytearray] = {}
        self.storage = FakeStorage(self.blobs, address=address)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self._stack.enter_async_context(self.storage)
        return self

    def add_blob(self, repository: str, data: bytes) -> Digest:
        """Put a blob there without HTTP."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        self.links.add((repository, digest))
        return digest

    def add_manifest(self, repository: str, document: Mapping[str, Any] | bytes, *tags: str) -> Digest:
        """Put a manifest there without HTTP, with tags."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        media_type = str(json.loads(body).get("mediaType", "application/vnd.oci.image.manifest.v1+json"))
        for reference in (digest, *tags):
            self.manifests[repository, reference] = (media_type, body)
        return digest

    async def answer(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if request.path == "/token" and self.auth is not None:
            return await self.auth.token(request)
        match = re.fullmatch(r"/v2/(?:(.+)/(manifests|blobs/uploads|blobs|referrers)/(.*))?", request.path)
        if match is None:
            return _error(404, "NAME_UNKNOWN")
        repository, kind, rest = match[1] or "", match[2] or "", match[3] or ""
        if (refusal := self._refusal(request, repository)) is not None:
            return refusal
        match kind:
            case "manifests":
                return await self._manifest(request, repository, rest, fault)
            case "blobs":
                return await self._blob(request, repository, rest, fault)
            case "blobs/uploads":
                return await self._upload(request, repository, rest, fault)
            case "referrers":
                return self._referrers(request, repository, rest)
        return web.json_response({})

    def _refusal(self, request: web.Request, repository: str) -> web.Response | None:
        if self.auth is None:
            return None
        action = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}.get(request.method, "push")
        if "/blobs/uploads/" in request.path:
            action = "push"
        header = request.headers.get("Authorization", "")
        if self.auth.allows(header, repository, action):
            return None
        if self.auth.scheme == "basic":
            challenge = 'Basic realm="fake, with a comma"'
        else:
            realm = self.auth.realm or f"{self.url}/token"
            challenge = f'Bearer realm="{realm}",service="fake",scope="repository:{repository}:{action}"'
        status = self.auth.stale_status if header else 401
        return _error(status, "UNAUTHORIZED", {"WWW-Authenticate": challenge} if status == 401 else {})

    async def _blob(self, request: web.Request, repository: str, digest: str, fault: Fault) -> web.StreamResponse:
        data = self.blobs.get(digest)
        if data is None or (repository, digest) not in self.links:
            return _error(404, "BLOB_UNKNOWN")
        if self.redirect:
            return web.Response(status=307, headers={"Location": self.storage.sign(digest)})
        return await self.send(request, data, fault, {"Docker-Content-Digest": digest})

    async def _manifest(
        self, request: web.Request, repository: str, reference: str, fault: Fault
    ) -> web.StreamResponse:
        if request.method == "PUT":
            return await self._put_manifest(request, repository, reference)
        found = self.manifests.get((repository, reference))
        if found is None:
            return _error(404, "MANIFEST_UNKNOWN")
        media_type, body = found
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if request.method == "DELETE":
            for key in [key for key, value in self.manifests.items() if key[0] == repository and value[1] == body]:
                del self.manifests[key]
            return web.Response(status=202)
        return await self.send(request, body, fault, {"Docker-Content-Digest": digest, "Content-Type": media_type})

    async def _put_manifest(self, request: web.Request, repository: str, reference: str) -> web.Response:
        body = await request.read()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if reference.startswith("sha256:") and reference != digest:
            return _error(400, "DIGEST_INVALID")
        document = json.loads(body)
        for blob in [*document.get("layers", []), *([document["config"]] if "config" in document else [])]:
            if (repository, blob["digest"]) not in self.links:
                return _error(404, "MANIFEST_BLOB_UNKNOWN")
        media_type = request.headers["Content-Type"]
        for name in (reference, digest):
            self.manifests[repository, name] = (media_type, body)
        headers = {"Docker-Content-Digest": digest}
        if self.referrers_api and "subject" in document:
            headers["OCI-Subject"] = document["subject"]["digest"]
        return web.Response(status=201, headers=headers)

    def _referrers(self, request: web.Request, repository: str, digest: str) -> web.Response:
        if not self.referrers_api:
            return _error(404, "NOT_FOUND")
        rows = []
        for (holder, reference), (media_type, body) in self.manifests.items():
            document = json.loads(body)
            if holder == repository and ":" in reference and document.get("subject", {}).get("digest") == digest:
                row = {"mediaType": media_type, "digest": reference, "size": len(body)}
                row |= {key: document[key] for key in ("artifactType", "annotations") if key in document}
                rows.append(row)
        start, headers = int(request.query.get("start", 0)), {}
        end = start + (self.referrers_page or len(rows))
        if end < len(rows):
            headers["Link"] = f'<{request.path}?start={end}>; rel="next"'
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": rows[start:end]}
        return web.json_response(index, headers=headers, content_type=_INDEX)

    async def _upload(self, request: web.Request, repository: str, name: str, fault: Fault) -> web.StreamResponse:
        if request.method == "POST":
            return self._start_upload(request, repository)
        held = self.uploads.get(name)
        if held is None:
            return _error(404, "BLOB_UPLOAD_UNKNOWN")
        match request.method:
            case "PATCH":
                return await self._patch(request, repository, name, held, fault)
            case "PUT":
                return await self._finish(request, repository, name, held)
            case "DELETE":
                del self.uploads[name]
                return web.Response(status=204)
        return web.Response(status=204, headers=self._progress(repository, name, held))

    def _start_upload(self, request: web.Request, repository: str) -> web.Response:
        digest = request.query.get("mount", "")
        if self.mounts and (request.query.get("from", ""), digest) in self.links:
            self.links.add((repository, digest))
            return web.Response(status=201, headers={"Location": f"/v2/{repository}/blobs/{digest}"})
        name = secrets.token_hex(8)
        self.uploads[name] = bytearray()
        headers = self._progress(repository, name, self.uploads[name])
        if self.min_chunk_bytes:
            headers["OCI-Chunk-Min-Length"] = str(self.min_chunk_bytes)
        return web.Response(status=202, headers=headers)

    async def _patch(
        self, request: web.Request, repository: str, name: str, held: bytearray, fault: Fault
    ) -> web.StreamResponse:
        wanted = request.headers.get("Content-Range")
        if wanted is not None and not self._takes(wanted, request, held):
            return web.Response(status=416, headers=self._progress(repository, name, held))
        left = fault.accept_bytes
        async for piece in request.content.iter_any():
            held += piece[:left]
            if left is not None and (left := left - len(piece)) <= 0:
                raise ConnectionCut
        headers = self._progress(repository, name, held)
        if self.stale_range:
            headers["Range"] = "0-9"
        return web.Response(status=202, headers=headers)

    def _takes(self, wanted: str, request: web.Request, held: bytearray) -> bool:
        largest = self.max_chunk_bytes or sys.maxsize
        return self.chunked and int(wanted.partition("-")[0]) == len(held) and (request.content_length or 0) <= largest

    async def _finish(self, request: web.Request, repository: str, name: str, held: bytearray) -> web.Response:
        held += await request.read()
        digest = f"sha256:{hashlib.sha256(held).hexdigest()}"
        if request.query.get("digest") != digest:
            return _error(400, "DIGEST_INVALID")
        del self.uploads[name]
        self.add_blob(repository, bytes(held))
        headers = {"Docker-Content-Digest": digest, "Location": f"/v2/{repository}/blobs/{digest}"}
        return web.Response(status=201, headers=headers)

    def _progress(self, repository: str, name: str, held: bytearray) -> dict[str, str]:
        # The state in the query must come back as spelled: a client that decodes it breaks it.
        state = f"_state=a%2Bb%3D%3D{len(held)}"
        return {
            "Location": f"/v2/{repository}/blobs/uploads/{name}?{state}",
            "Range": f"0-{max(0, len(held) - 1)}",
            "Docker-Upload-UUID": name,
        }


def _error(status: int, code: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": code.lower()}]}, status=status, headers=headers)


__all__ = ["FakeAuth", "FakeRegistry", "FakeStorage", "Fault", "Seen"]
