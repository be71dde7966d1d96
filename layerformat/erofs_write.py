"""Entries to EROFS metadata. The same entries give the same bytes, whatever their order.

Image: super block and device table, the inodes with what is inline, then blocks of large directories and symlinks.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass

from layerformat.entries import Entry
from layerformat.erofs import (
    BLOCK,
    CHUNK_INDEX,
    DEVICE_ID,
    DIRENT,
    EROFS_SUPER_OFFSET,
    FORMAT_CHUNK,
    FORMAT_INLINE,
    FORMAT_PLAIN,
    FT_BY_IFMT,
    INODE_EXTENDED,
    MAX_DEVICE_BYTES,
    MAX_XATTR_ICOUNT,
    META_START,
    SLOT,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_PREFIXES,
    SuperBlock,
    checksum,
    chunk_format,
    encode_dev,
)
from layerformat.errors import FormatError
from layerformat.tree import Node, build_tree, walk_layout

_KEPT_GAPS = 4  # ends of blocks that small inodes may still fill; few, so that neighbours in the tree stay neighbours


@dataclass(slots=True)
class _Plan:
    """Where one inode and its data go."""

    node: Node
    xattrs: bytes
    blocks: list[list[tuple[bytes, Node]]]  # of a directory: what each of its blocks lists
    size: int  # i_size
    inline: int = 0  # bytes that follow the inode in its block
    full_blocks: int = 0  # whole blocks of their own
    nid: int = 0
    blkaddr: int = 0


def build_metadata(entries: Iterable[Entry], *, device_bytes: int) -> bytes:
    """The EROFS image (multiple of 4096 bytes) of `entries`, whose data is in a tar of `device_bytes`.

    Raises FormatError, naming path and field, for what the format cannot express. CPU bound: about 20 us an entry.
    """
    if not 0 < device_bytes <= MAX_DEVICE_BYTES or device_bytes % BLOCK:
        raise FormatError(f"tar of {device_bytes} bytes is not a positive multiple of {BLOCK}")
    root = build_tree(entries, device_bytes=device_bytes)
    plans = [_plan(node) for node in walk_layout(root)]
    total = _place(plans)
    image = bytearray(total)
    nids = {id(plan.node): plan.nid for plan in plans}
    for number, plan in enumerate(plans, start=1):
        _emit(image, plan, number, nids)
    header = SuperBlock(
        root_nid=plans[0].nid, inos=len(plans), blocks=total // BLOCK, device_blocks=device_bytes // BLOCK
    )
    image[EROFS_SUPER_OFFSET:META_START] = header.pack()
    image[EROFS_SUPER_OFFSET + 4 : EROFS_SUPER_OFFSET + 8] = checksum(image).to_bytes(4, "little")
    return bytes(image)


def encode_xattrs(entry: Entry) -> bytes:
    """The inline attribute area, b"" without attributes; sorted, so that readers see duplicates."""
    if not entry.xattrs:
        return b""
    parts = [XATTR_HEADER.pack(0, 0, b"")]
    for index, suffix, value in sorted((*_split_xattr(name), value) for name, value in entry.xattrs.items()):
        parts.append(XATTR_ENTRY.pack(len(suffix), index, len(value)) + suffix + value)
        parts.append(bytes(-(len(suffix) + len(value)) % 4))
    area = b"".join(parts)
    if _icount(area) > MAX_XATTR_ICOUNT:
        raise FormatError(f"entry {entry.path[:100]!r}: {len(area)} bytes of extended attributes")
    return area


def _split_xattr(name: bytes) -> tuple[int, bytes]:
    for index, prefix in XATTR_PREFIXES.items():
        if name.startswith(prefix):
            return index, name[len(prefix) :]
    raise FormatError(f"extended attribute {name[:100]!r} is not supported")


def _icount(area: bytes) -> int:
    return (len(area) - XATTR_HEADER.size) // 4 + 1 if area else 0


def _plan(node: Node) -> _Plan:
    entry = node.entry
    xattrs = encode_xattrs(entry)
    if node.is_dir:
        plan = _plan_directory(node, xattrs)
    elif stat.S_ISLNK(entry.mode):
        plan = _Plan(node, xattrs, [], len(entry.target), len(entry.target))
    elif stat.S_ISREG(entry.mode) and entry.size:
        return _Plan(node, xattrs, [], entry.size, CHUNK_INDEX.size)
    else:
        return _Plan(node, xattrs, [], 0)
    if (
        INODE_EXTENDED.size + len(xattrs)
    ) % BLOCK + plan.inline > BLOCK:  # would cross a block even at the start of one
        plan.inline = 0
        plan.full_blocks = -(-plan.size // BLOCK)
    return plan


def _plan_directory(node: Node, xattrs: bytes) -> _Plan:
    """Fill 4 KiB blocks with names in order; the last block, when partial, is the candidate for inlining."""
    names = sorted([*node.children, (b".", node), (b"..", node.parent or node)], key=lambda item: item[0])
    blocks: list[list[tuple[bytes, Node]]] = [[]]
    used = 0
    for item in names:
        need = DIRENT.size + len(item[0])
        if used + need > BLOCK:
            blocks.append([])
            used = 0
        blocks[-1].append(item)
        used += need
    full = len(blocks) - 1 if used < BLOCK else len(blocks)
    return _Plan(node, xattrs, blocks, (len(blocks) - 1) * BLOCK + used, used % BLOCK, full)


class _Space:
    """Hands out bytes of the inode area."""

    def __init__(self) -> None:
        self.end = META_START
        self._gaps: list[tuple[int, int]] = []

    def place(self, head: int, inline: int) -> int:
        """Where `head` + `inline` bytes go, slot aligned; `inline` does not cross a block."""
        size = head + inline
        for number, (start, end) in enumerate(self._gaps):
            if end - start >= size:
                self._gaps[number] = (_align(start + size), end)
                return start
        start = self.end
        if inline and (start + head) // BLOCK != (start + size - 1) // BLOCK:
            start = self._skip(start)
        self.end = _align(start + size)
        return start

    def _skip(self, start: int) -> int:
        """The next block's start, from where inline data always fits (`_plan`); the rest of this one becomes a gap."""
        following = -(-start // BLOCK) * BLOCK
        self._gaps = [*self._gaps[1 - _KEPT_GAPS :], (start, following)]
        return following


def _align(offset: int) -> int:
    return -(-offset // SLOT) * SLOT


def _place(plans: list[_Plan]) -> int:
    """Give every inode its nid and every full block its address; the bytes of the image."""
    space = _Space()
    for plan in plans:
        head = INODE_EXTENDED.size + len(plan.xattrs)
        if plan.inline == CHUNK_INDEX.size and stat.S_ISREG(plan.node.entry.mode):
            head = -(-head // CHUNK_INDEX.size) * CHUNK_INDEX.size
        plan.nid = space.place(head, plan.inline) // SLOT
    block = -(-space.end // BLOCK)
    for plan in plans:
        if plan.full_blocks:
            plan.blkaddr = block
            block += plan.full_blocks
    return block * BLOCK


def _emit(image: bytearray, plan: _Plan, number: int, nids: dict[int, int]) -> None:
    entry = plan.node.entry
    mtime, nsec = divmod(entry.mtime_ns, 1_000_000_000)
    layout, union, data = _content(plan, nids)
    at = plan.nid * SLOT
    INODE_EXTENDED.pack_into(
        *(image, at, layout, _icount(plan.xattrs), entry.mode, 0, plan.size, union, number),
        *(entry.uid, entry.gid, mtime, nsec, plan.node.nlink, b""),
    )
    at += INODE_EXTENDED.size
    image[at : at + len(plan.xattrs)] = plan.xattrs
    at += len(plan.xattrs)
    if layout == FORMAT_CHUNK:
        at = -(-at // CHUNK_INDEX.size) * CHUNK_INDEX.size
    split = plan.full_blocks * BLOCK
    blocks, inline = data[:split], data[split:]
    image[at : at + len(inline)] = inline
    at = plan.blkaddr * BLOCK
    image[at : at + len(blocks)] = blocks


def _content(plan: _Plan, nids: dict[int, int]) -> tuple[int, int, bytes]:
    """(i_format, i_u, data) of an inode; the data is what follows it and what its full blocks hold."""
    entry = plan.node.entry
    flat = FORMAT_INLINE if plan.inline else FORMAT_PLAIN
    if plan.node.is_dir:
        return flat, plan.blkaddr, b"".join(_directory_block(block, nids) for block in plan.blocks)[: plan.size]
    if stat.S_ISLNK(entry.mode):
        return flat, plan.blkaddr, entry.target
    if plan.inline:
        address = (entry.data_offset or 0) // BLOCK
        return FORMAT_CHUNK, chunk_format(entry.size), CHUNK_INDEX.pack(0, DEVICE_ID, address)
    is_device = stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode)
    return FORMAT_PLAIN, encode_dev(*entry.rdev) if is_device else 0, b""


def _directory_block(items: list[tuple[bytes, Node]], nids: dict[int, int]) -> bytes:
    """One block of a directory, zero padded: dirents, then names."""
    offset = DIRENT.size * len(items)
    dirents = []
    for name, node in items:
        dirents.append(DIRENT.pack(nids[id(node)], offset, FT_BY_IFMT[stat.S_IFMT(node.entry.mode)], 0))
        offset += len(name)
    return (b"".join(dirents) + b"".join(name for name, _ in items)).ljust(BLOCK, b"\0")
