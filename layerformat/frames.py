"""The compressed part of a layer blob: zstd frames, the table that finds them, skippable frames and the seek table.

Sources: RFC 8878 (frames; section 3.1.2 for skippable ones), "Zstandard Seekable Format" 0.1.0 (the table at the end).
"""

import hashlib
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, overload

import zstandard

from layerformat.erofs import BLOCK, MAX_DEVICE_BYTES
from layerformat.errors import FormatError

MAX_FRAME_LENGTH: Final = 64 << 20  # uncompressed bytes of one frame; bounds what a reader must hold in memory

MAX_PARTS: Final = 1024  # of a frame, so that one writev(2) takes them all (IOV_MAX); raw blocks have 128 KiB each

ZSTD_MAGIC: Final = 0xFD2FB528
SEEK_TABLE_MAGIC: Final = 0x184D2A5E  # skippable frame that holds a seek table
SEEKABLE_MAGIC: Final = 0x8F92EAB1  # last four bytes of a seekable blob
# Any of 0x184D2A50..5F is a skippable frame. 50 (zstd:chunked, pzstd), 5D (dictionaries of WARC files) and 5E (the seek
# table) are in use elsewhere.
INDEX_FRAME_MAGIC: Final = 0x184D2A5A

SKIPPABLE_HEADER: Final = struct.Struct("<II")  # magic, payload bytes
SEEK_ENTRY: Final = struct.Struct("<II")  # compressed bytes, uncompressed bytes
SEEK_FOOTER: Final = struct.Struct("<IBI")  # number of frames, descriptor, magic
ROW: Final = struct.Struct("<II32s")  # size, length, sha256
_LEAST_FRAME_BYTES: Final = 9  # magic, descriptor, window or size, a block's header
_NOT_PLAIN: Final = 0b1111  # bits of a frame's descriptor: unused, reserved, checksum, dictionary
_RAW_BLOCK: Final = 0
_NO_CHECKSUMS: Final = 0  # seek table descriptor: entries carry no checksum; our rows carry a SHA-256 instead


