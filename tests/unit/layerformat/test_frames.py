import hashlib
import io
import random
import struct
from dataclasses import replace
from itertools import pairwise

import pytest
import zstandard

from layerformat.errors import FormatError
from layerformat.frames import (
    INDEX_FRAME_MAGIC,
    MAX_FRAME_LENGTH,
    MAX_PARTS,
    SEEK_TABLE_MAGIC,
    FrameTable,
    decode_frame,
    decode_seek_table,
    encode_tail,
    max_frame_size,
    stored_parts,
)

SHA = b"s" * 32
SIZES = [(100, 4096), (1, 1), (9, 4095), (66_000, 65_536)]


def make_table(sizes: list[tuple[int, int]]) -> FrameTable:
    return FrameTable.from_sizes((size, length, bytes([n]) * 32) for n, (size, length) in enumerate(sizes))


def test_frames_tile_blob_and_tar() -> None:
    table = make_table(SIZES)
    assert len(table) == 4 and list(table) == [table[n] for n in range(4)]
    assert [frame.offset for frame in table] == [0, 100, 101, 110]
    assert [(frame.start, frame.end) for frame in table] == [(0, 4096), (4096, 4097), (4097, 8192), (8192, 73_728)]
    assert table[2].sha256 == b"\2" * 32 and table[-1].number == 3 and table[1:3] == [table[1], table[2]]
    assert (table.data_size, table.tar_size) == (66_110, 73_728)
    with pytest.raises(IndexError):
        table[4]


@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [
        (0, 1, [0]),
        (4095, 4096, [0]),
        (4095, 4097, [0, 1]),
        (4096, 4097, [1]),
        (0, 73_728, [0, 1, 2, 3]),
        (73_727, 10**9, [3]),
        (73_728, 10**9, []),
        (5000, 5000, []),
        (5000, 4000, []),
        (-10, 1, [0]),
        (-10, 0, []),
    ],
)
def test_covering(start: int, end: int, numbers: list[int]) -> None:
    assert list(make_table(SIZES).covering(start, end)) == numbers


def test_covering_agrees_with_a_linear_search() -> None:
    table = make_table(
        [(5, 1 + n * 37 % 100) for n in range(200)] + [(5, 4096 - sum(1 + n * 37 % 100 for n in range(200)) % 4096)]
    )
    for start in range(0, table.tar_size, 61):
        for length in (1, 50, 300):
            expected = [f.number for f in table if f.start < start + length and f.end > start]
            assert list(table.covering(start, start + length)) == expected


@pytest.mark.parametrize(
    "row",
    [
        (0, 4096, SHA),
        (-1, 4096, SHA),
        (1, 0, SHA),
        (1, -4096, SHA),
        (1, MAX_FRAME_LENGTH + 4096, SHA),
        (max_frame_size(4096) + 1, 4096, SHA),
        (1, 4095, SHA),
        (1, 4096, SHA[1:]),
    ],
)
def test_rows_the_format_does_not_allow(row: tuple[int, int, bytes]) -> None:
    with pytest.raises(FormatError):
        FrameTable.from_sizes([row])


def test_a_layer_has_at_least_one_frame() -> None:
    with pytest.raises(FormatError):
        FrameTable.from_sizes([])


def test_rows_round_trip() -> None:
    table = make_table(SIZES)
    data = table.encode()
    assert len(data) == 4 * 40
    assert FrameTable.decode(data) == table and FrameTable.decode(memoryview(data)) == table
    assert data[40:48] == struct.pack("<II", 1, 1)
    for cut in (1, 39):
        with pytest.raises(FormatError):
            FrameTable.decode(data[:-cut])


def test_worst_case_frames_are_allowed() -> None:
    noise = b"".join(hashlib.sha256(bytes([n & 255, n >> 8])).digest() for n in range(8192))
    for length in (1, 4096, 131_072, len(noise)):
        for level in (1, 3, 19):
            assert len(zstandard.ZstdCompressor(level=level).compress(noise[:length])) <= max_frame_size(length)


