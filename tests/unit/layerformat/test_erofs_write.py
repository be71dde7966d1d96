import os
import random
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerformat.entries import Entry
from layerformat.erofs import BLOCK, META_START, checksum, decode_dev, encode_dev
from layerformat.erofs_parse import locate, parse_super_block
from layerformat.erofs_read import read_metadata, validate_metadata
from layerformat.erofs_write import build_metadata
from layerformat.errors import FormatError
from tests.unit.layerformat.corpus import make_corpus

REG, DIR, LNK, CHR = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777, stat.S_IFCHR | 0o600
MIB = 1 << 20


def entry(path: bytes, mode: int = REG, **fields: Any) -> Entry:
    return Entry(path=path, mode=mode, **{"uid": 0, "gid": 0, "mtime_ns": 0, **fields})


def file(path: bytes, block: int, size: int = 1, **fields: Any) -> Entry:
    return entry(path, size=size, data_offset=block * BLOCK, **fields)


def build(*entries: Entry, device_bytes: int = MIB) -> bytes:
    image = build_metadata(entries, device_bytes=device_bytes)
    validate_metadata(image, device_bytes=device_bytes)
    return image


def read(image: bytes) -> dict[bytes, Entry]:
    return {found.path: found for found in read_metadata(image)}


def resolved(entries: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """Each name with the inode it stands for."""

    def resolve(path: bytes) -> Entry:
        found = entries[path]
        return replace(found, path=path) if found.link is None else replace(resolve(found.link), path=path)

    return {path: resolve(path) for path in entries}


def test_corpus_round_trip() -> None:
    corpus = make_corpus()
    given = {e.path: e for e in corpus.entries}
    image = build(*corpus.entries, device_bytes=corpus.device_bytes)
    found = resolved(read(image))
    assert set(given) <= set(found)
    for path, expected in resolved(given).items():
        assert found[path] == expected, path
    made = set(found) - set(given)
    assert {b"files", b"names", b"deep", b"dirs", b"dirs/3000"} <= made
    assert all((found[p].mode, found[p].uid, found[p].mtime_ns) == (DIR, 0, 0) for p in made)


def test_parents_come_before_children() -> None:
    corpus = make_corpus()
    seen = set()
    for found in read_metadata(build(*corpus.entries, device_bytes=corpus.device_bytes)):
        assert found.path == b"" or found.path.rpartition(b"/")[0] in seen
        seen.add(found.path)


def test_order_of_entries_does_not_matter() -> None:
    corpus = make_corpus()
    expected = build_metadata(corpus.entries, device_bytes=corpus.device_bytes)
    for seed in range(3):
        random.Random(seed).shuffle(corpus.entries)
        assert build_metadata(corpus.entries, device_bytes=corpus.device_bytes) == expected


def test_bytes_depend_on_nothing_but_the_entries() -> None:
    """Not on hash seed, locale, time zone or umask: two processes that differ in all of them agree."""
    program = (
        "import hashlib; from tests.unit.layerformat.corpus import make_corpus as m;"
        "from layerformat.erofs_write import build_metadata as b; c = m();"
        "print(hashlib.sha256(b(c.entries, device_bytes=c.device_bytes)).hexdigest())"
    )
    environments = (
        {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"},
        {"PYTHONHASHSEED": "2", "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo"},
    )
    root = Path(__file__).parents[3]
    digests = [
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, **env}, umask=umask, cwd=root, check=True, stdout=-1
        ).stdout
        for env, umask in zip(environments, (0o022, 0o777), strict=True)
    ]
    assert digests[0] == digests[1] != b""


def test_last_entry_of_a_path_wins() -> None:
    found = read(build(file(b"a", 1, mtime_ns=1), file(b"a", 2, size=9, mtime_ns=2)))
    assert (found[b"a"].data_offset, found[b"a"].size, found[b"a"].mtime_ns) == (2 * BLOCK, 9, 2)


def test_no_entries_at_all() -> None:
    found = read(build())
    assert list(found) == [b""] and found[b""].mode == DIR


def test_link_counts() -> None:
    image = build(file(b"a", 1), entry(b"b", link=b"a"), entry(b"d/c", link=b"b"), entry(b"d/e", DIR), entry(b"f", DIR))
    super_block = parse_super_block(image)
    assert super_block.inos == 5
    assert locate(image, super_block.root_nid).inode.i_nlink == 4
    links = {e.path: e.link for e in read_metadata(image)}
    assert [path for path in (b"a", b"b", b"d/c") if links[path] is None] == [b"a"]


def test_small_directories_cost_no_block() -> None:
    tree = [entry(b"d%03d/f%d" % (d, f)) for d in range(500) for f in range(5)]
    image = build(*tree)
    # 500 directories of 64 + 102 bytes, 2,500 empty files of 64, all in slots of 32
    assert len(image) < 1.03 * (500 * 192 + 2500 * 64) + 6 * BLOCK


def test_root_number_fits_the_super_block_whatever_the_root_holds() -> None:
    root = entry(b"", DIR, xattrs={b"user.%d" % n: b"x" * 60_000 for n in range(4)})
    image = build(root, *(entry(b"%05d" % n) for n in range(5000)))
    assert parse_super_block(image).root_nid <= 0xFFFF
    assert read(image)[b""].xattrs == root.xattrs


