"""One request to one endpoint, with everything HTTP asks of a client of registries: authentication, and redirects
followed by hand.

The Authorization header and the headers of hosts.toml go to the endpoint's own scheme, host and port, and nowhere else.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from urllib.parse import urljoin, urlsplit

from fetcher.registry.auth import Authorizer, Grant
from fetcher.registry.challenge import Scope, parse_challenges
from fetcher.registry.config import RegistryConfig, is_plain
from fetcher.registry.errors import ProtocolViolation, RegistryError, Unavailable, Untrusted
from fetcher.registry.hosts import Endpoint, Tls, tls_context
from fetcher.registry.status import error_for
from fetcher.registry.transport import Body, Response, Transport

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_HOPS = 5
_MAX_CREDENTIALS = 4
# Signed URLs of the large registries live for 10 minutes and more; one that dies earlier answers 403 and is dropped.
REDIRECT_LIFETIME_S = 240.0
_MAX_REDIRECTS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request. ``url`` is on the endpoint, or where an upload's Location pointed; ``subject`` is what errors name."""

    method: str
    endpoint: Endpoint
    url: str = field(repr=False)
    subject: str
    scopes: tuple[Scope, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Body = field(default=None, repr=False)
    answer_s: float | None = None
    follow: bool = True
    keep_redirect: bool = False


class Session:
    """Sends calls. Remembers where blobs were redirected to, for a while."""

    def __init__(self, transport: Transport, authorizer: Authorizer, config: RegistryConfig) -> None:
        self._transport = transport
        self._authorizer = authorizer
        self._config = config
        self._contexts: dict[Tls, ssl.SSLContext] = {}
        self._redirects: dict[str, tuple[str, float]] = {}  # endpoint URL -> target, expiry (monotonic)

    @asynccontextmanager
    async def open(self, call: Call, accept: frozenset[int]) -> AsyncIterator[Response]:
        """The response, if its status is in ``accept``; otherwise the error it stands for is raised."""
        response = await self.answer(call, accept)
        try:
            yield response
        finally:
            response.close()

    async def answer(self, call: Call, accept: frozenset[int]) -> Response:
        """As :meth:`open`, but the caller closes the response."""
        if response := await self._shortcut(call, accept):
            return response
        response = await self._authenticated(call)
        if response.status in REDIRECTS and call.follow and call.method in ("GET", "HEAD"):
            return await self._follow(call, response, accept)
        return await _accepted(response, accept, call.subject)

    async def _shortcut(self, call: Call, accept: frozenset[int]) -> Response | None:
        """Ask the place the blob was redirected to last time, if it still answers."""
        target, expires = self._redirects.get(call.url, ("", 0.0))
        if not call.keep_redirect or not target:
            return None
        if time.monotonic() < expires:
            try:
                return await _accepted(await self._elsewhere(call, target), accept, call.subject, registry=False)
            except RegistryError:
                pass  # expired, revoked or gone: the registry will say where to go now
        self._redirects.pop(call.url, None)
        return None

    async def _follow(self, call: Call, response: Response, accept: frozenset[int]) -> Response:
        current = call.url
        for _ in range(_MAX_HOPS):
            current = await self._location(call, current, response)
            ours = same_server(current, call.endpoint.base)
            response = await (
                self._authenticated(replace(call, url=current)) if ours else self._elsewhere(call, current)
            )
            if response.status not in REDIRECTS:
                response = await _accepted(response, accept, call.subject, registry=ours)
                if call.keep_redirect and not ours:
                    self._keep_redirect(call.url, current)
                return response
        response.close()
        raise ProtocolViolation(f"{call.subject}: more than {_MAX_HOPS} redirects")

    async def _location(self, call: Call, current: str, response: Response) -> str:
        location = response.headers.get("Location", "")
        try:
            await response.drain(call.subject)
        finally:
            response.close()
        target = urljoin(current, location)
        parts = urlsplit(target)
        if not location or parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ProtocolViolation(f"{call.subject}: redirected to no HTTP URL")
        if (
            parts.scheme == "http"
            and current.startswith("https:")
            and not is_plain(parts.netloc, self._config.plain_http)
        ):
            raise Untrusted(f"{call.subject}: redirected from HTTPS to plain HTTP on {parts.netloc}")
        return target

    def _keep_redirect(self, url: str, target: str) -> None:
        if len(self._redirects) >= _MAX_REDIRECTS:
            self._redirects.pop(next(iter(self._redirects)))
        self._redirects[url] = (target, time.monotonic() + REDIRECT_LIFETIME_S)

    async def _elsewhere(self, call: Call, url: str) -> Response:
        """Another server: nothing that identifies us goes along."""
        headers = {
            name: value for name, value in call.headers.items() if name in ("Range", "Accept", "Accept-Encoding")
        }
        tls = replace(call.endpoint.tls, client=())
        return await self._send(call, url, headers, tls)

    async def _authenticated(self, call: Call) -> Response:
        """The registry's answer once it has taken, or refused for good, what we have to show."""
        grant = await self._authorizer.grant(call.endpoint, call.scopes)
        refused: frozenset[str] = frozenset()
        for attempt in range(_MAX_CREDENTIALS):
            response = await self._send(call, call.url, _headers(call, grant), call.endpoint.tls)
            if response.status not in (401, 403) or isinstance(call.body, AsyncIterator):
                return response  # a stream cannot be sent twice
            # A grant that was only just made and is refused will not be better next time; an old one may have expired.
            if attempt and grant is not None:
                refused |= {grant.provider}
            try:
                following = await self._next_grant(call, response, grant, refused)
                if following is None:
                    return response
                await response.drain(call.subject)
            except BaseException:
                response.close()
                raise
            response.close()
            grant = following
        return response

    async def _next_grant(
        self, call: Call, response: Response, used: Grant | None, refused: frozenset[str]
    ) -> Grant | None:
        challenges = parse_challenges(response.headers.getall("WWW-Authenticate", ()))
        return await self._authorizer.challenged(call.endpoint, call.scopes, challenges, used, refused)

    async def _send(self, call: Call, url: str, headers: Mapping[str, str], tls: Tls) -> Response:
        context = await self._context(tls) if url.startswith("https:") else None
        return await self._transport.send(
            call.method, url, subject=call.subject, headers=headers, tls=context, body=call.body, answer_s=call.answer_s
        )

    async def _context(self, tls: Tls) -> ssl.SSLContext:
        if tls not in self._contexts:
            self._contexts[tls] = await asyncio.to_thread(tls_context, tls)
        return self._contexts[tls]


def same_server(url: str, other: str) -> bool:
    """Whether both URLs have the same scheme, host and port."""
    return _server(url) == _server(other)


def _server(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _headers(call: Call, grant: Grant | None) -> dict[str, str]:
    # An upload may be sent on to another server by its Location; what is the endpoint's stays there.
    if not same_server(call.url, call.endpoint.base):
        return dict(call.headers)
    headers = dict(call.endpoint.headers) | dict(call.headers)
    if grant is not None:
        headers["Authorization"] = grant.header
    return headers


async def _accepted(response: Response, accept: frozenset[int], subject: str, *, registry: bool = True) -> Response:
    """``response`` itself, or its error; storage behind a registry that refuses a signed URL is only in need of a new
    one.
    """
    if response.status in accept:
        return response
    try:
        if not registry and response.status in (400, 401, 403):
            raise Unavailable(f"{subject}: the storage it is redirected to answers HTTP {response.status}")
        raise await error_for(response, subject, quote=registry)
    finally:
        response.close()
