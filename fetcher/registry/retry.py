"""When to try again: jittered exponential backoff that honours Retry-After and ends at a deadline."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from fetcher.registry.errors import RegistryError, Unavailable, UploadLost, is_transient, retry_after_s

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """``attempts`` tries in all, ``deadline_s`` for all of them with the waits between."""

    attempts: int = 6
    base_s: float = 0.2
    cap_s: float = 10.0
    deadline_s: float = 120.0

    def delay_s(self, failures: int, asked_s: float | None, jitter: float) -> float:
        """Seconds to wait after the ``failures``-th failure in a row (from 1); ``jitter`` is uniform in [0, 1).

        Full range jitter between half and all of the exponential step: a fleet that failed together does not come
        back together. What the server asked for is a floor, not a suggestion.
        """
        step = min(self.cap_s, self.base_s * 2.0 ** (failures - 1))
        return max(step * (0.5 + jitter / 2), asked_s * (1 + jitter / 10) if asked_s else 0.0)


async def retrying(policy: RetryPolicy, subject: str, operation: Callable[[], Awaitable[T]]) -> T:
    """Run ``operation`` until it succeeds or fails for good; the last error is raised once the policy is exhausted."""
    loop = asyncio.get_running_loop()
    end = loop.time() + policy.deadline_s
    failures = 0
    while True:
        try:
            async with asyncio.timeout_at(end) as deadline:
                return await operation()
        except TimeoutError as exc:
            if not deadline.expired():
                raise
            raise Unavailable(f"{subject}: no success within {policy.deadline_s:.0f} s") from exc
        except RegistryError as exc:
            failures += 1
            # What an upload has lost only its source can bring back.
            if not is_transient(exc) or isinstance(exc, UploadLost) or failures >= policy.attempts:
                raise
            delay_s = policy.delay_s(failures, retry_after_s(exc), random.random())
            if loop.time() + delay_s >= end:
                raise
            log.info("registry_retry", subject=subject, failures=failures, delay_s=round(delay_s, 2), error=str(exc))
        await asyncio.sleep(delay_s)
