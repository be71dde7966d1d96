"""Sparse files in tars: which parts of a file are stored. Formats: GNU tar manual, "Storing Sparse Files".

They are expanded in the converted layer: the data of a file must be one piece there, and containerd's extractor knows
only some of the encodings.
"""

from collections.abc import Callable
from typing import Final

from converter.errors import MalformedLayer
from converter.pax import Records, parse_decimal
from converter.tarheader import BLOCK, parse_number

Extent = tuple[int, int]
"""Offset and length, in bytes, of a stored part of the expanded file."""

_MAX_EXTENTS: Final = 1 << 20
PREFIX: Final = b"GNU.sparse."


def old_gnu_map(header: bytes, take: Callable[[int], bytes]) -> tuple[int, list[Extent]]:
    """Real size and extents of a type 'S' entry; `take` reads the extension blocks behind the header."""
    extents = _slots(header[386:482])
    more = header[482]
    while more:
        block = take(BLOCK)
        extents += _slots(block[:504])
        more = block[504]
        if len(extents) > _MAX_EXTENTS:
            raise MalformedLayer("sparse file: too many extents")
    return parse_number(header[483:495], "realsize"), extents


def _slots(area: bytes) -> list[Extent]:
    """The used 24-byte slots of a map area: they end at the first empty one."""
    found = []
    for at in range(0, len(area), 24):
        if area[at] == 0:
            break
        offset, length = area[at : at + 12], area[at + 12 : at + 24]
        found.append((parse_number(offset, "sparse offset"), parse_number(length, "sparse length")))
    return found


def pax_version(records: Records) -> str | None:
    """`"0"` (0.0 and 0.1: map in the records), `"1.0"` (map before the data), None: not sparse.

    An unknown version is treated as not sparse, as Go's reader does: its data is then taken as it is stored.
    """
    table = dict(records)
    version = (table.get(b"GNU.sparse.major"), table.get(b"GNU.sparse.minor"))
    if version == (b"1", b"0"):
        return "1.0"
    has_map = b"GNU.sparse.map" in table or b"GNU.sparse.offset" in table or b"GNU.sparse.numblocks" in table
    if version in ((b"0", b"0"), (b"0", b"1")) or (version == (None, None) and has_map):
        return "0"
    return None


def pax_map(records: Records) -> list[Extent]:
    """The extents of formats 0.0 (repeated offset and numbytes records) and 0.1 (one map record)."""
    table = dict(records)
    if b"GNU.sparse.map" in table:
        numbers = [item for item in table[b"GNU.sparse.map"].split(b",") if item]
    else:
        numbers = [value for key, value in records if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")]
    return _pair([parse_decimal(number, "sparse map") for number in numbers])


def read_map_1_0(take: Callable[[int], bytes]) -> tuple[int, list[Extent]]:
    """Bytes read (whole blocks) and the extents of format 1.0: decimal lines in front of the data."""
    text = take(BLOCK)
    used = BLOCK
    while not _complete(text):
        text += take(BLOCK)
        used += BLOCK
        if used > _MAX_EXTENTS * 42:
            raise MalformedLayer("sparse file: its map does not end")
    lines = text.split(b"\n")
    count = parse_decimal(lines[0], "sparse map")
    return used, _pair([parse_decimal(line, "sparse map") for line in lines[1 : 1 + 2 * count]])


def _complete(text: bytes) -> bool:
    count, newline, rest = text.partition(b"\n")
    if not newline:
        return False
    wanted = parse_decimal(count, "sparse map")
    if not 0 <= wanted <= _MAX_EXTENTS:
        raise MalformedLayer("sparse file: too many extents")
    return rest.count(b"\n") >= 2 * wanted


def real_size(records: Records) -> int | None:
    """Size of the expanded file, where the records tell."""
    table = dict(records)
    value = table.get(b"GNU.sparse.size") or table.get(b"GNU.sparse.realsize")
    return None if value is None else parse_decimal(value, "sparse size")


def check_extents(extents: list[Extent], size: int, stored: int) -> None:
    """Extents in order, apart, inside `size`, and together exactly the `stored` bytes; MalformedLayer otherwise."""
    end = 0
    for offset, length in extents:
        if offset < end or length < 0:
            raise MalformedLayer("sparse file: extents overlap or are out of order")
        end = offset + length
    if end > size or sum(length for _, length in extents) != stored:
        raise MalformedLayer("sparse file: extents do not fit its size")


def _pair(numbers: list[int]) -> list[Extent]:
    if len(numbers) % 2 or len(numbers) > 2 * _MAX_EXTENTS:
        raise MalformedLayer("sparse file: its map is incomplete")
    return list(zip(numbers[::2], numbers[1::2], strict=True))
