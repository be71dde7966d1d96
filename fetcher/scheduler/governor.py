"""The node's one fetch scheduler: faults first, then the profile, then the rest, at line rate.

All decisions happen on the event loop, synchronously, in :meth:`Governor._pump`; a run is then carried out by a task
of its own. See ``docs/concurrency.md`` for who may touch what, and when.
"""

from __future__ import annotations

import asyncio
import errno
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from fetcher.layers.layer import Layer, is_disk_full
from fetcher.model import GovernorConfig, Priority
from fetcher.registry import RegistryClient, RegistryError
from fetcher.scheduler.disk_pressure import DIRTY_CHECK_S, DiskPressure
from fetcher.scheduler.packed import PackedRun, Place, Wanted, take_packed
from fetcher.scheduler.parallelism import Parallelism
from fetcher.scheduler.queues import LayerQueue, Run, Waiter
from fetcher.scheduler.reuse import SharedFrames
from fetcher.scheduler.transfers import TRIES_PER_ORIGIN, Meter, SourceFailure, Transfers
from fetcher.tasks import TaskSet
from layerformat.frames import Frame

log = structlog.get_logger(__name__)

#: How long a layer whose sources all failed for good makes its readers wait before it fails them.
HOPELESS_DEADLINE_S = 10.0
#: For so long after a read had to wait, more such reads are expected.
BUSY_S = 0.2
#: For so long after it, another burst of them is.
QUIET_S = 2.0
HOLD_CHECK_S = 0.25
#: An image that can be here in this time is fetched whole.
SHORT_S = 3.0
#: Bandwidth times delay, so often, keeps a link busy.
LINKS_FULL = 1.5
#: The longest that a start keeps the fill waiting: what always waits for reads is to become local, too.
START_S = 30.0


@dataclass(slots=True, eq=False)
class Hold:
    """An image whose fill waits for its start; times of the monotonic clock."""

    deadline: float
    quiet_s: float
    last_read: float | None = None


