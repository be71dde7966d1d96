"""Bearer tokens from a registry's token service.

https://distribution.github.io/distribution/spec/auth/token/ (GET) and .../auth/oauth/ (POST with a refresh token).
"""

import asyncio
import time
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from fetcher.registry.config import RegistryConfig, is_plain
from fetcher.registry.credentials import Credentials
from fetcher.registry.descriptor import parse_json_object
from fetcher.registry.errors import ProtocolViolation, Untrusted
from fetcher.registry.hosts import Tls, tls_context
from fetcher.registry.status import error_for
from fetcher.registry.transport import Transport

# The specification's default where the answer names no lifetime.
DEFAULT_LIFETIME_S = 60.0
_MAX_ANSWER_BYTES = 1 << 20
_MAX_LIFETIME_S = 86_400
_CLIENT_ID = "fastpull"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A bearer token; ``expires`` is on the monotonic clock, with a margin already taken off."""

    value: str = field(repr=False)
    expires: float

    @property
    def fresh(self) -> bool:
        return time.monotonic() < self.expires


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """Whom to ask, and for what."""

    realm: str
    service: str
    scopes: tuple[str, ...]
    registry: str  # authority of the registry that sent us, for messages and TLS settings
    tls: Tls


class TokenService:
    """Asks token servers. Holds no tokens."""

    def __init__(self, transport: Transport, config: RegistryConfig) -> None:
        self._transport = transport
        self._config = config

    async def fetch(self, request: TokenRequest, credentials: Credentials | None) -> Token:
        """A new token; :class:`Unauthorized` or :class:`Denied` if these credentials do not get one."""
        realm = urlsplit(request.realm)
        subject = f"token for {request.registry} from {realm.netloc}"
        self._check_realm(request, realm.scheme, realm.netloc, subject)
        method, url, headers, body = _http_form(request, credentials)
        # A private CA given for the registry is likely the token server's too; its client certificate and skip_verify
        # are for it alone.
        tls = request.tls if realm.netloc == request.registry else Tls(ca=request.tls.ca)
        context = await asyncio.to_thread(tls_context, tls) if realm.scheme == "https" else None
        response = await self._transport.send(method, url, subject=subject, headers=headers, tls=context, body=body)
        try:
            if response.status != 200:
                raise await error_for(response, subject)
            return parse_token(await response.read(subject, _MAX_ANSWER_BYTES), subject)
        finally:
            response.close()

    def _check_realm(self, request: TokenRequest, scheme: str, authority: str, subject: str) -> None:
        if scheme == "https":
            return
        if scheme != "http" or not authority:
            raise ProtocolViolation(f"{subject}: the realm is no URL")
        if not is_plain(authority, self._config.plain_http):
            raise Untrusted(f"{subject}: the token server is plain HTTP, and was not said to be trusted so")


def _http_form(request: TokenRequest, credentials: Credentials | None) -> tuple[str, str, dict[str, str], bytes | None]:
    fields = [("service", request.service)] if request.service else []
    if credentials is not None and credentials.identity_token:
        fields += [
            ("grant_type", "refresh_token"),
            ("client_id", _CLIENT_ID),
            ("refresh_token", credentials.identity_token),
            ("scope", " ".join(request.scopes)),
        ]
        return "POST", request.realm, {"Content-Type": "application/x-www-form-urlencoded"}, urlencode(fields).encode()
    fields += [("scope", scope) for scope in request.scopes]
    headers = {}
    if credentials is not None:
        headers["Authorization"] = credentials.basic()
        fields.append(("account", credentials.username))
    joint = "&" if "?" in request.realm else "?"
    return "GET", f"{request.realm}{joint}{urlencode(fields)}", headers, None


def parse_token(body: bytes, subject: str) -> Token:
    """The token of an answer. Its life counts from now: the server's clock is not ours."""
    document = parse_json_object(body, subject)
    value = document.get("token") or document.get("access_token")
    if not isinstance(value, str) or not value:
        raise ProtocolViolation(f"{subject}: the answer holds no token")
    lifetime = document.get("expires_in")
    lifetime_s = DEFAULT_LIFETIME_S
    if isinstance(lifetime, int | float) and lifetime > 0:
        lifetime_s = float(min(lifetime, _MAX_LIFETIME_S))
    lifetime_s -= min(30.0, lifetime_s / 5)
    return Token(value=value, expires=time.monotonic() + lifetime_s)
