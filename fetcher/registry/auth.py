"""Which Authorization header a request gets: tokens cached per endpoint and scope, renewed before and after they
expire.

A registry is asked without credentials first and teaches us its challenge; from then on tokens are fetched before
they are needed. Of many requests that find a token gone, one fetches the next (a lock per endpoint and scope) and the
others use it.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import structlog

from fetcher.registry.challenge import Challenge, Scope, merge_scopes
from fetcher.registry.credentials import CredentialProvider, Credentials
from fetcher.registry.errors import CredentialsUnavailable, Denied, InvalidConfig, RegistryError, Rejected, Unauthorized
from fetcher.registry.hosts import Endpoint
from fetcher.registry.tokens import TokenRequest, TokenService

log = structlog.get_logger(__name__)

ANONYMOUS = "anonymous"
_MAX_GRANTS = 512
_Key = tuple[str, tuple[Scope, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One Authorization header; ``provider`` is the name of who gave the credentials, ``expires`` on the monotonic
    clock.
    """

    header: str = field(repr=False)
    provider: str
    expires: float = math.inf

    @property
    def fresh(self) -> bool:
        return time.monotonic() < self.expires


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderAnswer:
    """What one provider said about a host, for a person to read: ``username`` if it answered, ``problem`` if it
    failed.
    """

    provider: str
    answered: bool
    username: str | None = None
    problem: str | None = None


class Authorizer:
    """Grants for endpoints and scopes.

    ``providers`` are asked in order; who knows nothing is skipped, anonymous comes last.
    """

    def __init__(self, tokens: TokenService, providers: Sequence[CredentialProvider]) -> None:
        self._tokens = tokens
        self._providers = tuple(providers)
        self._challenges: dict[str, tuple[Challenge, ...]] = {}  # by endpoint base
        self._grants: dict[_Key, Grant] = {}
        self._locks: WeakValueDictionary[_Key, asyncio.Lock] = WeakValueDictionary()

    async def grant(self, endpoint: Endpoint, scopes: tuple[Scope, ...]) -> Grant | None:
        """What to send without being asked; None: nothing, let the registry ask."""
        key = (endpoint.base, scopes)
        known = self._grants.get(key)
        if known is not None and known.fresh:
            return known
        challenges = self._challenges.get(endpoint.base)
        if challenges is None:
            return None
        return await self._renew(endpoint, scopes, challenges, known, frozenset())

    async def challenged(
        self,
        endpoint: Endpoint,
        scopes: tuple[Scope, ...],
        challenges: tuple[Challenge, ...],
        used: Grant | None,
        refused: frozenset[str],
    ) -> Grant | None:
        """After a 401 or 403: another grant to try, or None if there is none.

        ``used`` is what was sent; ``refused`` names the providers whose new credentials have been turned down for
        this request.
        """
        if challenges:
            self._challenges[endpoint.base] = challenges
        known = challenges or self._challenges.get(endpoint.base, ())
        if not known:
            return None
        return await self._renew(endpoint, scopes, known, used, refused)

    async def explain(self, host: str, repository: str) -> tuple[ProviderAnswer, ...]:
        """What each provider says about ``host``, in the order they are asked."""
        return tuple([await _ask(provider, host, repository) for provider in self._providers])

    async def _renew(
        self,
        endpoint: Endpoint,
        scopes: tuple[Scope, ...],
        challenges: tuple[Challenge, ...],
        used: Grant | None,
        refused: frozenset[str],
    ) -> Grant | None:
        key = (endpoint.base, scopes)
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            known = self._grants.get(key)
            if known is not None and known is not used and known.fresh and known.provider not in refused:
                return known  # somebody was quicker
            self._grants.pop(key, None)
            grant = await self._acquire(endpoint, scopes, challenges, refused)
            if grant is not None:
                self._remember(key, grant)
            return grant

    def _remember(self, key: _Key, grant: Grant) -> None:
        if len(self._grants) >= _MAX_GRANTS:
            stale = [old for old, held in self._grants.items() if not held.fresh]
            for old in stale or list(self._grants)[: _MAX_GRANTS // 2]:
                del self._grants[old]
        self._grants[key] = grant

    async def _acquire(
        self, endpoint: Endpoint, scopes: tuple[Scope, ...], challenges: tuple[Challenge, ...], refused: frozenset[str]
    ) -> Grant | None:
        offers = {challenge.scheme: challenge for challenge in reversed(challenges)}
        failure: RegistryError | None = None
        async for provider, credentials in self._candidates(endpoint, scopes):
            if provider in refused:
                continue
            try:
                if grant := await self._try(endpoint, scopes, offers, provider, credentials):
                    return grant
            except (Unauthorized, Denied, Rejected) as exc:
                log.warning("registry_credentials_refused", provider=provider, error=str(exc))
                failure = failure or exc
        # Where credentials did get a token that the registry then refused, the registry's own words say more.
        if failure is not None and not refused:
            raise failure
        return None

    async def _try(
        self,
        endpoint: Endpoint,
        scopes: tuple[Scope, ...],
        offers: dict[str, Challenge],
        provider: str,
        credentials: Credentials | None,
    ) -> Grant | None:
        if (offer := offers.get("bearer")) is not None:
            if credentials is not None and credentials.registry_token:
                return Grant(header=f"Bearer {credentials.registry_token}", provider=provider)
            request = TokenRequest(
                realm=offer.parameters.get("realm", ""),
                service=offer.parameters.get("service", ""),
                scopes=merge_scopes(scopes, offer.parameters.get("scope", "")),
                registry=endpoint.authority,
                tls=endpoint.tls,
            )
            token = await self._tokens.fetch(request, credentials)
            return Grant(header=f"Bearer {token.value}", provider=provider, expires=token.expires)
        if "basic" in offers and credentials is not None and credentials.username:
            return Grant(header=credentials.basic(), provider=provider)
        return None

    async def _candidates(
        self, endpoint: Endpoint, scopes: tuple[Scope, ...]
    ) -> AsyncIterator[tuple[str, Credentials | None]]:
        repository = scopes[0].repository if scopes else ""
        for provider in self._providers:
            try:
                credentials = await provider.lookup(endpoint.credential_host, repository)
            except (CredentialsUnavailable, InvalidConfig) as exc:
                log.warning("credential_provider_failed", provider=provider.name, error=str(exc))
                continue
            if credentials:
                yield provider.name, credentials
        yield ANONYMOUS, None


async def _ask(provider: CredentialProvider, host: str, repository: str) -> ProviderAnswer:
    try:
        credentials = await provider.lookup(host, repository)
    except (CredentialsUnavailable, InvalidConfig) as exc:
        return ProviderAnswer(provider=provider.name, answered=False, problem=str(exc))
    if not credentials:
        return ProviderAnswer(provider=provider.name, answered=False)
    return ProviderAnswer(provider=provider.name, answered=True, username=credentials.username or None)
