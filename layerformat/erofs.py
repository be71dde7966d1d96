"""EROFS on-disk definitions, in the spelling of Linux `fs/erofs/erofs_fs.h`, and the subset of them that we write.

https://docs.kernel.org/filesystems/erofs.html. The subset: 4 KiB blocks; one extra device, the layer's tar; extended
inodes; regular files chunk-based with one chunk index; directories and symlinks flat, the last partial block inline
where it fits; extended attributes inline. docs/FORMAT.md states it in full.
"""

import stat
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

EROFS_SUPER_OFFSET: Final = 1024
EROFS_SUPER_MAGIC_V1: Final = 0xE0F5E1E2
EROFS_FEATURE_COMPAT_SB_CHKSUM: Final = 0x1
EROFS_FEATURE_COMPAT_MTIME: Final = 0x2
EROFS_FEATURE_INCOMPAT_CHUNKED_FILE: Final = 0x4
EROFS_FEATURE_INCOMPAT_DEVICE_TABLE: Final = 0x8
EROFS_ISLOTBITS: Final = 5  # an inode number counts 32-byte slots
EROFS_DEVT_SLOT_SIZE: Final = 128

BLKSZBITS: Final = 12
BLOCK: Final = 1 << BLKSZBITS
SLOT: Final = 1 << EROFS_ISLOTBITS
MAX_DEVICE_BYTES: Final = (
    BLOCK << 31
)  # the largest chunk, so that one covers any file; block addresses would do for twice
DEVICE_ID: Final = 1  # of the tar: the first slot of the device table
FEATURE_COMPAT: Final = EROFS_FEATURE_COMPAT_SB_CHKSUM | EROFS_FEATURE_COMPAT_MTIME
FEATURE_INCOMPAT: Final = EROFS_FEATURE_INCOMPAT_CHUNKED_FILE | EROFS_FEATURE_INCOMPAT_DEVICE_TABLE

# struct erofs_super_block, 128 bytes: magic, checksum, feature_compat, blkszbits, sb_extslots, root_nid, inos, epoch,
# fixed_nsec, blocks, meta_blkaddr, xattr_blkaddr, uuid, volume_name, feature_incompat, u1, extra_devices, devt_slotoff,
# dirblkbits, xattr_prefix_count, xattr_prefix_start, packed_nid, reserved
SUPER_BLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24s")
# struct erofs_deviceslot, 128 bytes: tag, blocks, mapped_blkaddr, reserved
DEVICE_SLOT: Final = struct.Struct("<64sII56s")
# struct erofs_inode_extended, 64 bytes: see Inode
INODE_EXTENDED: Final = struct.Struct("<HHHHQIIIIqII16s")
# struct erofs_dirent, 12 bytes: nid, nameoff, file_type, reserved
DIRENT: Final = struct.Struct("<QHBB")
# struct erofs_inode_chunk_index, 8 bytes: advise, device_id, blkaddr
CHUNK_INDEX: Final = struct.Struct("<HHI")
# An inode that a chunk index follows at once: it has no extended attributes.
ORDINARY_FILE: Final = struct.Struct(INODE_EXTENDED.format + CHUNK_INDEX.format.removeprefix("<"))
# struct erofs_xattr_ibody_header, 12 bytes: name filter, shared count, reserved
XATTR_HEADER: Final = struct.Struct("<IB7s")
# struct erofs_xattr_entry, 4 bytes before name and value: name_len, name_index, value_size
XATTR_ENTRY: Final = struct.Struct("<BBH")

assert SUPER_BLOCK.size == 128 and DEVICE_SLOT.size == EROFS_DEVT_SLOT_SIZE
assert INODE_EXTENDED.size == 64 and DIRENT.size == 12 and CHUNK_INDEX.size == 8 and ORDINARY_FILE.size == 72
assert XATTR_HEADER.size == 12 and XATTR_ENTRY.size == 4

