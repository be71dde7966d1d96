"""Which endpoints serve an origin, in which order, and when to try again."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from fetcher.registry.errors import NotFound, RegistryError, is_transient
from fetcher.registry.hosts import Endpoint, HostTable
from fetcher.registry.reference import Origin
from fetcher.registry.retry import RetryPolicy, retrying

log = structlog.get_logger(__name__)
T = TypeVar("T")

# An endpoint that could not be reached is asked last for so long: a dead mirror must not cost every read its connect
# timeout.
PENALTY_S = 30.0


class Router:
    """Runs an operation on an origin's endpoints: mirrors first, the upstream last, again after a wait if that may
    help.
    """

    def __init__(self, hosts: HostTable, policy: RetryPolicy) -> None:
        self._hosts = hosts
        self._policy = policy
        self._penalties: dict[str, float] = {}  # endpoint base -> until (monotonic)

    async def endpoints(self, origin: Origin, capability: str) -> tuple[Endpoint, ...]:
        """In the order to try them now. Raises :class:`NotFound` if no endpoint may serve ``capability``."""
        every = self._hosts.known(origin.host)
        if every is None:
            every = await asyncio.to_thread(self._hosts.endpoints, origin.host)
        able = [endpoint for endpoint in every if capability in endpoint.capabilities]
        if not able:
            raise NotFound(f"{origin.host}: no host is configured for {capability}")
        now = time.monotonic()
        return tuple(sorted(able, key=lambda endpoint: self._penalties.get(endpoint.base, 0.0) > now))

    async def run(
        self,
        origin: Origin,
        capability: str,
        subject: str,
        operation: Callable[[Endpoint], Awaitable[T]],
        *,
        via: Endpoint | None = None,
    ) -> T:
        """The first success. ``via`` pins the endpoint; retries still apply."""

        async def once() -> T:
            return await self._round((via,) if via else await self.endpoints(origin, capability), operation)

        return await retrying(self._policy, subject, once)

    async def _round(self, endpoints: tuple[Endpoint, ...], operation: Callable[[Endpoint], Awaitable[T]]) -> T:
        failures: list[tuple[Endpoint, RegistryError]] = []
        for endpoint in endpoints:
            try:
                result = await operation(endpoint)
            except RegistryError as exc:
                failures.append((endpoint, exc))
                if is_transient(exc):
                    self._penalties[endpoint.base] = time.monotonic() + PENALTY_S
                if len(endpoints) > 1:
                    log.info("registry_endpoint_failed", endpoint=endpoint.authority, error=str(exc))
            else:
                self._penalties.pop(endpoint.base, None)
                return result
        raise _verdict(failures)


def _verdict(failures: list[tuple[Endpoint, RegistryError]]) -> RegistryError:
    """The error that counts: the upstream's word is final, a mirror's is not."""
    for endpoint, exc in failures:
        if endpoint.upstream and not is_transient(exc):
            return exc
    transient = [exc for _, exc in failures if is_transient(exc)]
    return transient[-1] if transient else failures[-1][1]
