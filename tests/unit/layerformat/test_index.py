import hashlib
import stat
import struct
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import zstandard

from layerformat.annotations import LayerRef
from layerformat.digest import DiffID, sha256_digest
from layerformat.entries import Entry
from layerformat.erofs_write import build_metadata
from layerformat.errors import FormatError
from layerformat.frames import FrameTable
from layerformat.index import HEADER, MAGIC, Index, decode_index, encode_index, frame_table, open_index
from tests.unit.layerformat.corpus import make_corpus

FIELDS = (
    *("magic", "version", "flags", "diff_id", "tar_size", "data_size"),
    *("frames", "metadata_size", "stored_size", "reserved"),
)
DIFF_ID = DiffID(sha256_digest(b"tar"))


def frames_for(tar_size: int, length: int = 65_536) -> FrameTable:
    cuts = [*range(0, tar_size, length), tar_size]
    return FrameTable.from_sizes(
        (100 + n % 7, b - a, hashlib.sha256(b"%d" % n).digest()) for n, (a, b) in enumerate(pairwise(cuts))
    )


def corpus_index() -> Index:
    corpus = make_corpus()
    metadata = build_metadata(corpus.entries, device_bytes=corpus.device_bytes)
    return Index(diff_id=DIFF_ID, frames=frames_for(corpus.device_bytes), metadata=metadata)


def small_index() -> Index:
    entries = [Entry(path=b"a", mode=stat.S_IFREG | 0o644, uid=0, gid=0, mtime_ns=0, size=5000, data_offset=4096)]
    metadata = build_metadata(entries, device_bytes=16_384)
    return Index(diff_id=DIFF_ID, frames=frames_for(16_384, 4096), metadata=metadata)


def ref_for(index: Index, payload: bytes, **fields: Any) -> LayerRef:
    ref = LayerRef(
        version=1,
        digest=sha256_digest(b"blob"),
        size=index.frames.data_size + 8 + len(payload) + 100,
        index_offset=index.frames.data_size + 8,
        index_size=len(payload),
        index_digest=sha256_digest(payload),
        diff_id=index.diff_id,
    )
    return replace(ref, **fields)


def with_header(payload: bytes, **fields: Any) -> bytes:
    """The payload with other header fields."""
    values = dict(zip(FIELDS, HEADER.unpack_from(payload), strict=True))
    return HEADER.pack(*{**values, **fields}.values()) + payload[HEADER.size :]


def header_value(payload: bytes, number: int) -> int:
    value = HEADER.unpack_from(payload)[number]
    assert isinstance(value, int)
    return value


def test_round_trip() -> None:
    index = corpus_index()
    payload = encode_index(index)
    assert decode_index(payload) == index
    assert open_index(payload, ref_for(index, payload)) == index
    assert frame_table(payload) == index.frames
    assert encode_index(corpus_index()) == payload


def test_layout() -> None:
    index = small_index()
    payload = encode_index(index)
    assert payload[:16] == MAGIC + struct.pack("<II", 1, 0)
    assert "sha256:" + payload[16:48].hex() == DIFF_ID
    assert struct.unpack_from("<5Q", payload, 48)[:4] == (16_384, 406, 4, len(index.metadata))
    assert payload.endswith(index.frames.encode())
    stored = payload[96 : 96 + header_value(payload, 8)]
    assert zstandard.ZstdDecompressor().decompress(stored) == index.metadata


def test_metadata_that_compresses_too_well_is_stored_raw() -> None:
    zeros = {b"user.%d" % n: bytes(65_000) for n in range(4)}
    entries = [Entry(path=b"%d" % n, mode=stat.S_IFREG, uid=0, gid=0, mtime_ns=0, xattrs=zeros) for n in range(4)]
    index = replace(small_index(), metadata=build_metadata(entries, device_bytes=16_384))
    payload = encode_index(index)
    assert header_value(payload, 7) == header_value(payload, 8) == len(index.metadata)
    assert decode_index(payload) == index


def test_encode_refuses_what_decode_would() -> None:
    index = small_index()
    with pytest.raises(FormatError):
        encode_index(replace(index, metadata=index.metadata[:-1]))
    with pytest.raises(FormatError, match="expected 20480 bytes"):
        encode_index(replace(index, frames=frames_for(20_480)))


