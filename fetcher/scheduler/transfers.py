"""Carrying out runs: the range request, the frames that come of it, and what the node had already."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

import structlog

from fetcher.model import Priority
from fetcher.registry import Origin, RegistryClient, RegistryError, is_transient
from fetcher.scheduler.decode import BATCH_BYTES, Data, Decoded, DecodePool, FrameAssembler
from fetcher.scheduler.packed import PackedRun
from fetcher.scheduler.queues import LayerQueue, Piece, Run
from fetcher.scheduler.reuse import SharedFrames
from layerformat.frames import Frame

log = structlog.get_logger(__name__)

#: A frame that came wrong this often from each of its origins is given up.
TRIES_PER_ORIGIN = 2
#: Batches a run may have at the decoders before it stops reading from its socket.
PENDING_BATCHES = 4
#: Frames copied from other layers by one call of a worker.
COPY_BATCH = 8
RATE_WINDOW_S = 3.0
BEST_WINDOW_S = 0.5

#: Frames with their compressed bytes.
Batch = list[tuple[Piece, Data]]


class SourceFailure(Exception):
    """No origin gave a run's frames. ``down``: they could not be asked; ``hopeless``: waiting will not mend that."""

    def __init__(self, message: str, *, down: bool, hopeless: bool) -> None:
        super().__init__(message)
        self.down = down
        self.hopeless = hopeless


@dataclass(slots=True)
class Meter:
    """Compressed bytes received, by priority, and the rate over the last seconds."""

    bytes: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(Priority, 0))
    best_bytes_per_s: float = 0.0  # of any half second
    least_latency_s: float = math.inf  # from a request to its answer
    _window: list[tuple[float, int]] = field(default_factory=list)

    def add(self, priority: Priority, count: int) -> None:
        """Bytes came."""
        self.bytes[priority] += count
        now = time.monotonic()
        if self._window and now - self._window[-1][0] < 0.1:
            self._window[-1] = (self._window[-1][0], self._window[-1][1] + count)
            return
        self.best_bytes_per_s = max(self.best_bytes_per_s, self._since(now - BEST_WINDOW_S) / BEST_WINDOW_S)
        self._window.append((now, count))
        while self._window[0][0] < now - RATE_WINDOW_S:
            self._window.pop(0)

    def rate_bytes_per_s(self) -> float:
        """Over the last :data:`RATE_WINDOW_S`."""
        return self._since(time.monotonic() - RATE_WINDOW_S) / RATE_WINDOW_S

    def _since(self, time_s: float) -> int:
        return sum(count for at, count in self._window if at >= time_s)