class Governor:
    """Fetches frames of all layers of a node. An async context manager; leaving it ends all work."""

    def __init__(self, client: RegistryClient, config: GovernorConfig, *, on_complete: Callable[[Layer], None]) -> None:
        self._config = config
        self._on_complete = on_complete
        self._queues: dict[str, LayerQueue] = {}
        self._layer_tasks: dict[str, TaskSet] = {}
        # An OrderedDict's first key is found at once; a dict's only past all that were deleted before it.
        self._prefetch: Wanted = OrderedDict()
        self._active = dict.fromkeys(Priority, 0)
        self._prefetching_bytes = 0
        self._holds: dict[str, Hold] = {}
        self._running: set[Run | PackedRun] = set()
        self._packed_tasks = TaskSet()
        self._parallelism = Parallelism(config.streams, config.most_streams)
        self._transfers = Transfers(client, config.decode_workers, arrived=self._arrived)
        self._blocked_until: dict[str, float] = {}
        self._disk = DiskPressure(config.reserve_bytes, config.dirty_share)
        self.fault_count = 0
        self._busy_until = self._start_began = -math.inf
        self._recheck: asyncio.TimerHandle | None = None
        self.fault_wait_s = 0.0

    async def __aenter__(self) -> Governor:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Readers are not answered: they wait for the next daemon."""
        if self._recheck is not None:
            self._recheck.cancel()
        await self._packed_tasks.cancel()
        for digest in list(self._queues):
            await self._withdraw(digest)
        await asyncio.to_thread(self._transfers.close)

    @property
    def shared(self) -> SharedFrames:
        """Which frames other layers of the node hold."""
        return self._transfers.shared

    @property
    def meter(self) -> Meter:
        """Of everything received."""
        return self._transfers.meter

    @property
    def reused_bytes(self) -> int:
        """Compressed size of the frames that were copied and not fetched."""
        return self._transfers.reused_bytes

    # What the data planes and the layer store ask for.

    def add(self, layer: Layer) -> None:
        """Layers must be added before anything is asked of them; ``layer.fill_fd`` must be open."""
        if layer.digest not in self._queues:
            self._queues[layer.digest] = LayerQueue(layer, self._config)
            self._layer_tasks[layer.digest] = TaskSet()

    async def drop(self, digest: str) -> None:
        """Stop all work for a layer at once and fail its readers; returns when nothing writes to it any more."""
        queue = await self._withdraw(digest)
        if queue is not None:
            self._reply(queue.waiting, errno.EIO)
            self._pump()

    async def _withdraw(self, digest: str) -> LayerQueue | None:
        queue = self._queues.pop(digest, None)
        if queue is not None:
            queue.withdrawn = True
            for key in [key for key in self._prefetch if key[0] == digest]:
                del self._prefetch[key]
            await self._layer_tasks.pop(digest).cancel()
            for run in [run for run in self._running if isinstance(run, PackedRun)]:
                await run.leave(queue)
        return queue

    def demand(self, layer: Layer, numbers: Sequence[int], reply: Callable[[int], None]) -> None:
        """A reader waits for absent frames; ``reply`` is called with 0 when they are present, else with an errno."""
        queue = self._queues[layer.digest]
        waiter = Waiter(reply, time.monotonic())
        self.fault_count += 1
        if queue.add_waiter(numbers, waiter):
            # A reader at the fill's own front is served best by a fill at full speed.
            if waiter.since > self._busy_until + QUIET_S:
                self._start_began = waiter.since
            self._busy_until = waiter.since + BUSY_S
        self._pump()

    def note_read(self, layer: Layer, offset: int, count: int) -> None:
        """Bytes of a layer are read now, present or not: a sequential reader is fed ahead."""
        queue = self._queues.get(layer.digest)
        if queue is None or not count:
            return
        if (hold := self._holds.get(layer.digest)) is not None:
            hold.last_read = time.monotonic()
        numbers = layer.frames.covering(offset, min(offset + count, layer.frames.tar_size))
        if numbers and queue.note_read(numbers[0], numbers[-1]):
            self._pump()

    def prefetch(self, wanted: Iterable[tuple[Layer, int, Place | None]]) -> None:
        """Frames that will be needed soon, in that order, behind all faults and before all filling.

        Those that were asked for before get the place that they have in this order. What the node holds elsewhere is
        not fetched from a pack.
        """
        for layer, number, place in wanted:
            if layer.digest in self._queues and number not in layer.present:
                self._prefetch.pop((layer.digest, number), None)
                local = place is not None and self.shared.find(layer, number) is not None
                self._prefetch[layer.digest, number] = None if local else place
        self._pump()

    def fill(self, layer: Layer) -> None:
        """Fetch all of the layer in the background."""
        self._queues[layer.digest].filling = True
        self._pump()

    def hold_fill(self, digests: Iterable[str], *, at_most_s: float, quiet_s: float) -> Hold:
        """Leave the link and the processors to a start whose reads are known, or may be in a moment.

        Ends when the layers have been read and then not for ``quiet_s``, or after ``at_most_s``. A layer that is held
        for longer by another image stays so.
        """
        hold = Hold(time.monotonic() + at_most_s, quiet_s)
        for digest in digests:
            if digest not in self._holds or self._holds[digest].deadline < hold.deadline:
                self._holds[digest] = hold
        self._pump_after(HOLD_CHECK_S)
        return hold

    def let_fill(self, hold: Hold) -> None:
        """There is nothing to wait for after all."""
        for digest in [digest for digest, held in self._holds.items() if held is hold]:
            del self._holds[digest]
        self._pump()

    def _is_held(self, digest: str, now: float) -> bool:
        hold = self._holds.get(digest)
        if hold is None:
            return False
        if now < hold.deadline and (hold.last_read is None or now - hold.last_read < hold.quiet_s):
            return True
        del self._holds[digest]
        return False

    def waiting(self, digest: str) -> int:
        """How many reads wait for a layer."""
        queue = self._queues.get(digest)
        return len(queue.waiting) if queue else 0

    def fetched(self, digest: str) -> dict[str, int]:
        """Compressed bytes received for a layer, by priority."""
        received = self._transfers.received.get(digest)
        return {str(priority): received[priority] for priority in Priority} if received else {}

    # Deciding.

    def _pump(self) -> None:
        """Start as many runs as there is room and work for, the most urgent first."""
        while self._active[Priority.FAULT] < self._config.fault_streams and (run := self._next_fault()):
            self._start(run)
        while self._has_prefetch_room() and self._start_prefetch():
            pass
        busy = not self._active[Priority.PREFETCH] and self._pump_fill()
        self._parallelism.note(time.monotonic(), self._transfers.meter.bytes[Priority.FILL], busy=busy)

    def _pump_fill(self) -> bool:
        """The part that waits for the rest. Whether it has all the streams that it may ever have at a time."""
        while self._active[Priority.FILL] < self._config.streams and (run := self._next_hint()):
            self._start(run)
        streams, run_bytes = self._fill_limits()
        while self._active[Priority.FILL] < streams and (run := self._next_fill(run_bytes)):
            self._start(run)
        return self._active[Priority.FILL] >= streams == self._parallelism.streams

    def _has_prefetch_room(self) -> bool:
        """Many short requests at a time: what counts is the bytes on their way, since each pays a round trip."""
        few = self._active[Priority.PREFETCH] < self._config.prefetch_streams
        return few and self._prefetching_bytes < self._prefetch_limit()

    def _prefetch_limit(self) -> int:
        """Bytes on their way; not many more than the link holds while readers wait for what no profile named.

        What is on its way beyond that stands in a queue somewhere, and a fault's bytes behind it.
        """
        most = self._config.prefetch_bytes
        if time.monotonic() >= self._busy_until:
            return most
        meter = self._transfers.meter
        held = meter.best_bytes_per_s * meter.least_latency_s if meter.best_bytes_per_s else 0.0
        return min(most, max(self._config.busy_prefetch_bytes, int(LINKS_FULL * min(held, most))))

    def _fill_limits(self) -> tuple[int, int]:
        now = time.monotonic()
        starting = now < self._busy_until + QUIET_S
        if starting and self._seconds_to_fill() < SHORT_S:
            # All of it comes before its readers would have waited for their parts, one by one.
            return self._config.streams, self._config.hint_run_bytes
        if starting and now < self._start_began + START_S:
            self._pump_after(HOLD_CHECK_S)
            return 0, 0
        if self._active[Priority.FAULT] or now < self._busy_until:
            self._pump_after(BUSY_S)
            return self._config.busy_streams, self._config.busy_run_bytes
        if starting:
            # A program computes for a while between two bursts of reads: the next one is not to stand behind 16 MiB.
            return self._config.streams, self._config.hint_run_bytes
        # However many streams there are, as much is on its way: a fault waits no longer for its turn.
        streams = self._parallelism.streams
        return streams, self._config.run_bytes * self._config.streams // streams

    def _seconds_to_fill(self) -> float:
        """How long everything that is to be filled would take at the best rate so far."""
        rate = self._transfers.meter.best_bytes_per_s
        absent = (layer.absent_bytes for layer in (queue.layer for queue in self._queues.values() if queue.filling))
        return sum(absent) / rate if rate else math.inf

    def _next_fault(self) -> Run | None:
        now = time.monotonic()
        for digest, queue in self._queues.items():
            if self._blocked_until.get(digest, 0.0) <= now and (
                run := queue.take_fault_run() or queue.take_ahead_run()
            ):
                return run
        return None

    def _next_hint(self) -> Run | None:
        if not self._disk_allows_fill():
            return None
        runs = (queue.take_hint_run(self._config.hint_run_bytes) for queue in self._filling())
        return next((run for run in runs if run is not None), None)

    def _next_fill(self, run_bytes: int) -> Run | None:
        if not self._disk_allows_fill():
            return None
        runs = (queue.take_fill_run(run_bytes) for queue in self._filling())
        return next((run for run in runs if run is not None), None)

    def _filling(self) -> list[LayerQueue]:
        now = time.monotonic()
        wanted = [queue for queue in self._queues.values() if queue.filling]
        free = [queue for queue in wanted if self._blocked_until.get(queue.layer.digest, 0.0) <= now]
        ready = [queue for queue in free if not self._is_held(queue.layer.digest, now)]
        if len(ready) < len(free):
            self._pump_after(HOLD_CHECK_S)
        return ready

    def _start_prefetch(self) -> bool:
        while self._prefetch:
            (digest, number), place = next(iter(self._prefetch.items()))
            if place is not None and place.pack.usable:
                run_bytes = min(self._config.run_bytes, self._prefetch_limit())
                if packed := take_packed(self._prefetch, self._queues, run_bytes):
                    self._start_packed(packed)
                    return True
            elif run := self._next_prefetch(digest, number):
                self._start(run)
                return True
            self._prefetch.pop((digest, number), None)
        return False

    def _next_prefetch(self, digest: str, number: int) -> Run | None:
        queue = self._queues.get(digest)
        run = queue.take_run_from(number, partial(self._is_prefetch, digest)) if queue is not None else None
        for frame in run.frames if run is not None else ():
            self._prefetch.pop((digest, frame.number), None)
        return run

    def _is_prefetch(self, digest: str, number: int) -> bool:
        return (digest, number) in self._prefetch

    def _disk_allows_fill(self) -> bool:
        queue = next(iter(self._queues.values()), None)
        if queue is None or self._disk.allows_fill(queue.layer.directory, time.monotonic()):
            return True
        self._pump_after(DIRTY_CHECK_S)
        return False

    def _pump_after(self, delay_s: float) -> None:
        """Decide again after a while; one such call is pending at a time."""
        if self._recheck is None:
            self._recheck = asyncio.get_running_loop().call_later(delay_s, self._check_again)

    def _check_again(self) -> None:
        self._recheck = None
        self._pump()

    # Doing.

    def _start(self, run: Run) -> None:
        self._started(run)
        work = self._layer_tasks[run.layer.digest].start(self._carry_out(run), f"fetch {run.layer.short} {run.offset}")
        # A task that is cancelled before its first step never comes to its `finally`.
        work.add_done_callback(lambda _: self._stopped(run))

    def _start_packed(self, run: PackedRun) -> None:
        self._started(run)
        work = self._packed_tasks.start(self._carry_out_packed(run), f"fetch pack {run.offset}")
        work.add_done_callback(lambda _: self._stopped(run))

    def _started(self, run: Run | PackedRun) -> None:
        self._active[run.priority] += 1
        self._prefetching_bytes += run.size if run.priority is Priority.PREFETCH else 0
        self._running.add(run)

    def _stopped(self, run: Run | PackedRun) -> None:
        if run in self._running:
            self._running.remove(run)
            self._active[run.priority] -= 1
            self._prefetching_bytes -= run.size if run.priority is Priority.PREFETCH else 0

    async def _carry_out(self, run: Run) -> None:
        """Fetch a run and settle everything that depends on it."""
        queue = self._queues[run.layer.digest]
        failure: SourceFailure | OSError | None = None
        try:
            await self._transfers.fetch(run, queue)
        except (SourceFailure, OSError) as error:
            failure = error
        finally:
            self._stopped(run)
            queue.give_back(run)
        if failure is not None:
            self._handle_failure(run, queue, failure)
        else:
            run.layer.source_error = None
            queue.requeue_waiting()
        if run.layer.present.complete:
            self._on_complete(run.layer)
        self._pump()

    async def _carry_out_packed(self, run: PackedRun) -> None:
        """Fetch neighbours of a pack. What does not come that way comes from its layer."""
        failure: OSError | None = None
        try:
            await self._transfers.fetch_packed(run)
        except RegistryError as error:
            run.pack.failed(error)
        except OSError as error:
            failure = error
        finally:
            self._stopped(run)
            for queue, share in run.wanted_shares():
                queue.give_back(share)
        if failure is None:
            run.put_back(self._prefetch)
        for queue, share in run.wanted_shares():
            if failure is not None:
                self._handle_failure(share, queue, failure)
            else:
                queue.requeue_waiting()
            if queue.layer.present.complete:
                self._on_complete(queue.layer)
        self._pump()

    def _arrived(self, queue: LayerQueue, frame: Frame) -> None:
        queue.layer.mark_present(frame)
        self._reply(queue.arrived(frame), 0)

    def _reply(self, waiters: Iterable[Waiter], error: int) -> None:
        now = time.monotonic()
        for waiter in waiters:
            self.fault_wait_s += now - waiter.since
            waiter.reply(error)

    # When sources fail.

    def _handle_failure(self, run: Run, queue: LayerQueue, failure: SourceFailure | OSError) -> None:
        """Fail the readers whose time is up; the others and the filling try again after a while."""
        if run.layer.digest not in self._queues:
            return
        layer = run.layer
        layer.source_error = str(failure)
        log.warning("run_failed", layer=layer.digest, frames=[f.number for f in run.frames[:4]], error=str(failure))
        numbers = [frame.number for frame in run.frames if frame.number not in layer.present]
        self._reply(queue.fail_waiters(self._given_up(queue, numbers, failure)), _errno_of(failure))
        if not isinstance(failure, SourceFailure) or failure.down:
            self._blocked_until[layer.digest] = time.monotonic() + self._config.retry_interval_s
        asyncio.get_running_loop().call_later(self._config.retry_interval_s, self._retry, queue)

    def _given_up(self, queue: LayerQueue, numbers: list[int], failure: SourceFailure | OSError) -> list[int]:
        if isinstance(failure, SourceFailure):
            deadline_s = HOPELESS_DEADLINE_S if failure.hopeless else self._config.fault_deadline_s
        else:
            deadline_s = self._config.fault_deadline_s if is_disk_full(failure) else 0.0
        now = time.monotonic()
        return [
            number
            for number in numbers
            if queue.failures.get(number, 0) >= TRIES_PER_ORIGIN * len(queue.layer.origins)
            or any(now - waiter.since >= deadline_s for waiter in queue.waiters.get(number, ()))
        ]

    def _retry(self, queue: LayerQueue) -> None:
        if self._queues.get(queue.layer.digest) is queue:
            self._blocked_until.pop(queue.layer.digest, None)
            queue.requeue_waiting()
            self._pump()


def _errno_of(failure: SourceFailure | OSError) -> int:
    if isinstance(failure, OSError) and is_disk_full(failure):
        return errno.ENOSPC
    return errno.EIO
