"""Is the server in the container ready? Asked every 50 ms; whatever goes wrong means "not yet"."""

import asyncio
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure

POLL_PERIOD_S = 0.05
# A server that accepts and then loads a model answers the waiting request as soon as it can; only a connection that
# was lost without a word needs to be given up.
_ATTEMPT_LIMIT_S = 5.0


def check_endpoint(url: str) -> str:
    """The URL itself, once it is sure that it can be asked.

    Raises:
        Failure: it is no http(s) URL with a host.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        hint = "for example --readiness-endpoint http://localhost:8080/health"
        raise Failure(f"not an HTTP URL: {url}", hint=hint, code=ExitCode.USAGE)
    return url


async def wait_ready(url: str, clock: Callable[[], float] = time.monotonic) -> float:
    """The clock's reading when `url` first answered with a status below 400 (redirects followed)."""
    # A fresh connection each time: one that a half-started port forwarder holds open must not be asked again.
    connector = aiohttp.TCPConnector(force_close=True, limit=1)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=_ATTEMPT_LIMIT_S)
    ) as session:
        while True:
            asked_s = clock()
            if await _answers(session, url):
                return clock()
            await asyncio.sleep(max(0.0, asked_s + POLL_PERIOD_S - clock()))


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status < 400
    except Exception:  # every failure of a server that is starting up means the same: not ready yet
        return False
