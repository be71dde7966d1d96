"""PAX extended headers (POSIX.1-2017 pax, "pax Header Block"): records in, records out, and the padding record.

Keys and values are bytes: names in layers need not be UTF-8.
"""

from collections.abc import Iterable
from typing import Final

from converter.errors import MalformedLayer
from converter.tarheader import BLOCK, XHDTYPE, meta_header, padding, with_checksum, with_number

Records = list[tuple[bytes, bytes]]
"""In file order; later records of a key override earlier ones, except GNU.sparse.offset and .numbytes which repeat."""

_COMMENT: Final = b"comment"
#: "NN " in front and " comment=" ... "\n" around an empty value; the shortest padding record is 13 bytes.
_COMMENT_FRAME: Final = len(b" comment=\n")
#: What Python's tarfile names such headers; extracting it as a file, as a pre-POSIX tool would, is harmless.
_HEADER_NAME: Final = b"././@PaxHeader"
#: Keys whose values become C strings: a NUL inside would mean different names to different readers.
_STRINGS: Final = frozenset((b"path", b"linkpath", b"uname", b"gname"))


def parse_records(content: bytes) -> Records:
    """The records of an extended header's data; MalformedLayer unless they tile it exactly."""
    records: Records = []
    position = 0
    while position < len(content):
        record, position = _parse_record(content, position)
        records.append(record)
    return records


def _parse_record(content: bytes, position: int) -> tuple[tuple[bytes, bytes], int]:
    space = content.find(b" ", position, position + 20)
    digits = content[position:space] if space > 0 else b""
    if not digits.isdigit():
        raise MalformedLayer("pax header: a record does not start with its length")
    end = position + int(digits)
    key, equals, value = content[space + 1 : end - 1].partition(b"=")
    if end > len(content) or end <= space + 2 or content[end - 1 : end] != b"\n" or not equals or not key:
        raise MalformedLayer("pax header: a record's length does not fit its text")
    if b"\0" in key or (key in _STRINGS and b"\0" in value):
        raise MalformedLayer(f"pax header: NUL in {key[:40]!r}")
    return (key, value), end


def format_record(key: bytes, value: bytes) -> bytes:
    """One record; its length counts its own digits."""
    body = len(key) + len(value) + 3
    length = body + len(str(body))
    if len(str(length)) != len(str(body)):
        length = body + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def format_records(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The data of an extended header."""
    return b"".join(format_record(key, value) for key, value in records)


def comment_record(length: int) -> bytes:
    """A `comment` record of exactly `length` bytes (at least 13)."""
    blanks = length - len(str(length)) - _COMMENT_FRAME
    if blanks < 0:
        raise ValueError(f"no comment record is {length} bytes long")
    return b"%d %b=%b\n" % (length, _COMMENT, b" " * blanks)


def pax_header(content: bytes, original: bytes | None = None) -> bytes:
    """Header block and data of an extended header; `original` is the header block to keep all but the size of."""
    if original is None:
        block = meta_header(_HEADER_NAME, XHDTYPE, len(content))
    else:
        block = with_checksum(with_number(original, 124, 136, len(content)))
    return block + content + bytes(padding(len(content)))


def padded_pax_header(content: bytes, original: bytes | None, gap: int) -> bytes:
    """The extended header `content` grown by `gap` bytes (a positive multiple of 512) by means of a `comment` record.

    With neither `original` nor content, `gap` is the size of the whole new header and at least 1024.
    """
    old = BLOCK + len(content) + padding(len(content)) if original is not None else 0
    total = old + gap - BLOCK
    return pax_header(content + comment_record(total - len(content)), original)


def parse_decimal(value: bytes, what: str) -> int:
    """A decimal integer of a record."""
    digits = value[1:] if value[:1] == b"-" else value
    if not digits.isdigit() or len(digits) > 19:
        raise MalformedLayer(f"pax header: {what} {value[:40]!r} is not a number")
    return int(value)


def parse_time_ns(value: bytes, what: str) -> int:
    """Nanoseconds since the epoch of a `[-]seconds[.fraction]` time; digits beyond the ninth are cut off."""
    seconds, _, fraction = value.partition(b".")
    if fraction and not fraction.isdigit():
        raise MalformedLayer(f"pax header: {what} {value[:40]!r} is not a time")
    whole = parse_decimal(seconds, what) * 1_000_000_000
    nanos = int(fraction[:9].ljust(9, b"0")) if fraction else 0
    return whole - nanos if seconds.startswith(b"-") else whole + nanos
