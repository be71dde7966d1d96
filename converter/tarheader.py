"""One 512-byte tar header block: reading it, and the few fields that are ever rewritten.

The accepted language is that of Go's archive/tar, because that is what extracts layers in containerd, Docker and
Podman: POSIX.1-1988 ustar, GNU (magic `ustar  `), star (trailer `tar`) and V7 headers; octal or base-256 numbers;
checksums summed over signed or unsigned bytes. Layout: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual,
"Basic Tar Format".
"""

from dataclasses import dataclass
from typing import Final

from converter.errors import MalformedLayer

BLOCK: Final = 512
ZERO_BLOCK: Final = bytes(BLOCK)

# Type flags, spelled as in <tar.h> and GNU tar's tar.h.
REGTYPE: Final = b"0"
AREGTYPE: Final = b"\0"
LNKTYPE: Final = b"1"
SYMTYPE: Final = b"2"
CHRTYPE: Final = b"3"
BLKTYPE: Final = b"4"
DIRTYPE: Final = b"5"
FIFOTYPE: Final = b"6"
CONTTYPE: Final = b"7"
XHDTYPE: Final = b"x"
XGLTYPE: Final = b"g"
GNUTYPE_LONGNAME: Final = b"L"
GNUTYPE_LONGLINK: Final = b"K"
GNUTYPE_SPARSE: Final = b"S"

REGULAR: Final = frozenset((REGTYPE, AREGTYPE, CONTTYPE, GNUTYPE_SPARSE))
#: Nothing follows these headers, whatever their size field says.
HEADER_ONLY: Final = frozenset((LNKTYPE, SYMTYPE, CHRTYPE, BLKTYPE, DIRTYPE, FIFOTYPE))
KNOWN: Final = REGULAR | HEADER_ONLY | {XHDTYPE, XGLTYPE, GNUTYPE_LONGNAME, GNUTYPE_LONGLINK}

_MAGIC: Final = slice(257, 265)
_POSIX: Final = b"ustar\0"
_GNU: Final = b"ustar  \0"
_STAR_TRAILER: Final = b"tar\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class TarHeader:
    """The fields of one header block. Numbers may be negative where base-256 says so; strings end before their first
    NUL.
    """

    raw: bytes
    name: bytes
    linkname: bytes
    typeflag: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    rdev: tuple[int, int]


def padding(size: int) -> int:
    """Bytes that fill `size` up to whole blocks."""
    return -size % BLOCK


def parse_header(block: bytes) -> TarHeader:
    """The header in `block` (512 bytes); MalformedLayer when checksum or a number does not hold."""
    _check_sum(block)
    magic = block[_MAGIC]
    extended = magic[:6] == _POSIX or magic == _GNU
    size = parse_number(block[124:136], "size")
    if size < 0:
        raise MalformedLayer("tar header: negative size")
    return TarHeader(
        raw=block,
        name=_name(block, magic),
        linkname=text(block[157:257]),
        typeflag=block[156:157],
        mode=parse_number(block[100:108], "mode"),
        uid=parse_number(block[108:116], "uid"),
        gid=parse_number(block[116:124], "gid"),
        size=size,
        mtime=parse_number(block[136:148], "mtime"),
        rdev=_rdev(block) if extended else (0, 0),
    )


def text(field: bytes) -> bytes:
    """A string field: up to its first NUL."""
    return field.partition(b"\0")[0]


def parse_number(field: bytes, what: str) -> int:
    """A numeric field: base-256 two's complement when its top bit is set (GNU, star), else octal; empty is 0."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        bits = 8 * len(field) - 1
        value = value - (1 << bits) if field[0] & 0x40 else value
        if not -(1 << 63) <= value < 1 << 63:
            raise MalformedLayer(f"tar header: {what} does not fit 64 bits")
        return value
    digits = text(field.strip(b" \0"))
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise MalformedLayer(f"tar header: {what} {digits!r} is not an octal number")
    return int(digits, 8)


def with_number(block: bytes, start: int, end: int, value: int) -> bytes:
    """`block` with the numeric field [start, end) set: octal and a NUL where it fits, else base-256. The checksum is
    stale.
    """
    width = end - start
    if 0 <= value < 8 ** (width - 1):
        field = bytearray(b"%0*o\0" % (width - 1, value))
    else:
        field = bytearray(value.to_bytes(width, "big", signed=True))
        field[0] |= 0x80
    return block[:start] + bytes(field) + block[end:]


def with_checksum(block: bytes) -> bytes:
    """`block` with its checksum field right."""
    total = sum(block) - sum(block[148:156]) + 8 * 0x20
    return block[:148] + b"%06o\0 " % total + block[156:]


def as_regular(block: bytes, size: int) -> bytes:
    """The header of a sparse or contiguous file as that of a plain regular file of `size` bytes.

    In a GNU header, the sparse map, `isextended` and `realsize` (offsets 386 to 495) are cleared.
    """
    if block[_MAGIC] == _GNU:
        block = block[:386] + bytes(495 - 386) + block[495:]
    block = block[:156] + REGTYPE + block[157:]
    return with_checksum(with_number(block, 124, 136, size))


def meta_header(name: bytes, typeflag: bytes, size: int) -> bytes:
    """A ustar header for metadata of ours: mode 0644, owner and time 0, so that equal input gives equal bytes."""
    block = bytearray(BLOCK)
    block[0 : len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"
    block[124:136] = b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[156:157] = typeflag
    block[257:265] = b"ustar\x0000"
    return with_checksum(bytes(block))


def _check_sum(block: bytes) -> None:
    stored = parse_number(block[148:156], "checksum")
    unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
    if stored == unsigned:
        return
    # Some old writers summed signed chars: each byte over 127 then counts 256 less.
    high = sum(byte > 127 for byte in block) - sum(byte > 127 for byte in block[148:156])
    if stored != unsigned - 256 * high:
        raise MalformedLayer("tar header: wrong checksum; this is not a tar archive, or it is damaged")


def _name(block: bytes, magic: bytes) -> bytes:
    """The prefix field counts only in POSIX headers (155 bytes; 131 in star's, which keeps times behind it)."""
    name = text(block[0:100])
    if magic[:6] != _POSIX:
        return name
    star = block[508:512] == _STAR_TRAILER
    prefix = text(block[345 : 345 + (131 if star else 155)])
    return prefix + b"/" + name if prefix else name


def _rdev(block: bytes) -> tuple[int, int]:
    return parse_number(block[329:337], "devmajor"), parse_number(block[337:345], "devminor")