class TestBlob:
    """Real frames, read back by a decoder that knows nothing of the format."""

    plain = bytes(range(256)) * 64 + b"x" * 4096
    cuts = (0, 4096, 5000, 20_480)

    def make(self) -> tuple[FrameTable, bytes, bytes]:
        pieces = [self.plain[a:b] for a, b in pairwise(self.cuts)]
        frames = [zstandard.ZstdCompressor(level=3).compress(piece) for piece in pieces]
        table = FrameTable.from_sizes(
            (len(frame), len(piece), hashlib.sha256(piece).digest())
            for frame, piece in zip(frames, pieces, strict=True)
        )
        data = b"".join(frames)
        return table, data, data + encode_tail(table, b"the index")

    def test_plain_decoder_sees_the_tar(self) -> None:
        _, _, blob = self.make()
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(blob), read_across_frames=True) as reader:
            assert reader.read() == self.plain

    def test_index_is_where_the_table_says(self) -> None:
        table, _, blob = self.make()
        at = table.data_size
        assert struct.unpack_from("<II", blob, at) == (INDEX_FRAME_MAGIC, len(b"the index"))
        assert blob[at + 8 : at + 17] == b"the index"

    def test_seek_table_covers_the_whole_blob(self) -> None:
        table, _, blob = self.make()
        entries = decode_seek_table(blob)
        assert entries == [(f.size, f.length) for f in table] + [(8 + 9, 0)]
        seek_table = struct.pack("<II", SEEK_TABLE_MAGIC, 8 * len(entries) + 9)
        assert blob[sum(size for size, _ in entries) :].startswith(seek_table)
        assert sum(length for _, length in entries) == len(self.plain)
        assert blob.endswith(bytes.fromhex("b1ea928f"))

    def test_each_frame_by_itself(self) -> None:
        table, data, _ = self.make()
        decompressor = zstandard.ZstdDecompressor()
        parts = [decode_frame(f, data[f.offset : f.offset + f.size], decompressor) for f in table]
        assert b"".join(parts) == self.plain

    def test_damaged_frames_do_not_verify(self) -> None:
        table, data, _ = self.make()
        frame, decompressor = table[0], zstandard.ZstdDecompressor()
        good = data[: frame.size]
        for position in range(len(good)):
            bad = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
            try:
                assert decode_frame(frame, bad, decompressor) == self.plain[: frame.length]
            except FormatError:
                continue  # the other outcome is a flipped bit that decodes to the very same bytes
        for bad in (good[:-1], good + b"\0", b"", b"\0" * len(good)):
            with pytest.raises(FormatError):
                decode_frame(frame, bad, decompressor)
        with pytest.raises(FormatError, match="SHA-256"):
            decode_frame(replace(frame, sha256=b"\0" * 32), good, decompressor)
        with pytest.raises(FormatError, match="states"):
            decode_frame(replace(frame, length=frame.length + 1), good, decompressor)

    @pytest.mark.parametrize("tail", [b"", b"\0" * 17, b"\0" * 8 + struct.pack("<IBI", 2**32 - 1, 0, 0x8F92EAB1)])
    def test_malformed_seek_table(self, tail: bytes) -> None:
        with pytest.raises(FormatError):
            decode_seek_table(tail)

    def test_seek_table_damage(self) -> None:
        _, _, blob = self.make()
        for back in (1, 5, 6, 9, 9 + 8 * 4 + 1, 9 + 8 * 4 + 8):
            bad = bytearray(blob)
            bad[-back] ^= 1
            with pytest.raises(FormatError):
                decode_seek_table(bytes(bad))


class TestStored:
    """Frames that compression did not help are taken apart without a decompressor."""

    @pytest.mark.parametrize("length", [60, 255, 256, 257, 65_791, 65_792, 131_072, 131_073, 262_144, 1_000_000])
    def test_noise_is_stored(self, length: int) -> None:
        noise = random.Random(length).randbytes(length)
        data = zstandard.ZstdCompressor(write_content_size=True, write_checksum=False).compress(noise)
        parts = stored_parts(data)
        assert parts is not None and b"".join(parts) == noise
        frame = FrameTable.from_sizes(
            [(len(data), length, hashlib.sha256(noise).digest()), (1, -length % 4096 or 4096, SHA)]
        )[0]
        decompressor = zstandard.ZstdDecompressor()
        assert decode_frame(frame, data, decompressor) == noise
        for bad in (data[:-1] + bytes([data[-1] ^ 1]), data[:-1], data + b"\0"):
            with pytest.raises(FormatError):
                decode_frame(replace(frame, size=len(bad)), bad, decompressor)

    def test_noise_without_a_stated_size(self) -> None:
        noise = random.Random(1).randbytes(300_000)
        compressor = zstandard.ZstdCompressor(write_content_size=False, write_checksum=False).compressobj()
        data = compressor.compress(noise) + compressor.flush()
        parts = stored_parts(data)
        assert parts is not None and b"".join(parts) == noise

    def test_other_frames_need_a_decompressor(self) -> None:
        noise = random.Random(2).randbytes(200_000)
        assert stored_parts(zstandard.ZstdCompressor(write_checksum=True).compress(noise)) is None
        assert stored_parts(zstandard.ZstdCompressor(write_checksum=False).compress(noise + bytes(200_000))) is None
        assert stored_parts(b"") is None and stored_parts(b"\0" * 100) is None

    def test_never_more_parts_than_one_write_takes(self) -> None:
        def frame(count: int) -> bytes:
            blocks = [struct.pack("<I", 1 << 3 | (n == count - 1))[:3] + b"x" for n in range(count)]
            return bytes.fromhex("28b52ffd00") + b"\x58" + b"".join(blocks)

        most = stored_parts(frame(MAX_PARTS))
        assert most is not None and b"".join(most) == b"x" * MAX_PARTS
        assert stored_parts(frame(MAX_PARTS + 1)) is None
        got = zstandard.ZstdDecompressor().decompressobj().decompress(frame(MAX_PARTS + 1))
        assert got == b"x" * (MAX_PARTS + 1)

    def test_garbage_is_taken_as_the_decompressor_takes_it(self) -> None:
        chance = random.Random(3)
        good = zstandard.ZstdCompressor(write_checksum=False).compress(chance.randbytes(300))
        agreed = 0
        for _ in range(20_000):
            bad = bytearray(good)
            for _ in range(chance.randint(1, 3)):
                bad[chance.randrange(12)] = chance.randrange(256)
            parts = stored_parts(bytes(bad))
            try:
                if zstandard.frame_content_size(bytes(bad)) > 1 << 20:  # it would be allocated
                    continue
                whole = zstandard.ZstdDecompressor().decompress(bytes(bad), allow_extra_data=False)
            except zstandard.ZstdError:
                continue
            if parts is not None:
                agreed += 1
                assert b"".join(parts) == whole
        assert agreed
