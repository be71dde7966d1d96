"""One structure of an EROFS image at a time, every offset and length checked before it is used.

Nothing here looks at more than one inode; what holds between them is checked in `erofs_read`. Whatever our writer would
not write is a FormatError, so that the kernel only ever sees images of that narrow kind.
"""

import stat
from collections.abc import Iterator
from operator import lt
from typing import NamedTuple

from layerformat.entries import MAX_ID, MAX_NAME_BYTES, MAX_PATH_BYTES, is_supported_xattr
from layerformat.erofs import (
    BLOCK,
    CHUNK_INDEX,
    DEVICE_ID,
    DEVICE_SLOT,
    DIRENT,
    EROFS_SUPER_OFFSET,
    FORMAT_CHUNK,
    FORMAT_INLINE,
    FORMAT_PLAIN,
    FT_BY_IFMT,
    INODE_EXTENDED,
    MAX_DEVICE_BYTES,
    META_START,
    SLOT,
    SUPER_BLOCK,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_PREFIXES,
    Inode,
    SuperBlock,
    checksum,
    chunk_format,
    xattr_bytes,
)
from layerformat.errors import FormatError

NO_RESERVED = bytes(16)


class Place(NamedTuple):
    """An inode and the bytes of the image that belong to it."""

    nid: int
    inode: Inode
    xattrs_at: int
    inline_at: int  # what follows inode and attributes: a chunk index, or the last partial block
    end: int
    blocks_at: int  # whole blocks of its own
    blocks_end: int


class Dirent(NamedTuple):
    """One name of a directory."""

    name: bytes
    nid: int
    file_type: int


