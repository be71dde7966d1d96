"""What the head of a ranged response must say (RFC 9110, 14): pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fetcher.registry.errors import ProtocolViolation

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
_COUNT = re.compile(r"[0-9]{1,19}")
# A server that ignores Range costs this much at most before the bytes that were asked for.
MAX_SKIP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyPlan:
    """Of the body: drop ``skip`` bytes, then hand out ``take`` (None: all there is)."""

    skip: int
    take: int | None


def range_header(offset: int, length: int | None) -> dict[str, str]:
    """The header that asks for ``length`` bytes from ``offset``; nothing for a whole object."""
    if offset < 0 or (length is not None and length <= 0):
        raise ValueError(f"no byte range: offset {offset}, length {length}")
    if offset == 0 and length is None:
        return {}
    last = "" if length is None else str(offset + length - 1)
    return {"Range": f"bytes={offset}-{last}"}


def parse_count(text: str | None) -> int | None:
    """A number of bytes as headers spell it; None for anything else, and for more than any blob could have."""
    return int(text) if text is not None and _COUNT.fullmatch(text) else None


def plan_body(status: int, headers: Mapping[str, str], offset: int, length: int | None, subject: str) -> BodyPlan:
    """How to get the asked bytes out of the response; :class:`ProtocolViolation` if they cannot be had from it."""
    if headers.get("Content-Encoding", "identity") != "identity":
        raise ProtocolViolation(f"{subject}: the answer has a content coding, its bytes are not the blob's")
    if status == 206:
        return _plan_partial(headers, offset, length, subject)
    if offset > MAX_SKIP_BYTES:
        raise ProtocolViolation(f"{subject}: the server ignores Range (200 for bytes from {offset})")
    total = parse_count(headers.get("Content-Length"))
    if length is not None and total is not None and total < offset + length:
        raise ProtocolViolation(f"{subject}: {total} bytes long, {length} asked from {offset}")
    if length is None:
        length = max(0, total - offset) if total is not None else None
    return BodyPlan(skip=offset, take=length)


def _plan_partial(headers: Mapping[str, str], offset: int, length: int | None, subject: str) -> BodyPlan:
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if match is None:
        raise ProtocolViolation(f"{subject}: 206 without a usable Content-Range (one range was asked for)")
    first, last = int(match[1]), int(match[2])
    if first != offset or last < first or (length is not None and last != offset + length - 1):
        asked = f"{offset}-{'' if length is None else offset + length - 1}"
        raise ProtocolViolation(f"{subject}: bytes {first}-{last} for {asked}")
    return BodyPlan(skip=0, take=last - first + 1)
