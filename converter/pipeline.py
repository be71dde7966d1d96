"""One layer, from the source's chunks to the destination's: read, unpack, pad, cut, compress, index. Streaming
throughout.

A reader thread unpacks and cuts; worker threads compress, any number of frames ahead of the upload up to a bound; the
upload takes frames in order. Memory of a layer in progress: one chunk of the source, `STEP_BYTES` and the frames of
the window. Nothing goes to disk.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from converter.compress import CompressedFrame, FrameCompressor, decompressed
from converter.cuts import CutPlan
from converter.errors import MalformedLayer
from converter.framer import frames_of
from converter.sources import aclosing_if_possible
from converter.tarlayer import PaddedTar
from converter.threads import ChunkReader, Threads, run_to_end
from layerformat.annotations import FORMAT_VERSION, LayerRef
from layerformat.digest import DiffID, Digest, sha256_digest
from layerformat.entries import Entry
from layerformat.erofs_write import build_metadata
from layerformat.errors import FormatError
from layerformat.frames import SKIPPABLE_HEADER, FrameTable, encode_tail
from layerformat.index import Index, encode_index

#: Plain bytes that one call into the reader thread makes, about.
STEP_BYTES: Final = 2 << 20

Inherit = Callable[[frozenset[bytes]], Awaitable[Mapping[bytes, Entry]]]
"""Asks lower layers for the directories at some paths."""
Push = Callable[[AsyncIterator[bytes]], Awaitable[tuple[Digest, int]]]

_Frames = asyncio.Queue[asyncio.Future[CompressedFrame] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenLayer:
    """A converted layer at the destination, and its entries. `inherits`: it took attributes from lower layers."""

    ref: LayerRef
    entries: tuple[Entry, ...]
    inherits: bool


class LayerPipeline:
    """Converts one layer, once. `diff_id` is what the plain tar must have, None where `chunks` are verified by it."""

    def __init__(
        self,
        *,
        chunks: AsyncIterator[bytes],
        diff_id: DiffID | None,
        plan: CutPlan,
        compress: FrameCompressor,
        threads: Threads,
        inherit: Inherit,
        on_chunk: Callable[[int], None],
    ) -> None:
        self._chunks = chunks
        self._reader = ChunkReader(chunks, on_chunk)
        self._source_diff_id = diff_id
        self._compress = compress
        self._threads = threads
        self._inherit = inherit
        self._source_hash = hashlib.sha256()
        self._tar_hash = hashlib.sha256()
        self._plain: Callable[[], bytes] | None = None
        self._tar = PaddedTar(self._read_plain)
        self._frames = frames_of(self._tar, plan)
        self._rows: list[tuple[int, int, bytes]] = []
        self._written: tuple[Index, bytes] | None = None
        self._entries: tuple[Entry, ...] = ()
        self._inherits = False

    async def run(self, push: Push) -> WrittenLayer:
        """Convert and store. Whatever goes wrong, `push` ends with an error and stores nothing."""
        window = max(8, 2 * self._threads.jobs)
        queue: _Frames = asyncio.Queue(window)
        async with aclosing_if_possible(self._chunks):
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._produce(queue))
                    pushed = group.create_task(self._push(push, queue))
            except BaseExceptionGroup as failures:
                raise_first(failures)
        digest, size = pushed.result()
        return WrittenLayer(ref=self._ref(digest, size), entries=self._entries, inherits=self._inherits)

    async def _push(self, push: Push, queue: _Frames) -> tuple[Digest, int]:
        async with aclosing_if_possible(self._blob(queue)) as blob:
            return await push(blob)

    async def _produce(self, queue: _Frames) -> None:
        loop = asyncio.get_running_loop()
        hashed: asyncio.Future[None] | None = None
        while frames := await run_to_end(self._threads.readers, self._step, self._reader.close):
            if hashed is not None:
                await hashed
            hashed = loop.run_in_executor(self._threads.workers, self._hash, frames)
            for frame in frames:
                await queue.put(loop.run_in_executor(self._threads.workers, self._compress, frame))
        if hashed is not None:
            await hashed
        self._check_source()
        await queue.put(None)

    def _step(self) -> list[bytes]:
        """The next frames, none at the end. Runs in the reader thread."""
        frames: list[bytes] = []
        size = 0
        try:
            for frame in self._frames:
                frames.append(frame)
                size += len(frame)
                if size >= STEP_BYTES:
                    break
        except OverflowError as exc:  # a number beyond what the platform can hold
            raise MalformedLayer(f"tar: impossible number: {exc}") from exc
        return frames

    def _read_plain(self) -> bytes:
        if self._plain is None:
            self._plain = decompressed(self._reader.read)
        data = self._plain()
        if self._source_diff_id is not None:
            self._source_hash.update(data)
        return data

    def _hash(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._tar_hash.update(frame)

    def _check_source(self) -> None:
        if self._source_diff_id is None:
            return
        found = f"sha256:{self._source_hash.hexdigest()}"
        if found != self._source_diff_id:
            raise MalformedLayer(f"the layer's tar is {found}, but the image's config says {self._source_diff_id}")

    async def _blob(self, queue: _Frames) -> AsyncIterator[bytes]:
        while (future := await queue.get()) is not None:
            frame = await future
            self._rows.append((len(frame.data), frame.length, frame.sha256))
            yield frame.data
        needed = frozenset(self._tar.tree.implied)
        inherited = await self._inherit(needed) if needed else {}
        self._inherits = bool(inherited)
        index, payload = await asyncio.to_thread(self._make_index, inherited)
        self._written = index, payload
        yield encode_tail(index.frames, payload)

    def _make_index(self, inherited: Mapping[bytes, Entry]) -> tuple[Index, bytes]:
        try:
            entries = self._tar.tree.entries(inherited)
            frames = FrameTable.from_sizes(self._rows)
            index = Index(
                diff_id=DiffID(Digest(f"sha256:{self._tar_hash.hexdigest()}")),
                frames=frames,
                metadata=build_metadata(entries, device_bytes=frames.tar_size),
            )
            payload = encode_index(index)
        except FormatError as exc:
            raise MalformedLayer(str(exc)) from exc
        self._entries = tuple(entries)
        return index, payload

    def _ref(self, digest: Digest, size: int) -> LayerRef:
        assert self._written is not None
        index, payload = self._written
        return LayerRef(
            version=FORMAT_VERSION,
            digest=digest,
            size=size,
            index_offset=index.frames.data_size + SKIPPABLE_HEADER.size,
            index_size=len(payload),
            index_digest=sha256_digest(payload),
            diff_id=index.diff_id,
        )


def raise_first(failures: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raise the one error that a person should see; the others are its consequences."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [failures]
    while pending:
        exc = pending.pop(0)
        if isinstance(exc, BaseExceptionGroup):
            pending += exc.exceptions
        else:
            leaves.append(exc)
    raise leaves[0] from leaves[0].__cause__
