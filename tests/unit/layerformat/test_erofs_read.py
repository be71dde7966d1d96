"""Images that an attacker may send: each is refused, with the reason, before the kernel sees it."""

import stat
import struct
from collections.abc import Callable
from typing import Any

import pytest

from layerformat.entries import Entry
from layerformat.erofs import BLOCK, FORMAT_CHUNK, FORMAT_INLINE, FORMAT_PLAIN, SLOT
from layerformat.erofs_parse import parse_super_block
from layerformat.erofs_read import read_metadata, validate_metadata
from layerformat.erofs_write import build_metadata
from layerformat.errors import FormatError
from tests.unit.layerformat.hostile import Image

DEVICE_BYTES = 64 * BLOCK
REG, DIR, LNK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def entry(path: bytes, mode: int = REG, **fields: Any) -> Entry:
    return Entry(path=path, mode=mode, **{"uid": 0, "gid": 0, "mtime_ns": 0, **fields})


def base() -> Image:
    """A small image in which everything but the directory `large` is inline."""
    entries = [
        entry(b"a", size=5000, data_offset=BLOCK),
        entry(b"b", size=BLOCK, data_offset=3 * BLOCK, xattrs={b"user.a": b"12345", b"user.b": b""}),
        entry(b"c", link=b"a"),
        entry(b"d/e/f", DIR),
        entry(b"d/g", DIR),
        entry(b"empty"),
        entry(b"fifo", stat.S_IFIFO | 0o600),
        entry(b"link", LNK, target=b"target"),
        entry(b"long", LNK, target=b"t" * 4090),
        entry(b"long2", LNK, target=b"t" * 4090),
        entry(b"solo", size=1, data_offset=10 * BLOCK),
        entry(b"pad", size=1, data_offset=9 * BLOCK, xattrs={b"user.a": b""}),
        *(entry(b"plain/%03d" % n + b"x" * 97) for n in range(36)),
        entry(b"null", stat.S_IFCHR | 0o666, rdev=(1, 3)),
        *(entry(b"large/%03d" % n) for n in range(300)),
    ]
    return Image(build_metadata(entries, device_bytes=DEVICE_BYTES))


def nid_bytes(nid: int) -> bytes:
    return struct.pack("<Q", nid)


def repoint(image: Image, directory: bytes, name: bytes, nid: int, file_type: int | None = None) -> Image:
    """Let a name lead to another inode."""
    at = image.dirent(directory, name).at
    image.write(at, nid_bytes(nid))
    return image if file_type is None else image.write(at + 10, bytes([file_type]))


def rename(image: Image, directory: bytes, old: bytes, new: bytes) -> Image:
    return image.write(image.dirent(directory, old).name_at, new)


def chunk(image: Image, path: bytes, advise: int, device: int, block: int) -> Image:
    return image.write(image.find(path).inline_at, struct.pack("<HHI", advise, device, block))


def clear(image: Image, path: bytes) -> Image:
    """Zeros instead of an inode and what follows it."""
    place = image.find(path)
    return image.write(place.nid * SLOT, bytes(place.end - place.nid * SLOT))