DEVT_SLOTOFF: Final = (EROFS_SUPER_OFFSET + SUPER_BLOCK.size) // EROFS_DEVT_SLOT_SIZE
META_START: Final = (DEVT_SLOTOFF + 1) * EROFS_DEVT_SLOT_SIZE  # byte where the first inode may be
assert META_START % SLOT == 0

EROFS_INODE_LAYOUT_EXTENDED: Final = 1  # bit 0 of i_format; the data layout follows from bit 1
EROFS_INODE_FLAT_PLAIN: Final = 0
EROFS_INODE_FLAT_INLINE: Final = 2
EROFS_INODE_CHUNK_BASED: Final = 4
FORMAT_PLAIN: Final = EROFS_INODE_LAYOUT_EXTENDED | EROFS_INODE_FLAT_PLAIN << 1
FORMAT_INLINE: Final = EROFS_INODE_LAYOUT_EXTENDED | EROFS_INODE_FLAT_INLINE << 1
FORMAT_CHUNK: Final = EROFS_INODE_LAYOUT_EXTENDED | EROFS_INODE_CHUNK_BASED << 1

EROFS_CHUNK_FORMAT_BLKBITS_MASK: Final = 0x1F
EROFS_CHUNK_FORMAT_INDEXES: Final = 0x20

FT_BY_IFMT: Final = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}

# EROFS_XATTR_INDEX_*: the name is stored without its prefix. The ACLs are whole names.
XATTR_PREFIXES: Final = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
MAX_XATTR_ICOUNT: Final = 0xFFFF


class Inode(NamedTuple):
    """struct erofs_inode_extended. A NamedTuple, not a dataclass: a layer's admission unpacks tens of thousands."""

    i_format: int
    i_xattr_icount: int
    i_mode: int
    i_reserved: int
    i_size: int
    i_u: int  # raw_blkaddr, rdev, or the chunk format
    i_ino: int  # only shown to 32-bit callers
    i_uid: int
    i_gid: int
    i_mtime: int  # seconds, signed
    i_mtime_nsec: int
    i_nlink: int
    i_reserved2: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperBlock:
    """The fields that differ between our images; everything else is fixed."""

    root_nid: int
    inos: int
    blocks: int  # of the metadata image
    device_blocks: int  # of the tar

    def pack(self) -> bytes:
        """Super block (checksum 0) and device table: bytes 1024 to META_START of an image."""
        super_block = SUPER_BLOCK.pack(
            *(EROFS_SUPER_MAGIC_V1, 0, FEATURE_COMPAT, BLKSZBITS, 0, self.root_nid, self.inos, 0),
            *(0, self.blocks, 0, 0, b"", b"", FEATURE_INCOMPAT, 0, 1, DEVT_SLOTOFF),
            *(0, 0, 0, 0, b""),
        )
        return super_block + DEVICE_SLOT.pack(b"", self.device_blocks, 0, b"")


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C: Final = _crc32c_table()


def checksum(first_block: bytes | bytearray) -> int:
    """The super block's checksum: crc32c (seed ~0, not inverted) of the first block from 1024 on, the field as 0."""
    data = bytearray(first_block[EROFS_SUPER_OFFSET:BLOCK])
    data[4:8] = bytes(4)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc


def xattr_bytes(icount: int) -> int:
    """Bytes of the inline attribute area of an inode whose i_xattr_icount is `icount`."""
    return XATTR_HEADER.size + (icount - 1) * XATTR_ENTRY.size if icount else 0


def chunk_format(size: int) -> int:
    """The chunk format whose one chunk is the smallest that holds `size` > 0 bytes."""
    return EROFS_CHUNK_FORMAT_INDEXES | max((size - 1).bit_length() - BLKSZBITS, 0)


def encode_dev(major: int, minor: int) -> int:
    """new_encode_dev() of the kernel."""
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_dev(device: int) -> tuple[int, int]:
    """(major, minor): new_decode_dev() of the kernel."""
    return device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00
