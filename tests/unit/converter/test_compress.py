"""Layers in every compression, and frames."""

import gzip
import hashlib
import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard

from converter.compress import READ_BYTES, FrameCompressor, decompressed
from converter.errors import MalformedLayer
from layerformat.frames import INDEX_FRAME_MAGIC, skippable_frame
from tests.unit.converter.archives import in_chunks

DATA = os.urandom(1 << 20) + bytes(5 << 20) + b"the quick brown fox" * 50_000


def plain(blob: bytes, chunk: int = 64 << 10) -> bytes:
    read = decompressed(in_chunks(blob, chunk))
    parts = []
    while part := read():
        assert len(part) <= max(READ_BYTES, chunk)
        parts.append(part)
    return b"".join(parts)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("chunk", [1 << 10, 100_003, 1 << 24])
@pytest.mark.parametrize(
    "blob",
    [
        DATA,
        gzip.compress(DATA),
        gzip.compress(DATA[:1000]) + gzip.compress(b"") + gzip.compress(DATA[1000:]),
        zstd(DATA),
        zstd(DATA[:1000]) + skippable_frame(INDEX_FRAME_MAGIC, b"x" * 10_000) + zstd(DATA[1000:]),
        skippable_frame(0x184D2A50, b"") + zstd(DATA),
    ],
    ids=["plain", "gzip", "gzip-members", "zstd", "zstd-frames", "zstd-skippable-first"],
)
def test_every_compression(blob: bytes, chunk: int) -> None:
    assert plain(blob, chunk) == DATA


def test_nothing_is_nothing() -> None:
    assert plain(b"") == b""


def test_a_bomb_comes_in_small_pieces() -> None:
    bomb = gzip.compress(bytes(300 << 20), compresslevel=1)
    read = decompressed(in_chunks(bomb, 1 << 20))
    sizes = set()
    while part := read():
        sizes.add(len(part))
    assert max(sizes) <= READ_BYTES


GZ, ZST = gzip.compress(DATA), zstd(DATA)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (GZ[:-1], "truncated"),
        (GZ[:-8], "truncated"),
        (GZ[:1000], "truncated"),
        (GZ[:2000] + b"\xff" * 2000 + GZ[4000:], "gzip"),
        (GZ[:-8] + bytes(8), "gzip"),
        (GZ + b"trailing garbage", "gzip"),
        (ZST[:5000] + b"\xff" * 900 + ZST[6000:], "zstd"),
        (ZST + b"trailing garbage", "zstd"),
        (b"BZh91AY&SY" + bytes(100), "bzip2"),
        (b"\xfd7zXZ\0" + bytes(100), "xz"),
    ],
)
def test_damage_is_one_clear_error(blob: bytes, message: str) -> None:
    with pytest.raises(MalformedLayer, match=message):
        plain(blob)


def test_frames_are_independent_and_carry_their_size() -> None:
    pieces = [DATA[at : at + (256 << 10)] for at in range(0, len(DATA), 256 << 10)]
    compress = FrameCompressor(3)
    with ThreadPoolExecutor(4) as pool:
        frames = list(pool.map(compress, pieces))
    for frame, piece in zip(frames, pieces, strict=True):
        assert zstandard.frame_content_size(frame.data) == frame.length == len(piece)
        assert zstandard.ZstdDecompressor().decompress(frame.data) == piece
        assert frame.sha256 == hashlib.sha256(piece).digest()
    assert frames == [FrameCompressor(3)(piece) for piece in pieces]
    assert plain(b"".join(frame.data for frame in frames)) == DATA


def test_what_does_not_compress_is_stored() -> None:
    noise = os.urandom(256 << 10)
    assert len(FrameCompressor(3)(noise).data) < len(noise) + 64
    assert zlib.crc32(zstandard.ZstdDecompressor().decompress(FrameCompressor(3)(noise).data)) == zlib.crc32(noise)
