"""Predicting a profile: the files that tell what a start reads are fetched from the registry, nobody runs the image."""

from __future__ import annotations

import asyncio
import gc
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import zstandard

from converter.prediction.files import ImageFiles
from converter.prediction.start import Command, predict
from fastpull.image_view import fetch_index
from fastpull.profile_target import Target
from fetcher.profiles.document import MAX_ROWS
from fetcher.profiles.profile import Profile, Read, coalesced
from fetcher.registry import RegistryClient, parse_json_object
from layerformat.annotations import LayerRef
from layerformat.erofs_read import read_metadata
from layerformat.frames import FrameTable, decode_frame
from layerformat.index import Index

#: Compressed bytes asked for by one request: what is read of an image lies together more often than not.
READ_AHEAD_BYTES = 2 << 20
#: Uncompressed bytes that are kept, in case they are read again.
KEPT_BYTES = 512 << 20


async def predict_profile(client: RegistryClient, target: Target) -> Profile | None:
    """What a start of the image will read, if anything can be told of it.

    Raises:
        FormatError: a layer is not what its index says.
        RegistryError: something of the image cannot be had.
    """
    command = Command.of_config(await _config(client, target))
    indexes = [await fetch_index(client, target.origin, ref) for ref in target.layers]
    return await asyncio.to_thread(_predict, client, target, indexes, command, asyncio.get_running_loop())


async def _config(client: RegistryClient, target: Target) -> Mapping[str, object]:
    """The member `config` of the image's configuration; empty where there is none."""
    manifest = await client.manifest(target.origin, target.digest)
    blob = b"".join([chunk async for chunk in client.pull_blob(target.origin, manifest.config.digest)])
    config = parse_json_object(blob, f"the config of {target.reference}").get("config")
    return config if isinstance(config, dict) else {}


def _predict(
    client: RegistryClient,
    target: Target,
    indexes: Sequence[Index],
    command: Command,
    loop: asyncio.AbstractEventLoop,
) -> Profile | None:
    tars = [
        _RemoteTar(client, target, ref, index.frames, loop) for ref, index in zip(target.layers, indexes, strict=True)
    ]
    with _no_collections():
        entries = [read_metadata(index.metadata) for index in indexes]
        files = ImageFiles(entries, lambda layer, offset, length: tars[layer].read(offset, length))
        reads = [Read(*reach) for reach in predict(files, command)]
    if not reads:
        return None
    now = datetime.now(UTC).replace(microsecond=0)
    return Profile(layers=target.diff_ids, reads=coalesced(reads)[:MAX_ROWS], recorded_at=now, duration_ms=0)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Syntax trees are millions of objects in no circles: looking for garbage among them takes longer than parsing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _RemoteTar:
    """A layer's tar, read frame by frame from the registry. For one thread that is not the event loop's."""

    def __init__(
        self,
        client: RegistryClient,
        target: Target,
        ref: LayerRef,
        frames: FrameTable,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._client = client
        self._target = target
        self._ref = ref
        self._frames = frames
        self._loop = loop
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._decompressor = zstandard.ZstdDecompressor()

    def read(self, offset: int, length: int) -> bytes:
        """Raises FormatError or RegistryError."""
        parts = []
        for number in self._frames.covering(offset, offset + length):
            if number not in self._kept:
                self._fetch(number)
            self._kept.move_to_end(number)
            data, start = self._kept[number], self._frames[number].start
            parts.append(data[max(offset - start, 0) : offset + length - start])
        return b"".join(parts)

    def _fetch(self, first: int) -> None:
        """A frame and those behind it."""
        last, size = first, 0
        while last < len(self._frames) and (size == 0 or size + self._frames[last].size <= READ_AHEAD_BYTES):
            size += self._frames[last].size
            last += 1
        begin = self._frames[first].offset
        blob = asyncio.run_coroutine_threadsafe(self._read_blob(begin, size), self._loop).result()
        for frame in self._frames[first:last]:
            part = memoryview(blob)[frame.offset - begin : frame.offset - begin + frame.size]
            if frame.number not in self._kept:
                self._keep(frame.number, decode_frame(frame, part, self._decompressor))

    def _keep(self, number: int, data: bytes) -> None:
        self._kept[number] = data
        self._kept_bytes += len(data)
        while self._kept_bytes > KEPT_BYTES:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= len(dropped)

    async def _read_blob(self, offset: int, length: int) -> bytes:
        chunks = self._client.read_blob(self._target.origin, self._ref.digest, offset=offset, length=length)
        async with chunks as stream:
            return b"".join([chunk async for chunk in stream])