def max_frame_size(length: int) -> int:
    """Most compressed bytes that a frame of `length` uncompressed bytes may take (above zstd's own worst case)."""
    return length + (length >> 7) + 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One zstd frame of a layer blob. All numbers but `number` are bytes."""

    number: int
    offset: int  # of the compressed frame in the blob
    size: int  # compressed
    start: int  # of the uncompressed bytes in the tar
    length: int  # uncompressed
    sha256: bytes  # of the uncompressed bytes, 32 bytes

    @property
    def end(self) -> int:
        """Tar offset just after the frame."""
        return self.start + self.length


class FrameTable:
    """Every frame of a layer, in order. Frames tile the blob from offset 0 and the tar from offset 0, without gaps.

    About 48 bytes a frame. `covering` is on the path of every page fault.
    """

    __slots__ = ("_digests", "_offsets", "_starts", "data_size", "tar_size")

    tar_size: int
    data_size: int

    def __init__(self, offsets: "array[int]", starts: "array[int]", digests: bytes) -> None:
        """For `from_sizes`: both arrays hold one element more than there are frames, the end of the last one."""
        self._offsets = offsets
        self._starts = starts
        self._digests = digests
        self.data_size = offsets[-1]
        self.tar_size = starts[-1]

    @classmethod
    def from_sizes(cls, rows: Iterable[tuple[int, int, bytes]]) -> "FrameTable":
        """The table of frames of (compressed size, uncompressed length, SHA-256 of the uncompressed bytes) each.

        Raises FormatError for a size, length or total that the format does not allow.
        """
        offsets, starts, digests = array("Q", (0,)), array("Q", (0,)), bytearray()
        offset = start = 0
        for size, length, sha256 in rows:
            if not 0 < length <= MAX_FRAME_LENGTH or not 0 < size <= max_frame_size(length) or len(sha256) != 32:
                raise FormatError(f"frame {len(offsets) - 1}: size {size} with length {length} is not allowed")
            offset += size
            start += length
            offsets.append(offset)
            starts.append(start)
            digests += sha256
        if not 0 < start <= MAX_DEVICE_BYTES or start % BLOCK:
            raise FormatError(f"frame table: tar size {start} is not a positive multiple of {BLOCK}")
        return cls(offsets, starts, bytes(digests))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, number: int) -> Frame: ...
    @overload
    def __getitem__(self, number: slice) -> list[Frame]: ...
    def __getitem__(self, number: int | slice) -> Frame | list[Frame]:
        count = len(self)
        if isinstance(number, slice):
            return [self[n] for n in range(count)[number]]
        if number < 0:
            number += count
        if not 0 <= number < count:
            raise IndexError(f"frame {number} of {count}")
        offsets, starts = self._offsets, self._starts
        offset, start = offsets[number], starts[number]
        return Frame(
            number=number,
            offset=offset,
            size=offsets[number + 1] - offset,
            start=start,
            length=starts[number + 1] - start,
            sha256=self._digests[32 * number : 32 * number + 32],
        )

    def __iter__(self) -> Iterator[Frame]:
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FrameTable):
            return NotImplemented
        return (self._offsets, self._starts, self._digests) == (other._offsets, other._starts, other._digests)

    __hash__ = None  # type: ignore[assignment]  # tables are compared by their contents, never used as keys

    def __repr__(self) -> str:
        return f"<FrameTable {len(self)} frames, {self.data_size} of {self.tar_size} bytes>"

    def covering(self, start: int, end: int) -> range:
        """Numbers of the frames that overlap tar bytes [start, end); what lies outside the tar is ignored."""
        if end <= start or end <= 0:
            return range(0)
        first = bisect_right(self._starts, start) - 1
        last = bisect_left(self._starts, end)
        count = len(self._offsets) - 1
        return range(first if first > 0 else 0, last if last < count else count)

    def rows(self) -> Iterator[tuple[int, int, bytes]]:
        """What `from_sizes` takes."""
        offsets, starts, digests = self._offsets, self._starts, self._digests
        for n in range(len(self)):
            yield offsets[n + 1] - offsets[n], starts[n + 1] - starts[n], digests[32 * n : 32 * n + 32]

    def encode(self) -> bytes:
        """One 40-byte row per frame."""
        return b"".join(ROW.pack(*row) for row in self.rows())

    @classmethod
    def decode(cls, data: bytes | memoryview) -> "FrameTable":
        """The table whose `encode` is `data`."""
        if len(data) % ROW.size:
            raise FormatError(f"frame table: {len(data)} bytes are not a number of {ROW.size}-byte rows")
        return cls.from_sizes(ROW.iter_unpack(data))


def decode_frame(frame: Frame, data: bytes | memoryview, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """The uncompressed bytes of `frame`, whose compressed bytes are `data`; FormatError unless they verify.

    CPU bound (about 0.6 GB/s with the SHA-256): not for an event loop. A decompressor serves one thread at a time.
    """
    return b"".join(decode_parts(frame, data, decompressor))


def decode_parts(
    frame: Frame, data: bytes | memoryview, decompressor: zstandard.ZstdDecompressor
) -> Sequence[bytes | memoryview]:
    """What `decode_frame` gives, in one piece or several; of a frame that compression did not help, parts of `data`."""
    if len(data) != frame.size:
        raise FormatError(f"frame {frame.number}: {len(data)} compressed bytes, expected {frame.size}")
    parts: Sequence[bytes | memoryview] = stored_parts(data) or [_decompressed(frame, data, decompressor)]
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(part)
    length = sum(map(len, parts))
    if length != frame.length or checksum.digest() != frame.sha256:
        raise FormatError(f"frame {frame.number}: SHA-256 of its {length} bytes differs from the index")
    return parts


def _decompressed(frame: Frame, data: bytes | memoryview, decompressor: zstandard.ZstdDecompressor) -> bytes:
    try:
        stated = zstandard.frame_content_size(data)
        if stated != frame.length:  # checked first: the decompressor allocates what the header states
            raise FormatError(f"frame {frame.number}: states {stated} bytes, expected {frame.length}")
        return decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"frame {frame.number}: {error}") from error


def stored_parts(data: bytes | memoryview) -> list[memoryview] | None:
    """Where a zstd frame's bytes are in `data` as they are; None where a decompressor is needed.

    That is a frame of raw blocks only, not too many, without dictionary and checksum (RFC 8878, 3.1.1). What its header
    says of sizes is not looked at.
    """
    view = memoryview(data)
    if len(view) < _LEAST_FRAME_BYTES or int.from_bytes(view[:4], "little") != ZSTD_MAGIC:
        return None
    descriptor = view[4]
    single_segment = descriptor >> 5 & 1
    if descriptor & _NOT_PLAIN:
        return None
    # The field of the content size: 0 (1 in a single segment), 2, 4 or 8 bytes. A single segment names no window.
    size_bytes = (single_segment, 2, 4, 8)[descriptor >> 6]
    position = 5 + (not single_segment) + size_bytes
    parts: list[memoryview] = []
    last = False
    while not last:
        header = int.from_bytes(view[position : position + 3], "little")
        last, kind, length = bool(header & 1), header >> 1 & 3, header >> 3
        position += 3
        if kind != _RAW_BLOCK or position + length > len(view) or len(parts) == MAX_PARTS:
            return None
        parts.append(view[position : position + length])
        position += length
    return parts if position == len(view) else None


def skippable_frame(magic: int, payload: bytes) -> bytes:
    """A zstd frame that decoders skip."""
    if len(payload) > 0xFFFFFFFF:
        raise FormatError(f"skippable frame of {len(payload)} bytes")
    return SKIPPABLE_HEADER.pack(magic, len(payload)) + payload


def encode_tail(frames: FrameTable, index_payload: bytes) -> bytes:
    """All that follows the data frames in a blob: the index frame, then the seek table.

    The index payload starts at blob offset `frames.data_size + SKIPPABLE_HEADER.size`.
    """
    index = skippable_frame(INDEX_FRAME_MAGIC, index_payload)
    entries = [SEEK_ENTRY.pack(size, length) for size, length, _ in frames.rows()]
    # The index frame is listed as a frame of no output: a reader that sums the sizes stays right.
    entries.append(SEEK_ENTRY.pack(len(index), 0))
    footer = SEEK_FOOTER.pack(len(entries), _NO_CHECKSUMS, SEEKABLE_MAGIC)
    return index + skippable_frame(SEEK_TABLE_MAGIC, b"".join(entries) + footer)


def decode_seek_table(tail: bytes) -> list[tuple[int, int]]:
    """(compressed, uncompressed) bytes of every frame that the seek table at the end of `tail` lists.

    Raises FormatError unless `tail`, the end of a blob, holds the whole seek table in the form `encode_tail` writes.
    """
    if len(tail) < SKIPPABLE_HEADER.size + SEEK_FOOTER.size:
        raise FormatError(f"seek table: only {len(tail)} bytes")
    count, descriptor, magic = SEEK_FOOTER.unpack_from(tail, len(tail) - SEEK_FOOTER.size)
    if magic != SEEKABLE_MAGIC or descriptor != _NO_CHECKSUMS:
        raise FormatError(f"seek table: magic {magic:#x}, descriptor {descriptor:#x}")
    payload = count * SEEK_ENTRY.size + SEEK_FOOTER.size
    start = len(tail) - payload - SKIPPABLE_HEADER.size
    if start < 0 or SKIPPABLE_HEADER.unpack_from(tail, start) != (SEEK_TABLE_MAGIC, payload):
        raise FormatError(f"seek table: {count} frames do not fit its skippable frame")
    first = start + SKIPPABLE_HEADER.size
    return list(SEEK_ENTRY.iter_unpack(tail[first : first + count * SEEK_ENTRY.size]))