def move(image: Image, path: bytes, size: int, at: int) -> Image:
    """The first `size` bytes of an inode to another place, where the name in the root directory leads."""
    nid = image.find(path).nid
    head = image.data[nid * SLOT : nid * SLOT + size]
    clear(image, path)
    return repoint(image.write(at, head), b"", path, at // SLOT)


def without_dot_dot(image: Image) -> Image:
    place = image.find(b"d/g")
    image.set_inode(b"d/g", i_size=13)
    only_dot = struct.pack("<QHBB", place.nid, 12, 2, 0) + b"."
    return image.write(place.inline_at, only_dot.ljust(place.end - place.inline_at, b"\0"))


def symlink_across_blocks(image: Image) -> Image:
    at = image.append(b"") + BLOCK - 96
    image.append(b"t" * 68)
    image.write(at + 64, b"t" * 32)
    return move(image, b"link", 64, at).set_inode(b"link", i_size=100)


def shared_block(image: Image) -> Image:
    """Two symlinks in one block, and nothing where the second was."""
    image.write(image.find(b"long2").blocks_at, bytes(BLOCK))
    return image.set_inode(b"long2", i_u=image.find(b"long").inode.i_u)


def test_base_is_valid() -> None:
    image = base()
    validate_metadata(image.data, device_bytes=DEVICE_BYTES)
    assert image.find(b"long").blocks_end and image.find(b"large").blocks_end
    assert image.find(b"plain").inode.i_format == FORMAT_PLAIN and image.find(b"plain").inode.i_size % BLOCK
    assert image.find(b"").inode.i_format == FORMAT_INLINE


ATTACKS: dict[str, Callable[[Image], Image]] = {
    # directories
    "directory is its own child": lambda i: repoint(i, b"d", b"e", i.find(b"d").nid),
    "directory leads to the root": lambda i: repoint(i, b"d/e", b"f", i.root_nid),
    "directory with two names": lambda i: repoint(i, b"d", b"g", i.find(b"d/e").nid),
    "dot leads elsewhere": lambda i: repoint(i, b"d", b".", i.find(b"d/e").nid),
    "dot dot leads elsewhere": lambda i: repoint(i, b"d/e", b"..", i.root_nid),
    "root's dot dot leads down": lambda i: repoint(i, b"", b"..", i.find(b"d").nid),
    "dot is a file": lambda i: i.write(i.dirent(b"d", b".").at + 10, b"\1"),
    "no dot": lambda i: rename(i, b"d", b".", b"!"),
    "no dot dot": lambda i: rename(i, b"d", b"..", b".a"),
    "name twice": lambda i: rename(i, b"d", b"g", b"e"),
    "names out of order": lambda i: rename(i, b"", b"b", b"z"),
    "slash in a name": lambda i: rename(i, b"", b"fifo", b"fi/o"),
    "NUL in a name": lambda i: rename(i, b"", b"fifo", b"fi\0o"),
    "NUL at the end of a name": lambda i: rename(i, b"", b"null", b"nul\0"),
    "file named as a directory": lambda i: i.write(i.dirent(b"", b"empty").at + 10, b"\2"),
    "directory named as a file": lambda i: i.write(i.dirent(b"d", b"g").at + 10, b"\1"),
    "unknown file type": lambda i: i.write(i.dirent(b"", b"empty").at + 10, b"\x08"),
    "reserved byte of a dirent": lambda i: i.write(i.dirent(b"", b"empty").at + 11, b"\1"),
    "links that differ in type": lambda i: i.write(i.dirent(b"", b"c").at + 10, b"\5"),
    "number of links": lambda i: i.set_inode(b"a", i_nlink=1),
    "number of subdirectories": lambda i: i.set_inode(b"d", i_nlink=3),
    "names start beyond the block": lambda i: i.write(i.find(b"d").inline_at + 8, b"\xfc\x0f"),
    "names start inside a dirent": lambda i: i.write(i.find(b"d").inline_at + 8, b"\x31\0"),
    "names start nowhere": lambda i: i.write(i.find(b"d").inline_at + 8, b"\0\0"),
    "name offset goes back": lambda i: i.write(i.dirent(b"d", b"g").at + 8, b"\x10\0"),
    "name offset beyond": lambda i: i.write(i.dirent(b"d", b"g").at + 8, b"\xff\xff"),
    "empty directory": lambda i: i.set_inode(b"d/g", i_size=0, i_format=FORMAT_PLAIN),
    "tiny directory": lambda i: i.set_inode(b"d/g", i_size=12),
    "chunked directory": lambda i: i.set_inode(b"d", i_format=FORMAT_CHUNK),
    "directory of 16 EiB": lambda i: i.set_inode(b"large", i_size=2**64 - 1),
    "directory blocks on the super block": lambda i: i.set_inode(b"large", i_u=0),
    "directory blocks on the inodes": lambda i: i.set_inode(b"large", i_u=1),
    "directory blocks beyond": lambda i: i.set_inode(b"large", i_u=0xFFFFFFFF),
    "address without blocks": lambda i: i.set_inode(b"d", i_u=1),
    "padding of a directory block": lambda i: i.write(i.find(b"large").blocks_at + BLOCK - 1, b"x"),
    "padding of a directory's last block": lambda i: i.write(i.find(b"plain").blocks_end - 1, b"x"),
    "root is its own child": lambda i: repoint(i, b"", b"d", i.root_nid),
    "fifo named as a directory": lambda i: i.set_inode(b"d/g", i_mode=stat.S_IFIFO),
    "only a dot": without_dot_dot,
    "directory of 5 bytes": lambda i: i.set_inode(b"d/g", i_size=5),
    # inodes
    "inode before the inode area": lambda i: repoint(i, b"", b"empty", 32),
    "inode beyond": lambda i: repoint(i, b"", b"empty", 2**63),
    "inode half beyond": lambda i: repoint(i, b"", b"empty", len(i.data) // SLOT - 1),
    "inode in the middle of another": lambda i: repoint(i, b"", b"empty", i.find(b"large").nid + 2),
    "inode in a directory's names": lambda i: repoint(i, b"", b"empty", i.find(b"large").blocks_at // SLOT),
    "compact inode": lambda i: i.set_inode(b"empty", i_format=0),
    "compressed inode": lambda i: i.set_inode(b"empty", i_format=1 | 1 << 1),
    "compact compressed inode": lambda i: i.set_inode(b"empty", i_format=1 | 3 << 1),
    "unknown layout": lambda i: i.set_inode(b"empty", i_format=1 | 5 << 1),
    "unknown format bit": lambda i: i.set_inode(b"empty", i_format=0x11),
    "reserved field": lambda i: i.set_inode(b"empty", i_reserved=1),
    "second reserved field": lambda i: i.set_inode(b"empty", i_reserved2=b"\1" + bytes(15)),
    "no file type": lambda i: i.set_inode(b"empty", i_mode=0o644),
    "type of name and mode differ": lambda i: i.set_inode(b"empty", i_mode=stat.S_IFIFO),
    "nanoseconds": lambda i: i.set_inode(b"empty", i_mtime_nsec=10**9),
    "no uid": lambda i: i.set_inode(b"empty", i_uid=0xFFFFFFFF),
    "no gid": lambda i: i.set_inode(b"empty", i_gid=0xFFFFFFFF),
    "number": lambda i: i.set_inode(b"empty", i_ino=10**6),
    "number 0": lambda i: i.set_inode(b"empty", i_ino=0),
    "inode ends with the image, its chunk index is beyond": lambda i: move(i, b"solo", 64, i.append(b"") + BLOCK - 64),
    # files
    "chunk of the metadata": lambda i: chunk(i, b"a", 0, 0, 1),
    "chunk of a second device": lambda i: chunk(i, b"a", 0, 2, 1),
    "chunk with advice": lambda i: chunk(i, b"a", 1, 1, 1),
    "chunk beyond the tar": lambda i: chunk(i, b"a", 0, 1, DEVICE_BYTES // BLOCK - 1),
    "hole": lambda i: chunk(i, b"a", 0, 1, 0xFFFFFFFF),
    "chunks that overlap": lambda i: chunk(i, b"b", 0, 1, 2),
    "file larger than the tar": lambda i: i.set_inode(b"a", i_size=DEVICE_BYTES + 1, i_u=0x20 | 7),
    "file of 16 EiB": lambda i: i.set_inode(b"a", i_size=2**64 - 1),
    "chunk format without indexes": lambda i: i.set_inode(b"a", i_u=1),
    "chunk too small": lambda i: i.set_inode(b"a", i_u=0x20),
    "chunk too large": lambda i: i.set_inode(b"a", i_u=0x3F),
    "unknown chunk format": lambda i: i.set_inode(b"a", i_u=0x61),
    "reserved half of the chunk format": lambda i: i.set_inode(b"a", i_u=1 << 16 | 0x21),
    "chunked and empty": lambda i: i.set_inode(b"a", i_size=0),
    "chunked and empty, of the right format": lambda i: i.set_inode(b"a", i_size=0, i_u=0x20),
    "padding before the chunk index": lambda i: i.write(i.find(b"pad").inline_at - 4, b"x"),
    "flat file with data": lambda i: i.set_inode(b"empty", i_size=1),
    "inline file": lambda i: i.set_inode(b"empty", i_size=1, i_format=FORMAT_INLINE),
    "address of an empty file": lambda i: i.set_inode(b"empty", i_u=1),
    "device number of a fifo": lambda i: i.set_inode(b"fifo", i_u=1),
    "fifo with data": lambda i: i.set_inode(b"fifo", i_size=1),
    "chunked device": lambda i: i.set_inode(b"null", i_format=FORMAT_CHUNK),
    # symlinks
    "symlink of 0 bytes": lambda i: i.set_inode(b"link", i_size=0, i_format=FORMAT_PLAIN),
    "symlink with a NUL": lambda i: i.write(i.find(b"link").inline_at, b"\0"),
    "symlink too long": lambda i: i.set_inode(b"long", i_size=4096),
    "symlink longer than its data": lambda i: i.set_inode(b"long", i_size=4091),
    "symlink shorter than its data": lambda i: i.set_inode(b"long", i_size=4089),
    "symlink across a block": lambda i: i.set_inode(b"link", i_size=4000),
    "symlink on another's data": lambda i: i.set_inode(b"long", i_u=i.find(b"large").inode.i_u),
    "symlink across a block at the end": symlink_across_blocks,
    "symlinks in the same block": shared_block,
    "symlink of a whole block": lambda i: i.write(i.find(b"long").blocks_at, b"t" * BLOCK).set_inode(
        b"long", i_size=BLOCK
    ),
    # extended attributes
    "attributes beyond": lambda i: i.set_inode(b"b", i_xattr_icount=0xFFFF),
    "attributes cut": lambda i: i.set_inode(b"b", i_xattr_icount=i.find(b"b").inode.i_xattr_icount - 1),
    "attributes of nothing": lambda i: i.set_inode(b"b", i_xattr_icount=1),
    "shared attributes": lambda i: i.write(i.find(b"b").xattrs_at + 4, b"\1"),
    "attribute filter": lambda i: i.write(i.find(b"b").xattrs_at, b"\1"),
    "attribute name beyond": lambda i: i.write(i.find(b"b").xattrs_at + 12, b"\xff"),
    "attribute value beyond": lambda i: i.write(i.find(b"b").xattrs_at + 14, b"\xff\xff"),
    "attribute prefix": lambda i: i.write(i.find(b"b").xattrs_at + 13, b"\x05"),
    "long attribute prefix": lambda i: i.write(i.find(b"b").xattrs_at + 13, b"\x81"),
    "attribute without name": lambda i: i.write(i.find(b"b").xattrs_at + 12, b"\0\1\6\0"),
    "attributes out of order": lambda i: i.write(i.find(b"b").xattrs_at + 16, b"c"),
    "attribute twice": lambda i: i.write(i.find(b"b").xattrs_at + 16, b"b"),
    "attribute padding": lambda i: i.write(i.find(b"b").xattrs_at + 22, b"x"),
    # the whole
    "bytes that belong to nothing": lambda i: (i.append(b"payload"), i)[1],
    "bytes after an inode": lambda i: i.write(i.find(b"a").end, b"x"),
    "bytes before the super block": lambda i: i.write(0, b"\x7fELF"),
    "one more inode": lambda i: i.write(1024 + 16, struct.pack("<Q", parse_super_block(i.data).inos + 1)),
    "number of inodes": lambda i: i.write(1024 + 16, b"\1"),
    "magic": lambda i: i.write(1024, b"\0"),
    "compatible feature": lambda i: i.write(1024 + 8, b"\7"),
    "block size": lambda i: i.write(1024 + 12, b"\x09"),
    "root beyond": lambda i: i.write(1024 + 14, b"\xff\xff"),
    "root is a file": lambda i: i.write(1024 + 14, struct.pack("<H", i.find(b"empty").nid)),
    "root is another directory": lambda i: i.write(1024 + 14, struct.pack("<H", i.find(b"d").nid)),
    "number of blocks": lambda i: i.write(1024 + 36, b"\xff"),
    "place of the inodes": lambda i: i.write(1024 + 40, b"\1"),
    "incompatible feature": lambda i: i.write(1024 + 80, b"\x0e"),
    "no extra device": lambda i: i.write(1024 + 86, b"\0"),
    "two extra devices": lambda i: i.write(1024 + 86, b"\2"),
    "device table elsewhere": lambda i: i.write(1024 + 88, b"\x0a"),
    "packed inode": lambda i: i.write(1024 + 96, b"\x28"),
    "device tag": lambda i: i.write(1152, b"/etc/shadow"),
    "device mapped into the image": lambda i: i.write(1152 + 68, b"\1"),
    "device of another size": lambda i: i.write(1152 + 64, b"\x41"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_image(name: str) -> None:
    before = base()
    image = ATTACKS[name](base()).data
    assert image != before.data
    with pytest.raises(FormatError, match="EROFS"):
        validate_metadata(image, device_bytes=DEVICE_BYTES)
    if name != "device of another size":  # read_metadata knows no other size than the image's own
        with pytest.raises(FormatError, match="EROFS"):
            list(read_metadata(image))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("root is its own child", "two names"),
        ("directory with two names", "two names"),
        ("fifo named as a directory", "is none"),
        ("only a dot", "directory without"),
        ("inode before the inode area", "outside the image"),
        ("inode ends with the image, its chunk index is beyond", "beyond the image"),
        ("directory blocks beyond", "beyond the image"),
        ("symlink across a block at the end", "crosses a block"),
        ("symlinks in the same block", "share byte"),
        ("chunks that overlap", "share block"),
        ("chunk beyond the tar", "not inside the tar"),
        ("chunked directory", "chunked"),
        ("name offset beyond", "name offset"),
        ("attribute prefix", "unknown prefix"),
        ("one more inode", "inodes stated"),
        ("bytes that belong to nothing", "belong to nothing"),
    ],
)
def test_reason(name: str, reason: str) -> None:
    """Where several checks would refuse an image, the one that is meant for it does, and says so."""
    with pytest.raises(FormatError, match=reason):
        validate_metadata(ATTACKS[name](base()).data, device_bytes=DEVICE_BYTES)


def test_checksum_is_checked() -> None:
    image = bytearray(base().data)
    image[1024 + 4] ^= 1
    with pytest.raises(FormatError, match="checksum"):
        validate_metadata(bytes(image), device_bytes=DEVICE_BYTES)


@pytest.mark.parametrize("length", [0, 1, 1024, 1280, 4095, 4097])
def test_truncated_image(length: int) -> None:
    with pytest.raises(FormatError):
        validate_metadata(base().data[:length], device_bytes=DEVICE_BYTES)


def test_image_is_whole_blocks() -> None:
    with pytest.raises(FormatError, match="EROFS image of"):
        validate_metadata(base().data + bytes(32), device_bytes=DEVICE_BYTES)


@pytest.mark.parametrize("blocks", [0, (1 << 31) + 1])
def test_tar_sizes_that_are_not_allowed(blocks: int) -> None:
    image = base().write(1152 + 64, struct.pack("<I", blocks))
    with pytest.raises(FormatError, match="device size"):
        validate_metadata(image.data, device_bytes=blocks * BLOCK)


def test_name_of_256_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerformat.entries.MAX_NAME_BYTES", 1000)  # what the writer refuses
    image = build_metadata([entry(b"n" * 256)], device_bytes=DEVICE_BYTES)
    with pytest.raises(FormatError, match="name"):
        validate_metadata(image, device_bytes=DEVICE_BYTES)


def test_another_tar_size() -> None:
    with pytest.raises(FormatError, match="tar of 64 blocks"):
        validate_metadata(base().data, device_bytes=DEVICE_BYTES + BLOCK)


@pytest.mark.parametrize(("last", "valid"), [(b"n" * 255, True), (b"n" * 254 + b"/m", False)])
@pytest.mark.parametrize("mode", [REG, DIR])
def test_path_longer_than_the_kernel_takes(
    monkeypatch: pytest.MonkeyPatch, last: bytes, mode: int, *, valid: bool
) -> None:
    monkeypatch.setattr("layerformat.entries.MAX_PATH_BYTES", 10_000)  # what the writer refuses; the reader has its own
    path = b"/".join([b"n" * 255] * 15 + [last])
    image = build_metadata([entry(path, mode)], device_bytes=DEVICE_BYTES)
    if valid:
        validate_metadata(image, device_bytes=DEVICE_BYTES)
    else:
        with pytest.raises(FormatError, match="path too long"):
            validate_metadata(image, device_bytes=DEVICE_BYTES)


def test_depth_is_no_recursion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerformat.entries.MAX_PATH_BYTES", 100_000)
    image = build_metadata([entry(b"/".join([b"d"] * 20_000), DIR)], device_bytes=DEVICE_BYTES)
    with pytest.raises(FormatError, match="path too long"):
        validate_metadata(image, device_bytes=DEVICE_BYTES)
