"""Layers made in memory for tests of the fetcher: a blob in the layer format, without a converter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import zstandard

from layerformat.annotations import FORMAT_VERSION, LayerRef
from layerformat.digest import DiffID, raw_digest, sha256_digest
from layerformat.entries import Entry
from layerformat.erofs_write import build_metadata
from layerformat.frames import SKIPPABLE_HEADER, FrameTable, encode_tail
from layerformat.index import HEADER, MAGIC, Index, encode_index

BLOCK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TestLayer:
    """A layer blob, how its descriptor would name it, and what it must read as."""

    __test__ = False
    ref: LayerRef
    blob: bytes
    tar: bytes
    index: Index
    files: Mapping[str, bytes]


def make_layer(files: Mapping[str, bytes], *, frame_bytes: int = 64 << 10) -> TestLayer:
    """A layer whose "tar" is the files' data, each at a multiple of 4 KiB: all a data plane sees of a tar."""
    tar, entries = bytearray(), []
    for name, data in files.items():
        offset = len(tar) if data else None
        tar += data + bytes(-len(data) % BLOCK)
        entries.append(
            Entry(path=name.encode(), mode=0o100644, uid=0, gid=0, mtime_ns=0, size=len(data), data_offset=offset)
        )
    tar += bytes(BLOCK)
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=True)
    pieces = [bytes(tar[at : at + frame_bytes]) for at in range(0, len(tar), frame_bytes)]
    frames = [compressor.compress(piece) for piece in pieces]
    table = FrameTable.from_sizes(
        (len(frame), len(piece), hashlib.sha256(piece).digest()) for frame, piece in zip(frames, pieces, strict=True)
    )
    metadata = build_metadata(entries, device_bytes=len(tar))
    index = Index(diff_id=DiffID(sha256_digest(tar)), frames=table, metadata=metadata)
    payload = encode_index(index)
    blob = b"".join(frames) + encode_tail(table, payload)
    ref = LayerRef(
        version=FORMAT_VERSION,
        digest=sha256_digest(blob),
        size=len(blob),
        index_offset=table.data_size + SKIPPABLE_HEADER.size,
        index_size=len(payload),
        index_digest=sha256_digest(payload),
        diff_id=index.diff_id,
    )
    return TestLayer(ref=ref, blob=blob, tar=bytes(tar), index=index, files=dict(files))


def with_spoiled_metadata(layer: TestLayer) -> TestLayer:
    """The layer as a hostile registry would serve it: every digest is right, and the metadata are not."""
    metadata = layer.index.metadata[:-1] + b"\x01"
    stored = zstandard.ZstdCompressor().compress(metadata)
    frames = layer.index.frames
    header = HEADER.pack(
        *(MAGIC, FORMAT_VERSION, 0, raw_digest(layer.ref.diff_id), frames.tar_size, frames.data_size),
        *(len(frames), len(metadata), len(stored), b""),
    )
    return with_index(layer, replace(layer.index, metadata=metadata), header + stored + frames.encode())


def with_index(layer: TestLayer, index: Index, payload: bytes) -> TestLayer:
    """The same frames under another index, whose payload may be anything."""
    blob = layer.blob[: layer.index.frames.data_size] + encode_tail(layer.index.frames, payload)
    ref = replace(
        layer.ref,
        digest=sha256_digest(blob),
        size=len(blob),
        index_size=len(payload),
        index_digest=sha256_digest(payload),
        diff_id=index.diff_id,
    )
    return replace(layer, ref=ref, blob=blob, index=index)
