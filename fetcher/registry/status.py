"""From an HTTP status to an error."""

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from fetcher.registry.errors import (
    Denied,
    NotFound,
    RateLimited,
    RegistryError,
    Rejected,
    Unauthorized,
    Unavailable,
)
from fetcher.registry.transport import Response

_MAX_ERROR_BYTES = 64 << 10
_MAX_QUOTED = 200
_TRY_AGAIN = frozenset({408, 425})
_NEVER = frozenset({501, 505})  # not implemented, HTTP version not supported
# A server may not park us for longer than this, whatever it says.
MAX_RETRY_AFTER_S = 300.0


async def error_for(response: Response, subject: str, *, quote: bool = True) -> RegistryError:
    """The error a response stands for.

    ``quote=False`` for servers other than the registry: object stores quote signed URLs.
    """
    detail = await _detail(response, subject) if quote else ""
    return error_from(response.status, response.headers, subject, detail)


def error_from(status: int, headers: Mapping[str, str], subject: str, detail: str = "") -> RegistryError:
    """The pure part of :func:`error_for`."""
    message = f"{subject}: HTTP {status}" + (f" ({detail})" if detail else "")
    if status == 429:
        return RateLimited(message, retry_after_s=parse_retry_after(headers.get("Retry-After")))
    if status in _TRY_AGAIN or (status >= 500 and status not in _NEVER):
        return Unavailable(message, retry_after_s=parse_retry_after(headers.get("Retry-After")))
    match status:
        case 401:
            return Unauthorized(message)
        case 403:
            return Denied(message)
        case 404 | 410:
            return NotFound(message)
    return Rejected(message, status=status)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds from now, of either form of the header (RFC 9110, 10.2.3), bounded."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


async def _detail(response: Response, subject: str) -> str:
    """``CODE: message`` of the first error in a registry's JSON body, if it is one."""
    try:
        document: Any = json.loads(await response.read(subject, _MAX_ERROR_BYTES))
        first = document["errors"][0]
        text = ": ".join(str(first[key]) for key in ("code", "message") if first.get(key))
    except (RegistryError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return ""  # the status is the error; its text is only a courtesy
    return "".join(character for character in text if character.isprintable())[:_MAX_QUOTED]
