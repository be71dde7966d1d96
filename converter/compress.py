"""Compression both ways: source layers of any kind as plain bytes, and frames of a converted layer."""

import hashlib
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Final, cast

import zstandard

from converter.errors import MalformedLayer

GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_OTHERS: Final = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x04\x22\x4d\x18": "lz4", b"\x1f\x9d": "compress"}
#: Bytes of plain tar that one read gives at most: what a layer in progress holds beside its frames.
READ_BYTES: Final = 1 << 20
_WINDOW_LOG_MAX: Final = 27  # 128 MiB, what `zstd --ultra` needs and what container runtimes accept

ReadChunk = Callable[[], bytes]
"""The next bytes of a stream, b"" at its end."""


def decompressed(read: ReadChunk) -> ReadChunk:
    """The plain bytes of a stream that is gzip (any number of members), zstd (any number of frames) or plain.

    Told by its first bytes, as containerd does, not by its media type. Raises MalformedLayer for damage and for other
    formats.
    """
    head = b""
    while len(head) < 6 and (chunk := read()):
        head += chunk
    source = _Source(head, read)
    if head.startswith(GZIP_MAGIC):
        return _Gunzip(source).read
    if head[:4] == ZSTD_MAGIC or _is_skippable(head):
        return _Unzstd(source).read
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise MalformedLayer(
                f"layer is compressed with {name}", hint="only gzip, zstd and plain layers exist in images"
            )
    return source.chunk


def _is_skippable(head: bytes) -> bool:
    return len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


class _Source:
    """A chunk that was read ahead, then the rest."""

    def __init__(self, head: bytes, read: ReadChunk) -> None:
        self._head = head
        self._read = read

    def chunk(self) -> bytes:
        head, self._head = self._head, b""
        return head or self._read()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; for zstandard's stream reader."""
        chunk = self.chunk()
        self._head = chunk[size:]
        return chunk[:size]


class _Gunzip:
    """Multi-member gzip with bounded output per read."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._member = zlib.decompressobj(wbits=31)
        self._input = b""
        self._begun = False  # whether the member has seen any input

    def read(self) -> bytes:
        while True:
            if not self._input and not self._refill():
                return b""
            try:
                data = self._member.decompress(self._input, READ_BYTES)
            except zlib.error as exc:
                raise MalformedLayer(f"gzip: {exc}") from exc
            self._begun = True
            self._input = self._member.unconsumed_tail
            if self._member.eof:
                self._input = self._member.unused_data
                self._member, self._begun = zlib.decompressobj(wbits=31), False
            if data:
                return data

    def _refill(self) -> bool:
        """More input. At its end, a member that was begun must have been finished."""
        self._input = self._source.chunk()
        if not self._input and self._begun:
            raise MalformedLayer("gzip: the stream is truncated")
        return bool(self._input)


class _Unzstd:
    def __init__(self, source: _Source) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG_MAX)
        self._stream = decompressor.stream_reader(
            cast("IO[bytes]", source), read_size=READ_BYTES, read_across_frames=True
        )

    def read(self) -> bytes:
        try:
            return self._stream.read(READ_BYTES)
        except zstandard.ZstdError as exc:
            raise MalformedLayer(f"zstd: {exc}") from exc


@dataclass(frozen=True, slots=True)
class CompressedFrame:
    """One frame: its compressed bytes, and length and SHA-256 (32 bytes) of the plain ones."""

    data: bytes
    length: int
    sha256: bytes


class FrameCompressor:
    """Independent zstd frames with content size and no checksum (the SHA-256 is the checksum). Thread-safe."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._local = threading.local()

    def __call__(self, plain: bytes) -> CompressedFrame:
        compressor: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if compressor is None:  # a compressor serves one thread at a time
            compressor = zstandard.ZstdCompressor(level=self._level, write_content_size=True, write_checksum=False)
            self._local.compressor = compressor
        return CompressedFrame(compressor.compress(plain), len(plain), hashlib.sha256(plain).digest())