def parse_super_block(image: bytes) -> SuperBlock:
    """The super block and device table; FormatError unless they are exactly what the writer packs."""
    if len(image) < BLOCK or len(image) % BLOCK:
        raise FormatError(f"EROFS image of {len(image)} bytes")
    fields = SUPER_BLOCK.unpack_from(image, EROFS_SUPER_OFFSET)
    device_blocks = DEVICE_SLOT.unpack_from(image, EROFS_SUPER_OFFSET + SUPER_BLOCK.size)[1]
    found = SuperBlock(root_nid=fields[5], inos=fields[6], blocks=len(image) // BLOCK, device_blocks=device_blocks)
    packed = bytearray(found.pack())
    packed[4:8] = checksum(image).to_bytes(4, "little")
    if image[EROFS_SUPER_OFFSET:META_START] != packed:
        raise FormatError("EROFS super block: checksum, feature or field that is not of this format")
    if not 0 < device_blocks * BLOCK <= MAX_DEVICE_BYTES or any(image[:EROFS_SUPER_OFFSET]):
        raise FormatError("EROFS super block: device size out of range or bytes before it in use")
    return found


def locate(image: bytes, nid: int) -> Place:
    """The inode `nid`, its fields checked as far as they concern every file type."""
    at = nid * SLOT
    head_end = at + INODE_EXTENDED.size
    if at < META_START or head_end > len(image):
        raise FormatError(f"EROFS inode {nid}: outside the image")
    inode = Inode._make(INODE_EXTENDED.unpack_from(image, at))
    if inode.i_reserved or inode.i_reserved2 != NO_RESERVED or inode.i_mtime_nsec >= 1_000_000_000:
        raise FormatError(f"EROFS inode {nid}: reserved field in use or nanoseconds out of range")
    if inode.i_uid > MAX_ID or inode.i_gid > MAX_ID or stat.S_IFMT(inode.i_mode) not in FT_BY_IFMT:
        raise FormatError(f"EROFS inode {nid}: owner or mode out of range")
    inline_at = head_end + xattr_bytes(inode.i_xattr_icount)
    if inode.i_format == FORMAT_CHUNK:
        inline_at = -(-inline_at // CHUNK_INDEX.size) * CHUNK_INDEX.size
        end, blocks = inline_at + CHUNK_INDEX.size, 0
    elif inode.i_format == FORMAT_INLINE:
        end, blocks = inline_at + inode.i_size % BLOCK, inode.i_size // BLOCK
        if end == inline_at or inline_at // BLOCK != (end - 1) // BLOCK:
            raise FormatError(f"EROFS inode {nid}: inline data is empty or crosses a block")
    elif inode.i_format == FORMAT_PLAIN:
        end, blocks = inline_at, -(-inode.i_size // BLOCK)
    else:
        raise FormatError(f"EROFS inode {nid}: unknown format {inode.i_format:#x}")
    blocks_at = inode.i_u * BLOCK if blocks else 0
    blocks_end = blocks_at + blocks * BLOCK
    if end > len(image) or blocks_end > len(image):
        raise FormatError(f"EROFS inode {nid}: its data ends beyond the image")
    return Place(nid, inode, head_end, inline_at, end, blocks_at, blocks_end)


def parse_xattrs(image: bytes, place: Place) -> dict[bytes, bytes]:
    """The extended attributes, full names."""
    if not place.inode.i_xattr_icount:
        return {}
    end = place.xattrs_at + xattr_bytes(place.inode.i_xattr_icount)
    if any(image[place.xattrs_at : place.xattrs_at + XATTR_HEADER.size]):
        raise FormatError(f"EROFS inode {place.nid}: attribute header in use")
    xattrs: dict[bytes, bytes] = {}
    last = (0, b"")
    at = place.xattrs_at + XATTR_HEADER.size
    while at < end or not xattrs:
        at, key, value = _parse_xattr(image, place.nid, at, end)
        name = XATTR_PREFIXES.get(key[0], b"") + key[1]
        if key <= last or not is_supported_xattr(name, value, place.inode.i_mode):
            raise FormatError(f"EROFS inode {place.nid}: attribute {name[:100]!r} out of order or not supported")
        xattrs[name] = value
        last = key
    return xattrs


def _parse_xattr(image: bytes, nid: int, at: int, end: int) -> tuple[int, tuple[int, bytes], bytes]:
    """(where the next one starts, (prefix index, rest of the name), value) of the attribute at `at`."""
    name_at = at + XATTR_ENTRY.size
    if name_at > end:
        raise FormatError(f"EROFS inode {nid}: attribute beyond its area")
    name_len, index, value_size = XATTR_ENTRY.unpack_from(image, at)
    value_at = name_at + name_len
    value_end = value_at + value_size
    following = -(-value_end // 4) * 4
    if following > end or index not in XATTR_PREFIXES or any(image[value_end:following]):
        raise FormatError(f"EROFS inode {nid}: attribute beyond its area, of unknown prefix, or padding in use")
    return following, (index, image[name_at:value_at]), image[value_at:value_end]


def parse_chunk(image: bytes, place: Place, device_blocks: int) -> tuple[int, int]:
    """(first block, blocks) of the tar that a regular file with data occupies."""
    size = place.inode.i_size
    advise, device, first = CHUNK_INDEX.unpack_from(image, place.inline_at)
    count = -(-size // BLOCK)
    if not size or first + count > device_blocks:
        raise FormatError(f"EROFS inode {place.nid}: {size} bytes at block {first} are not inside the tar")
    if advise or device != DEVICE_ID or place.inode.i_u != chunk_format(size):
        raise FormatError(f"EROFS inode {place.nid}: chunk of another device or format")
    if any(image[place.xattrs_at + xattr_bytes(place.inode.i_xattr_icount) : place.inline_at]):
        raise FormatError(f"EROFS inode {place.nid}: padding in use")
    return first, count


def parse_symlink(image: bytes, place: Place) -> bytes:
    """The target of a symlink."""
    size = place.inode.i_size
    _check_flat(place)
    if not 0 < size <= MAX_PATH_BYTES:
        raise FormatError(f"EROFS inode {place.nid}: symlink of {size} bytes")
    at = place.inline_at if place.inode.i_format == FORMAT_INLINE else place.blocks_at
    target = image[at : at + size]
    if 0 in target or any(image[place.blocks_at + size : place.blocks_end]):
        raise FormatError(f"EROFS inode {place.nid}: symlink target with a NUL, or padding in use")
    return target


def parse_directory(image: bytes, place: Place) -> list[Dirent]:
    """Every name, "." and ".." included, checked to be valid and in strict order."""
    _check_flat(place)
    dirents: list[Dirent] = []
    for block in _directory_blocks(image, place):
        dirents += _parse_dirents(block, place.nid)
    names = [dirent.name for dirent in dirents]
    # Of the whole directory at a time: an image has tens of thousands of names, and a start waits for this.
    letters = b"".join(names)
    if 47 in letters or 0 in letters or len(max(names, key=len)) > MAX_NAME_BYTES or not all(map(lt, names, names[1:])):
        raise FormatError(f"EROFS inode {place.nid}: a name is invalid or out of order, e.g. {_wrong_name(names)!r}")
    return dirents


def _wrong_name(names: list[bytes]) -> bytes:
    last = b""
    for name in names:
        if name <= last or len(name) > MAX_NAME_BYTES or 47 in name or 0 in name:
            break
        last = name
    return name[:40]


def _check_flat(place: Place) -> None:
    """What directories and symlinks have in common."""
    inode = place.inode
    if inode.i_format == FORMAT_CHUNK or not inode.i_size or (inode.i_u and not place.blocks_end):
        raise FormatError(f"EROFS inode {place.nid}: directory or symlink that is chunked, empty or misplaced")


def _directory_blocks(image: bytes, place: Place) -> Iterator[bytes]:
    """The blocks of a directory, each without its padding."""
    size = place.inode.i_size
    for at in range(place.blocks_at, place.blocks_end, BLOCK):
        used = min(BLOCK, size - (at - place.blocks_at))
        if any(image[at + used : at + BLOCK]):
            raise FormatError(f"EROFS inode {place.nid}: padding in use")
        yield image[at : at + used].rstrip(b"\0") if used == BLOCK else image[at : at + used]
    if place.inode.i_format == FORMAT_INLINE:
        yield image[place.inline_at : place.end]


def _parse_dirents(block: bytes, nid: int) -> list[Dirent]:
    if len(block) <= DIRENT.size:
        raise FormatError(f"EROFS inode {nid}: directory block of {len(block)} bytes")
    names_at = DIRENT.unpack_from(block)[1]
    if not 0 < names_at < len(block) or names_at % DIRENT.size:
        raise FormatError(f"EROFS inode {nid}: names at {names_at} of {len(block)} bytes")
    targets, starts, types, reserved = zip(*DIRENT.iter_unpack(block[:names_at]), strict=True)
    ends = (*starts[1:], len(block))
    if not all(map(lt, starts, ends)) or any(reserved):
        raise FormatError(f"EROFS inode {nid}: name offsets are out of order")
    names = [block[start:end] for start, end in zip(starts, ends, strict=True)]
    return list(map(Dirent, names, targets, types))
