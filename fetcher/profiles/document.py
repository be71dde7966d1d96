"""What profiles and packs have in common as JSON documents: how they are written and read, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from layerformat.digest import Digest, parse_digest
from layerformat.errors import FormatError

VERSION: Final = 1
#: Bounds of a document: what is larger is refused, whoever wrote it.
MAX_BYTES: Final = 8 << 20
MAX_LAYERS: Final = 512
MAX_ROWS: Final = 100_000


class ProfileError(ValueError):
    """A profile or a pack that cannot be used: malformed, out of bounds, of another version, or of something else."""


def encode_document(kind: str, members: Mapping[str, Any]) -> bytes:
    """A document of a kind, "profile" or "pack"; equal members give equal bytes."""
    document = {"format": f"fastpull-{kind}", "version": VERSION, **members}
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def parse_document(kind: str, data: bytes) -> Mapping[str, Any]:
    """Its members. Raises ProfileError for what is no document of the kind and of this version."""
    if len(data) > MAX_BYTES:
        raise ProfileError(f"is larger than {MAX_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"is no JSON: {str(error)[:100]}") from error
    if not isinstance(document, dict) or document.get("format") != f"fastpull-{kind}":
        raise ProfileError(f"is no {kind}")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise ProfileError(f"is of version {str(version)[:20]}, not {VERSION}")
    return document


def parse_layers(rows: Any) -> tuple[Digest, ...]:
    """The member ``layers``. Raises ProfileError."""
    if not isinstance(rows, list) or not 0 < len(rows) <= MAX_LAYERS or len(set(map(str, rows))) != len(rows):
        raise ProfileError(f"layers: not a list of 1 to {MAX_LAYERS} different digests")
    try:
        return tuple(parse_digest(str(row)) for row in rows)
    except FormatError as error:
        raise ProfileError(f"layers: {error}") from error


def parse_rows(name: str, rows: Any, columns: Sequence[int]) -> list[list[int]]:
    """A list of rows of integers, each with one of these numbers of them. Raises ProfileError."""
    if not isinstance(rows, list) or len(rows) > MAX_ROWS:
        raise ProfileError(f"{name}: not a list of at most {MAX_ROWS}")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) not in columns or set(map(type, row)) != {int}:
            raise ProfileError(f"{name}[{number}]: not {' or '.join(map(str, columns))} integers")
    return rows


def check_disjoint(name: str, ranges: Iterable[tuple[int, ...]]) -> None:
    """Raise ProfileError where two ranges (layer, offset, length, ...) overlap.

    It bounds what a document can make a node do.
    """
    behind: dict[int, int] = {}
    for layer, offset, length, *_ in sorted(ranges):
        if offset < behind.get(layer, 0):
            raise ProfileError(f"{name}: two overlap at {offset} of layer {layer}")
        behind[layer] = offset + length