def test_metadata_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    index = small_index()
    payload = encode_index(index)
    monkeypatch.setattr("layerformat.index.MAX_METADATA_BYTES", len(index.metadata) - 1)
    with pytest.raises(FormatError, match="metadata"):
        encode_index(index)
    with pytest.raises(FormatError, match="metadata"):
        decode_index(payload)


@pytest.mark.parametrize(
    "fields",
    [
        {"magic": b"Fastpull"},
        {"version": 0},
        {"version": 2},
        {"flags": 1},
        {"reserved": b"\1"},
        {"tar_size": 16_384 + 4096},
        {"data_size": 1},
        {"frames": 3},
        {"frames": 2**64 - 1},
        {"metadata_size": 0},
        {"metadata_size": 8192},
        {"metadata_size": 2**63},
        {"stored_size": 0},
        {"stored_size": 2**64 - 1},
    ],
    ids=str,
)
def test_malformed_header(fields: dict[str, Any]) -> None:
    payload = with_header(encode_index(small_index()), **fields)
    with pytest.raises(FormatError):
        decode_index(payload)
    if "metadata_size" not in fields:
        with pytest.raises(FormatError):
            frame_table(payload)


def test_every_truncation() -> None:
    payload = encode_index(small_index())
    for length in range(len(payload)):
        for read in (decode_index, frame_table):
            with pytest.raises(FormatError):
                read(payload[:length])
    with pytest.raises(FormatError):
        decode_index(payload + b"\0")


def test_frame_rows_are_checked() -> None:
    payload = encode_index(small_index())
    for size, length in ((0, 4096), (100, 0), (2**32 - 1, 4096), (100, 2**32 - 1), (100, 4095)):
        with pytest.raises(FormatError, match="frame"):
            decode_index(payload[:-160] + struct.pack("<II", size, length) + payload[-152:])


def bomb(stated: int, content: bytes) -> bytes:
    """An index whose metadata claims `stated` bytes."""
    payload = encode_index(small_index())
    rows = payload[-160:]
    return with_header(payload[:96] + content + rows, metadata_size=stated, stored_size=len(content))


@pytest.mark.parametrize("size", [1 << 26, 1 << 30, 1 << 40])
def test_decompression_bomb(size: int) -> None:
    """Neither the header's claim nor the zstd frame's makes the reader allocate more than the stored bytes justify."""
    real = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    claims = bytes.fromhex("28b52ffd") + b"\xe0" + struct.pack("<Q", size) + b"\1\0\0"
    tracemalloc.start()
    try:
        for content in (real, claims):
            for stated in (size, 4096, 65_536):
                with pytest.raises(FormatError):
                    decode_index(bomb(stated, content))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_metadata_stored_in_more_bytes_than_it_has() -> None:
    metadata = small_index().metadata
    noise = zstandard.ZstdCompressor(level=-100).compress(metadata) + bytes(len(metadata))
    with pytest.raises(FormatError, match="bytes of metadata from"):
        decode_index(bomb(len(metadata), noise))


def test_metadata_frame_damage() -> None:
    payload = encode_index(small_index())
    stored = header_value(payload, 8)
    for position in range(96, 96 + stored):
        damaged = payload[:position] + bytes([payload[position] ^ 0x55]) + payload[position + 1 :]
        try:
            decode_index(damaged)
        except FormatError:
            continue
        # only bits that mean nothing to the decoder may pass, and then the metadata is the same
        assert decode_index(damaged) == small_index()


def test_open_index_is_of_this_layer() -> None:
    index = small_index()
    payload = encode_index(index)
    with pytest.raises(FormatError, match="digest"):
        open_index(payload, ref_for(index, payload, index_digest=sha256_digest(b"")))
    with pytest.raises(FormatError, match="digest"):
        open_index(payload[:-1], ref_for(index, payload))
    with pytest.raises(FormatError, match="digest"):
        open_index(payload, ref_for(index, payload, index_size=len(payload) + 1))
    with pytest.raises(FormatError, match="expected sha256"):
        open_index(payload, ref_for(index, payload, diff_id=DiffID(sha256_digest(b"other"))))
    with pytest.raises(FormatError, match="frames end at"):
        open_index(payload, ref_for(index, payload, index_offset=index.frames.data_size + 9))
