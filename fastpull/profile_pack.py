"""Making a pack: the frames a profile names are read from the registry, verified, and written one after the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing

import zstandard

from fastpull.profile_target import Target
from fetcher.profiles import packs
from fetcher.profiles.pack import Pack, frames_to_pack, pack_of
from fetcher.profiles.profile import Profile
from fetcher.registry import Descriptor, RegistryClient
from layerformat.digest import DiffID, Digest
from layerformat.errors import FormatError
from layerformat.frames import Frame, FrameTable, decode_frame

#: Compressed bytes read by one request; a larger frame is read alone.
PART_BYTES = 4 << 20
#: Requests under way.
READS_AHEAD = 16

#: Neighbouring frames of a layer, with its number.
Part = tuple[int, list[Frame]]


async def push_pack(
    client: RegistryClient, target: Target, profile: Profile, tables: Mapping[DiffID, FrameTable]
) -> tuple[Pack, Descriptor]:
    """Make the image's pack and attach it.

    Raises ProfileError for a profile that does not fit, FormatError for a frame that is wrong, RegistryError.
    """
    frames = frames_to_pack(profile, [(ref, tables[ref.diff_id]) for ref in target.layers])
    digests = [ref.digest for ref in target.layers]
    pack = pack_of(digests, frames)
    async with aclosing(_bytes(client, target, digests, frames)) as chunks:
        return pack, await packs.push(client, target.origin, target.digest, pack, chunks, profile.created)


async def _bytes(
    client: RegistryClient, target: Target, digests: Sequence[Digest], frames: Sequence[tuple[int, Frame]]
) -> AsyncGenerator[bytes, None]:
    """The pack's bytes in its order, read some requests ahead."""
    ahead: deque[asyncio.Task[bytes]] = deque()
    try:
        for layer, neighbours in _parts(frames):
            ahead.append(asyncio.ensure_future(_read(client, target, digests[layer], neighbours)))
            if len(ahead) >= READS_AHEAD:
                yield await ahead.popleft()
        while ahead:
            yield await ahead.popleft()
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


def _parts(frames: Sequence[tuple[int, Frame]]) -> Iterator[Part]:
    part: Part | None = None
    for layer, frame in frames:
        if part is not None:
            last = part[1][-1]
            follows = (part[0], last.number + 1) == (layer, frame.number)
            if follows and frame.offset + frame.size - part[1][0].offset <= PART_BYTES:
                part[1].append(frame)
                continue
            yield part
        part = (layer, [frame])
    if part is not None:
        yield part


async def _read(client: RegistryClient, target: Target, digest: Digest, frames: list[Frame]) -> bytes:
    offset, length = frames[0].offset, frames[-1].offset + frames[-1].size - frames[0].offset
    async with client.read_blob(target.origin, digest, offset=offset, length=length) as chunks:
        data = b"".join([chunk async for chunk in chunks])
    try:
        await asyncio.to_thread(_verify, data, frames)
    except FormatError as problem:
        raise FormatError(f"layer {digest}: {problem}") from None
    return data


def _verify(data: bytes, frames: list[Frame]) -> None:
    """Raise FormatError for a frame that is not what the index says: nodes would refuse a pack of it."""
    decompressor = zstandard.ZstdDecompressor()
    for frame in frames:
        start = frame.offset - frames[0].offset
        decode_frame(frame, memoryview(data)[start : start + frame.size], decompressor)