@pytest.mark.parametrize("size", [4 << 30, (4 << 30) + 1, 5 << 30, 1 << 43])
def test_large_files_take_one_chunk(size: int) -> None:
    image = build(entry(b"large", size=size, data_offset=0), device_bytes=size + -size % BLOCK)
    assert read(image)[b"large"].size == size
    assert len(image) == BLOCK


def test_hundred_thousand_names_in_a_directory_are_quick() -> None:
    names = [file(b"d/%06d" % n, n) for n in range(100_000)]
    started = time.process_time()
    image = build_metadata(names, device_bytes=100_000 * BLOCK)
    built = time.process_time()
    validate_metadata(image, device_bytes=100_000 * BLOCK)
    validated = time.process_time()
    assert built - started < 10 and validated - built < 5  # about 1 s and 0.4 s
    assert sum(1 for _ in read_metadata(image)) == 100_002


def test_checksum_is_crc32c() -> None:
    """The check value of CRC-32C over "123456789" is 0xE3069283, inverted at the end; the super block's is not."""
    assert checksum(b"\0" * BLOCK) == checksum(bytes(1028) + b"\xff" * 4 + bytes(BLOCK - 1032))
    crc = 0xFFFFFFFF
    for byte in bytes(BLOCK - 1024):
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert checksum(bytes(BLOCK)) == crc


@pytest.mark.parametrize("device", [(0, 0), (1, 3), (8, 255), (8, 256), (259, 300), (4095, 1_048_575)])
def test_device_numbers(device: tuple[int, int]) -> None:
    encoded = encode_dev(*device)
    assert decode_dev(encoded) == device and 0 <= encoded < 1 << 32
    if device[0] < 256 and device[1] < 256:
        assert encoded == device[0] << 8 | device[1]


def test_first_inode_follows_the_device_table() -> None:
    assert parse_super_block(build()).root_nid * 32 == META_START == 1280


REFUSED = {
    "absolute path": [entry(b"/a")],
    "trailing slash": [entry(b"a/")],
    "empty name": [entry(b"a//b")],
    "dot": [entry(b"a/./b")],
    "dot dot": [entry(b"../a")],
    "NUL in a name": [entry(b"a\0b")],
    "name of 256 bytes": [entry(b"n" * 256)],
    "path of 4096 bytes": [entry(b"/".join([b"n" * 255] * 15 + [b"n" * 254, b"m"]))],
    "file type": [entry(b"a", 0o644)],
    "mode": [entry(b"a", 1 << 20 | REG)],
    "uid": [entry(b"a", uid=1 << 32)],
    "no uid": [entry(b"a", uid=0xFFFFFFFF)],
    "negative gid": [entry(b"a", gid=-1)],
    "mtime": [entry(b"a", mtime_ns=(1 << 63) * 10**9)],
    "unaligned data": [entry(b"a", size=1, data_offset=512)],
    "data without place": [entry(b"a", size=1)],
    "data before the tar": [entry(b"a", size=1, data_offset=-BLOCK)],
    "data beyond the tar": [entry(b"a", size=MIB + 1, data_offset=0)],
    "negative size": [entry(b"a", size=-1, data_offset=0)],
    "shared data": [file(b"a", 1, size=BLOCK + 1), file(b"b", 2)],
    "empty symlink": [entry(b"a", LNK)],
    "long symlink": [entry(b"a", LNK, target=b"t" * 4096)],
    "NUL in a symlink": [entry(b"a", LNK, target=b"t\0")],
    "major": [entry(b"a", CHR, rdev=(4096, 0))],
    "minor": [entry(b"a", CHR, rdev=(0, 1 << 20))],
    "link to nothing": [entry(b"a", link=b"b")],
    "link to itself": [entry(b"a", link=b"a")],
    "link loop": [entry(b"a", link=b"b"), entry(b"b", link=b"a")],
    "link to a directory": [entry(b"d", DIR), entry(b"a", link=b"d")],
    "link outside": [entry(b"a", link=b"../b")],
    "root as a link": [entry(b"a"), entry(b"", link=b"a")],
    "root as a file": [entry(b"")],
    "file below a file": [entry(b"a"), entry(b"a/b")],
    "file below a link": [entry(b"a"), entry(b"l", link=b"a"), entry(b"l/b")],
    "xattr prefix": [entry(b"a", xattrs={b"com.apple.x": b""})],
    "xattr without name": [entry(b"a", xattrs={b"user.": b""})],
    "xattr with a NUL": [entry(b"a", xattrs={b"user.\0": b""})],
    "xattr value": [entry(b"a", xattrs={b"user.a": b"x" * 65_536})],
    "xattrs in all": [entry(b"a", xattrs={b"user.%d" % n: b"x" * 65_000 for n in range(5)})],
    "system xattr": [entry(b"a", xattrs={b"system.posix_acl_accessory": b""})],
    "overlay redirect": [entry(b"a", DIR, xattrs={b"trusted.overlay.redirect": b"/x"})],
    "opaque file": [entry(b"a", REG, xattrs={b"trusted.overlay.opaque": b"y"})],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="entry b'"):
        build_metadata(REFUSED[name], device_bytes=MIB)


@pytest.mark.parametrize("device_bytes", [0, -BLOCK, 4095, BLOCK + 1, (1 << 43) + BLOCK])
def test_tar_size(device_bytes: int) -> None:
    with pytest.raises(FormatError, match="tar of"):
        build_metadata([], device_bytes=device_bytes)


def test_longest_path() -> None:
    path = b"/".join([b"n" * 255] * 16)
    assert len(path) == 4095
    assert path in read(build(entry(path)))
