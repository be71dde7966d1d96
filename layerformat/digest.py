"""Content digests. Only SHA-256 exists here: what the format trusts must not depend on a registry's choice."""

import hashlib
import re
from typing import NewType

from layerformat.errors import FormatError

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hex digits: of a blob, a manifest, an index payload."""

DiffID = NewType("DiffID", str)
"""Digest of a layer's uncompressed tar."""

ChainID = NewType("ChainID", str)
"""Digest of a chain of diff ids (OCI image specification, "Layer ChainID")."""

_PREFIX = "sha256:"
_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")


def parse_digest(text: str) -> Digest:
    """The digest that `text` spells; FormatError for anything but `sha256:<64 lower-case hex>`."""
    if _PATTERN.fullmatch(text) is None:
        raise FormatError(f"digest {text[:100]!r} is not sha256:<64 lower-case hex digits>")
    return Digest(text)


def sha256_digest(data: bytes | bytearray | memoryview) -> Digest:
    """The digest of `data`."""
    return Digest(_PREFIX + hashlib.sha256(data).hexdigest())


def digest_from_raw(raw: bytes) -> Digest:
    """The digest whose 32 bytes are `raw`."""
    if len(raw) != 32:
        raise FormatError(f"SHA-256 of {len(raw)} bytes, expected 32")
    return Digest(_PREFIX + raw.hex())


def raw_digest(digest: Digest | DiffID | ChainID) -> bytes:
    """The 32 bytes of a digest."""
    return bytes.fromhex(parse_digest(digest)[len(_PREFIX) :])
