"""Carrying out runs: the range request, the frames that come of it, and what the node had already."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial

import structlog

from fetcher.model import Priority
from fetcher.registry import Origin, RegistryClient, RegistryError, is_transient
from fetcher.scheduler.decode import BATCH_BYTES, Data, DecodePool, FrameAssembler
from fetcher.scheduler.queues import LayerQueue, Run
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
Batch = list[tuple[Frame, Data]]


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
                batch.append((frame, *match))
        for start in range(0, len(batch), COPY_BATCH):
            copied = await self._decoders.copy(run.layer, batch[start : start + COPY_BATCH])
            for frame in copied.wrong:
                self.shared.discard(run.layer.digest, frame.number)
            for frame in copied.written:
                self.reused_bytes += frame.size
                self._arrived(queue, frame)
            if copied.disk_error is not None:
                raise copied.disk_error

    def _origins(self, run: Run, attempt: int) -> list[Origin]:
        origins = run.layer.origins
        return origins[attempt % len(origins) :] + origins[: attempt % len(origins)] if origins else []

    async def _stream(self, run: Run, frames: list[Frame], origin: Origin, queue: LayerQueue) -> None:
        """One range request, its frames decoded as they come whole."""
        assembler = FrameAssembler(frames)
        size = frames[-1].offset + frames[-1].size - frames[0].offset
        urgent = run.priority is Priority.FAULT
        async with (
            BatchDecoder(partial(self._decode, run, origin, queue)) as decoder,
            self._client.read_blob(origin, run.layer.digest, offset=frames[0].offset, length=size) as chunks,
        ):
            async for chunk in chunks:
                self.meter.add(run.priority, len(chunk))
                self.received.setdefault(run.layer.digest, Counter())[run.priority] += len(chunk)
                for frame, data in assembler.feed(chunk):
                    await decoder.add(frame, data, at_once=urgent or frame.number in queue.waiters)
                run.received_to = assembler.received_to

    async def _decode(self, run: Run, origin: Origin, queue: LayerQueue, batch: Batch) -> None:
        """Bring a batch into the layer file and release who waited for it. Raises OSError when the disk refuses."""
        batch = [(frame, data) for frame, data in batch if frame.number not in run.layer.present]
        if not batch:
            return
        decoded = await self._decoders.decode(run.layer, batch)
        for frame in decoded.written:
            self._arrived(queue, frame)
        for frame in decoded.wrong:
            queue.failures[frame.number] = queue.failures.get(frame.number, 0) + 1
            run.layer.last_error = f"frame {frame.number} from {origin.host}/{origin.repository} did not verify"
            log.error(
                "frame_verification_failed",
                layer=run.layer.digest,
                frame=frame.number,
                source=f"{origin.host}/{origin.repository}",
            )
        if decoded.disk_error is not None:
            raise decoded.disk_error


class BatchDecoder:
    """Hands a stream's frames to the decoders in batches, a bounded number at a time. Leaving it waits for them all."""

    def __init__(self, decode: Callable[[Batch], Coroutine[None, None, None]]) -> None:
        self._decode = decode
        self._batch: Batch = []
        self._pending: set[asyncio.Task[None]] = set()
        self._batch_bytes = 0

    async def __aenter__(self) -> BatchDecoder:
        return self

    async def add(self, frame: Frame, data: Data, *, at_once: bool) -> None:
        """Take a frame; waits while too many batches are under way. Raises OSError from an earlier batch."""
        self._batch.append((frame, data))
        self._batch_bytes += frame.length
        if at_once or self._batch_bytes >= BATCH_BYTES:
            self._submit()
        while len(self._pending) >= PENDING_BATCHES:
            await self._wait(asyncio.FIRST_COMPLETED)

    def _submit(self) -> None:
        if self._batch:
            batch, self._batch, self._batch_bytes = self._batch, [], 0
            self._pending.add(asyncio.ensure_future(self._decode(batch)))

    async def _wait(self, until: str) -> None:
        done, self._pending = await asyncio.wait(self._pending, return_when=until)
        errors = [error for task in done if (error := task.exception()) is not None]
        if errors:
            raise errors[0]

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """A batch that a worker has begun is always waited for: nobody else may touch its part of the layer file."""
        if kind is None:
            self._submit()
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
