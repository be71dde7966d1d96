"""The index of a layer: what a node must have before it can show the layer's files.

Payload of the index frame: header (96 bytes), EROFS metadata (compressed; raw if it compresses too well), frame rows.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import zstandard

from layerformat.annotations import FORMAT_VERSION, LayerRef
from layerformat.digest import DiffID, digest_from_raw, raw_digest, sha256_digest
from layerformat.erofs_read import Extent, validate_metadata
from layerformat.errors import FormatError
from layerformat.frames import ROW, SKIPPABLE_HEADER, FrameTable

MAGIC: Final = b"fastpull"
# magic, version, flags (0), diff id, tar size, data size, frames, metadata bytes, the same as stored, reserved (0)
HEADER: Final = struct.Struct("<8sII32sQQQQQ8s")
assert HEADER.size == 96

MAX_METADATA_BYTES: Final = 512 << 20  # some four million files
MAX_INDEX_BYTES: Final = (1 << 32) - 1  # a skippable frame's limit
_RATIO_SLACK: Final = 64 << 10
_MAX_RATIO: Final = (
    256  # real metadata compresses 5 to 30 times; more is stored raw, so a small index stays small in memory
)
_LEVEL: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Everything about a layer but its data."""

    diff_id: DiffID
    frames: FrameTable
    metadata: bytes  # EROFS image (block size 4096), its one extra device is the uncompressed tar
    #: Of an index that was decoded: where its files' data are, in the order of the tar. Follows from the metadata.
    extents: Sequence[Extent] = field(default=(), compare=False, repr=False)


def encode_index(index: Index) -> bytes:
    """The index payload; FormatError where `decode_index` would refuse it. The same index gives the same bytes."""
    validate_metadata(index.metadata, device_bytes=index.frames.tar_size)
    stored = _compress(index.metadata)
    header = HEADER.pack(
        *(MAGIC, FORMAT_VERSION, 0, raw_digest(index.diff_id), index.frames.tar_size, index.frames.data_size),
        *(len(index.frames), len(index.metadata), len(stored), b""),
    )
    return header + stored + index.frames.encode()


def decode_index(data: bytes) -> Index:
    """The index whose payload is `data`, validated in full: nothing in it is left for the kernel to find out.

    Raises FormatError, never anything else, for whatever is malformed or hostile. CPU bound (about 5 us a file): not
    for an event loop. Memory is bounded by 256 times `data` and by 512 MiB.
    """
    header = _parse_header(data)
    return _with_metadata(data, header, _parse_frames(data, header))


def frame_table(data: bytes) -> FrameTable:
    """Only the frame table of an index that `decode_index` accepted before: the metadata is not looked at.

    Raises FormatError where header or rows are malformed.
    """
    return _parse_frames(data, _parse_header(data))


def open_frames(data: bytes, ref: LayerRef) -> FrameTable:
    """The frame table of the layer `ref` from what was read at its index's place in the blob, digest checked first.

    Enough to fetch the layer's frames, not to show its files: the metadata is not looked at. Raises FormatError also
    where the index is not of this layer.
    """
    if len(data) != ref.index_size or sha256_digest(data) != ref.index_digest:
        raise FormatError(f"layer {ref.digest}: the index differs from the digest {ref.index_digest}")
    header = _parse_header(data)
    frames = _parse_frames(data, header)
    if header.diff_id != ref.diff_id:
        raise FormatError(f"layer {ref.digest}: index of {header.diff_id}, expected {ref.diff_id}")
    if frames.data_size + SKIPPABLE_HEADER.size != ref.index_offset:
        raise FormatError(f"layer {ref.digest}: frames end at {frames.data_size}, not just before the index")
    return frames


def open_index(data: bytes, ref: LayerRef) -> Index:
    """What `open_frames` checks and what `decode_index` validates: a layer whose files may be shown.

    Raises FormatError.
    """
    frames = open_frames(data, ref)
    return _with_metadata(data, _parse_header(data), frames)


def _with_metadata(data: bytes, header: "_Header", frames: FrameTable) -> Index:
    metadata = _decompress(data[HEADER.size : header.rows_at], header.metadata_size)
    extents = validate_metadata(metadata, device_bytes=header.tar_size)
    return Index(diff_id=header.diff_id, frames=frames, metadata=metadata, extents=extents)


class _Header(NamedTuple):
    diff_id: DiffID
    tar_size: int
    data_size: int
    metadata_size: int
    rows_at: int


def _parse_header(data: bytes) -> _Header:
    if not HEADER.size <= len(data) <= MAX_INDEX_BYTES:
        raise FormatError(f"index of {len(data)} bytes")
    magic, version, flags, diff_id, tar_size, data_size, count, size, stored, reserved = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FormatError("index: wrong magic")
    if version != FORMAT_VERSION:
        raise FormatError(f"index: format version {version}, this reader knows {FORMAT_VERSION}")
    if flags or any(reserved):
        raise FormatError(f"index: unknown flags {flags:#x} or a reserved field in use")
    rows_at = HEADER.size + stored
    if rows_at + count * ROW.size != len(data):
        raise FormatError(f"index: {stored} bytes of metadata and {count} frames do not make {len(data)} bytes")
    return _Header(DiffID(digest_from_raw(diff_id)), tar_size, data_size, size, rows_at)


def _parse_frames(data: bytes, header: _Header) -> FrameTable:
    frames = FrameTable.decode(memoryview(data)[header.rows_at :])
    if (frames.tar_size, frames.data_size) != (header.tar_size, header.data_size):
        raise FormatError("index: the frames do not add up to its tar size and data size")
    return frames


def _max_metadata(stored: int) -> int:
    return min(MAX_METADATA_BYTES, _RATIO_SLACK + _MAX_RATIO * stored)


def _compress(metadata: bytes) -> bytes:
    """As stored: compressed, or raw (then as long as the metadata) where readers would refuse the ratio."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=False)
    stored = compressor.compress(metadata)
    if len(stored) >= len(metadata) or len(metadata) > _max_metadata(len(stored)):
        stored = metadata
    if len(metadata) > _max_metadata(len(stored)):
        raise FormatError(f"index: {len(metadata)} bytes of metadata, more than {MAX_METADATA_BYTES}")
    return stored


def _decompress(stored: bytes, size: int) -> bytes:
    """The metadata, `size` bytes; nothing is allocated before both lengths that claim it agree and are allowed."""
    if not len(stored) <= size <= _max_metadata(len(stored)):
        raise FormatError(f"index: {size} bytes of metadata from {len(stored)}")
    if len(stored) == size:
        return stored
    try:
        if zstandard.frame_content_size(stored) != size:
            raise FormatError("index: metadata size differs from its zstd frame's")
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"index: metadata: {error}") from error