class Transfers:
    """Fetches runs. Frames are reported on the event loop, each as soon as its verified bytes are written."""

    def __init__(
        self, client: RegistryClient, decode_workers: int, *, arrived: Callable[[LayerQueue, Frame], None]
    ) -> None:
        self._client = client
        self._decoders = DecodePool(decode_workers)
        self._arrived = arrived
        self.shared = SharedFrames()
        self.meter = Meter()
        self.received: dict[str, Counter[Priority]] = {}  # compressed bytes of each layer
        self.reused_bytes = 0

    def close(self) -> None:
        """Wait for the workers. Blocks."""
        self._decoders.close()

    async def fetch(self, run: Run, queue: LayerQueue) -> None:
        """Copy what the node has, then try the layer's origins in turn until every frame of the run is present.

        Raises SourceFailure or OSError.
        """
        await self._copy_local(run, queue)
        problems: list[str] = []
        hopeless = True
        for attempt in range(TRIES_PER_ORIGIN):
            for origin in self._origins(run, attempt):
                remaining = _absent_stretches(run)
                if not remaining:
                    return
                try:
                    for stretch in remaining:
                        await self._stream(run, stretch, origin, queue)
                except RegistryError as error:
                    hopeless = hopeless and not is_transient(error)
                    problems.append(f"{origin.host}/{origin.repository}: {error}")
            if not hopeless:
                break
        if _absent_stretches(run):
            wrong = [frame.number for frame in run.frames if queue.failures.get(frame.number)]
            sources = ", ".join(f"{origin.host}/{origin.repository}" for origin in run.layer.origins) or "no origin"
            message = "; ".join(dict.fromkeys(problems)) or f"frames {wrong} did not verify from {sources}"
            raise SourceFailure(message, down=bool(problems), hopeless=hopeless)

    async def _copy_local(self, run: Run, queue: LayerQueue) -> None:
        batch = []
        for frame in run.frames:
            if frame.number not in run.layer.present and (match := self.shared.find(run.layer, frame.number)):
                batch.append((Piece(queue, frame), *match))
        for start in range(0, len(batch), COPY_BATCH):
            copied = await self._decoders.copy(batch[start : start + COPY_BATCH])
            for piece in copied.wrong:
                self.shared.discard(run.layer.digest, piece.frame.number)
            for piece in copied.written:
                self.reused_bytes += piece.frame.size
                self._arrived(*piece)
            if copied.disk_error is not None:
                raise copied.disk_error

    def _origins(self, run: Run, attempt: int) -> list[Origin]:
        origins = run.layer.origins
        return origins[attempt % len(origins) :] + origins[: attempt % len(origins)] if origins else []

    async def _stream(self, run: Run, frames: list[Frame], origin: Origin, queue: LayerQueue) -> None:
        """One range request, its frames decoded as they come whole."""
        offset, size = frames[0].offset, frames[-1].offset + frames[-1].size - frames[0].offset
        asked = time.monotonic()
        async with (
            BatchDecoder(partial(self._decode, origin)) as decoder,
            self._client.read_blob(origin, run.layer.digest, offset=offset, length=size) as chunks,
        ):
            self.meter.least_latency_s = min(self.meter.least_latency_s, time.monotonic() - asked)
            pieces = [Piece(queue, frame) for frame in frames]
            async with aclosing(self._received(chunks, pieces, decoder, run.priority)) as progress:
                async for received in progress:
                    run.received_to = offset + received

    async def fetch_packed(self, run: PackedRun) -> None:
        """One range request of a pack. Raises RegistryError, or OSError; what did not verify is absent afterwards."""
        async with (
            BatchDecoder(partial(self._decode_packed, run)) as decoder,
            self._client.read_blob(run.pack.origin, run.pack.digest, offset=run.offset, length=run.size) as chunks,
        ):
            run.settled = decoder.settled
            async with aclosing(self._received(chunks, run.pieces, decoder, Priority.PREFETCH)) as progress:
                async for received in progress:
                    run.note_received(received)
                    if not run.wanted_shares():
                        break

    async def _received(
        self, chunks: AsyncIterator[bytes], pieces: Sequence[Piece], decoder: BatchDecoder, priority: Priority
    ) -> AsyncGenerator[int, None]:
        """Hand frames to the decoder as they come whole; tells after each chunk how many bytes have come."""
        assembler = FrameAssembler(pieces)
        total = 0
        async for chunk in chunks:
            self.meter.add(priority, len(chunk))
            total += len(chunk)
            for piece, data in assembler.feed(chunk):
                queue, frame = piece
                self.received.setdefault(queue.layer.digest, Counter())[priority] += frame.size
                await decoder.add(piece, data, at_once=priority is Priority.FAULT or frame.number in queue.waiters)
            yield total

    async def _decode(self, origin: Origin, batch: Batch) -> None:
        """Bring a batch into the layer file and release who waited for it. Raises OSError when the disk refuses."""
        decoded = await self._decode_absent(batch)
        for queue, frame in decoded.wrong:
            queue.failures[frame.number] = queue.failures.get(frame.number, 0) + 1
            source = f"{origin.host}/{origin.repository}"
            queue.layer.last_error = f"frame {frame.number} from {source} did not verify"
            log.error("frame_verification_failed", layer=queue.layer.digest, frame=frame.number, source=source)
        if decoded.disk_error is not None:
            raise decoded.disk_error

    async def _decode_packed(self, run: PackedRun, batch: Batch) -> None:
        """The same for frames of a pack: if it lies, that says nothing of the layers and their origins."""
        decoded = await self._decode_absent(batch)
        for queue, frame in decoded.wrong:
            run.pack.give_up(f"frame {frame.number} of layer {queue.layer.digest} did not verify")
        if decoded.disk_error is not None:
            raise decoded.disk_error

    async def _decode_absent(self, batch: Batch) -> Decoded:
        absent = [
            (piece, data)
            for piece, data in batch
            if not piece.queue.withdrawn and piece.frame.number not in piece.queue.layer.present
        ]
        if not absent:
            return Decoded()
        urgent = any(piece.frame.number in piece.queue.waiters for piece, _ in absent)
        decoded = await self._decoders.decode(absent, urgent=urgent)
        for piece in decoded.written:
            self._arrived(*piece)
        return decoded


class BatchDecoder:
    """Hands a stream's frames to the decoders in batches, a bounded number at a time. Leaving it waits for them all."""

    def __init__(self, decode: Callable[[Batch], Coroutine[None, None, None]]) -> None:
        self._decode = decode
        self._batch: Batch = []
        self._pending: set[asyncio.Task[None]] = set()
        self._batch_bytes = 0

    async def __aenter__(self) -> BatchDecoder:
        return self

    async def add(self, piece: Piece, data: Data, *, at_once: bool) -> None:
        """Take a frame, `at_once` by itself; waits while too many are under way. Raises OSError from an earlier one."""
        if at_once:
            self._submit([(piece, data)])
        else:
            self._batch.append((piece, data))
            self._batch_bytes += piece.frame.length
            if self._batch_bytes >= BATCH_BYTES:
                self._submit_batch()
        while len(self._pending) >= PENDING_BATCHES:
            await self._wait(asyncio.FIRST_COMPLETED)

    def _submit_batch(self) -> None:
        if self._batch:
            batch, self._batch, self._batch_bytes = self._batch, [], 0
            self._submit(batch)

    def _submit(self, batch: Batch) -> None:
        self._pending.add(asyncio.ensure_future(self._decode(batch)))

    async def settled(self) -> None:
        """Wait for all that is under way now."""
        if self._pending:
            await asyncio.wait(set(self._pending))

    async def _wait(self, until: str) -> None:
        done, self._pending = await asyncio.wait(self._pending, return_when=until)
        errors = [error for task in done if (error := task.exception()) is not None]
        if errors:
            raise errors[0]

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """A batch that a worker has begun is always waited for: nobody else may touch its part of the layer file."""
        if kind is None:
            self._submit_batch()
        interrupted: BaseException | None = None
        while self._pending:
            try:
                await self._wait(asyncio.ALL_COMPLETED)
            except asyncio.CancelledError as error:
                interrupted = error
            except OSError as error:
                interrupted = interrupted or error
        if interrupted is not None and kind is None:
            raise interrupted


def _absent_stretches(run: Run) -> list[list[Frame]]:
    """The frames of a run that are still absent, as stretches of neighbours."""
    stretches: list[list[Frame]] = []
    for frame in run.frames:
        if frame.number in run.layer.present:
            continue
        if stretches and stretches[-1][-1].number + 1 == frame.number:
            stretches[-1].append(frame)
        else:
            stretches.append([frame])
    return stretches
