"""What to fetch next: pure decisions over one layer's frames, no I/O.

Per layer there are three sources of work. *Faults* are frames a reader waits for. *Hints* are what lies around
recent faults, which is likely to be read soon. *Fill* is everything else, front to back. A frame is in at most one
run at a time, except that a fault may overtake a run of lower priority whose stream is still far away from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fetcher.layers.layer import Layer
from fetcher.model import GovernorConfig, Priority
from layerformat.frames import Frame

#: A frame whose turn in its run comes only after this many bytes is fetched by a request of its own.
OVERTAKE_BYTES = 256 << 10
#: What lies in the same aligned block of the tar as a fault is likely to be read soon. Measured on a start of PyTorch:
#: of 3,300 single misses 400 are left.
AROUND_BYTES = 4 << 20
#: What a reader gets that faulted for the second time in a row where it was expected.
FIRST_WINDOW_FRAMES = 4
#: How many sequential readers of one layer are told apart.
READERS = 16


@dataclass(slots=True, eq=False)
class Run:
    """Frames of one layer that one range request brings; ``received_to`` moves as its bytes come.

    They are neighbours in the layer's blob, or else ``places`` tells where in another one they are.
    """

    layer: Layer
    frames: list[Frame]
    priority: Priority
    received_to: int = 0
    places: Mapping[int, int] = field(default_factory=dict)

    @property
    def offset(self) -> int:
        """Of the first byte in the layer's blob."""
        return self.frames[0].offset

    @property
    def size(self) -> int:
        """Compressed bytes."""
        return sum(frame.size for frame in self.frames)

    def bytes_before(self, number: int) -> int:
        """How much is still to come before a frame's turn."""
        return self.places.get(number, self.layer.frames[number].offset) - self.received_to


@dataclass(slots=True, eq=False)
class Waiter:
    """A read that goes on when all its frames are present; ``reply`` gets 0, or the errno to fail with."""

    reply: Callable[[int], None]
    since: float
    missing: set[int] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Reader:
    """Something that reads a layer from front to back, as far as it has shown.

    Frames [start, front) were fetched for it. Once it is known to be sequential, ``window_bytes`` is how much is
    fetched ahead of it at a time, before it asks.
    """

    start: int
    front: int
    window_bytes: int = 0


class LayerQueue:
    """The work of one layer. Every method is quick and synchronous."""

    def __init__(self, layer: Layer, config: GovernorConfig) -> None:
        self.layer = layer
        self.config = config
        self.waiters: dict[int, list[Waiter]] = {}
        self.inflight: dict[int, Run] = {}
        self.failures: dict[int, int] = {}
        self.filling = False
        self.withdrawn = False  # nothing may be written to the layer file any more
        self._faults: dict[int, None] = {}
        self._hints: deque[int] = deque(maxlen=64)
        self._fill_from = 0
        self._readers: deque[Reader] = deque(maxlen=READERS)
        self._ahead: dict[int, Reader] = {}

    def add_waiter(self, numbers: Iterable[int], waiter: Waiter) -> bool:
        """A reader needs these absent frames; tells whether any of them was not on its way already."""
        news = False
        for number in numbers:
            waiter.missing.add(number)
            self.waiters.setdefault(number, []).append(waiter)
            news |= number not in self.inflight
            self._request(number)
        return news

    def _request(self, number: int) -> None:
        run = self.inflight.get(number)
        if run is not None and not self._worth_overtaking(run, number):
            return
        self._faults[number] = None

    def _worth_overtaking(self, run: Run, number: int) -> bool:
        return run.priority is not Priority.FAULT and run.bytes_before(number) > OVERTAKE_BYTES

    def requeue_waiting(self) -> None:
        """Ask again for every frame that has waiters and is on no way here."""
        for number in self.waiters:
            if number not in self.inflight:
                self._faults[number] = None

    def take_fault_run(self) -> Run | None:
        """The oldest fault, its neighbours that are waited for too, and what a sequential reader will want next."""
        while self._faults:
            number = next(iter(self._faults))
            del self._faults[number]
            if number in self.layer.present:
                continue
            reader = self._reader_at(number)
            run = self._extend(number, reader.window_bytes, Priority.FAULT)
            reader.start, reader.front = number, run.frames[-1].number + 1
            self._hints.append(number)
            return run
        return None

    def _reader_at(self, number: int) -> Reader:
        """Whose fault this is: a known reader's, which is sequential then, or a new one's."""
        for reader in self._readers:
            if reader.front == number:
                self._widen(reader)
                return reader
        reader = Reader(number, number)
        self._readers.append(reader)
        return reader

    def _widen(self, reader: Reader) -> None:
        least = FIRST_WINDOW_FRAMES * self.layer.frames[reader.start].size
        reader.window_bytes = min(max(2 * reader.window_bytes, least), self.config.readahead_bytes)

    def note_read(self, first: int, last: int) -> bool:
        """Frames [first, last] are read now; tells whether their reader has come so far that it wants more ahead."""
        for reader in self._readers:
            if not reader.start <= first < reader.front or not reader.window_bytes:
                continue
            if (
                reader.front < len(self.layer.frames)
                and self._bytes_between(last, reader.front) < reader.window_bytes / 2
            ):
                reader.start = first
                self._ahead[id(reader)] = reader
                return True
        return False

    def _bytes_between(self, first: int, last: int) -> int:
        frames = self.layer.frames
        return frames[last].offset - frames[min(first, last)].offset

    def take_ahead_run(self) -> Run | None:
        """The next window of a sequential reader."""
        while self._ahead:
            _, reader = self._ahead.popitem()
            number = self.layer.present.first_absent(reader.front)
            while number < len(self.layer.frames) and number in self.inflight:
                number += 1
            reader.front = number
            if number < len(self.layer.frames) and self.is_free(number):
                self._widen(reader)
                run = self._extend(number, reader.window_bytes, Priority.FAULT)
                reader.front = run.frames[-1].number + 1
                return run
        return None

    def take_hint_run(self, run_bytes: int) -> Run | None:
        """What is around a recent fault, the latest first, of at most so many compressed bytes."""
        while self._hints:
            block = self._block(self._hints[-1])
            number = self._free_around(self._hints[-1], block)
            if number is not None:
                return self._extend(number, run_bytes, Priority.FILL, block.__contains__)
            self._hints.pop()
        return None

    def _block(self, number: int) -> range:
        """Numbers of the frames of the aligned block of the tar that a frame starts in."""
        start = self.layer.frames[number].start // AROUND_BYTES * AROUND_BYTES
        return self.layer.frames.covering(start, min(start + AROUND_BYTES, self.layer.frames.tar_size))

    def _free_around(self, number: int, block: range) -> int | None:
        """The next frame of a block to fetch: what is behind the fault first, then what is before it."""
        candidates = (*range(number + 1, block.stop), *range(block.start, number))
        return next((candidate for candidate in candidates if self.is_free(candidate)), None)

    def take_fill_run(self, run_bytes: int) -> Run | None:
        """The next absent stretch from the front, of at most so many compressed bytes (or one frame)."""
        number = self.layer.present.first_absent(self._fill_from)
        self._fill_from = number
        while number < len(self.layer.frames):
            if self.is_free(number) and not self.failures.get(number):
                return self._extend(number, run_bytes, Priority.FILL)
            number = self.layer.present.first_absent(number + 1)
        return None

    def take_run_from(self, number: int, limit: Callable[[int], bool]) -> Run | None:
        """A prefetch run: ``number`` and its followers for which ``limit`` holds."""
        if not self.is_free(number):
            return None
        return self._extend(number, self.config.run_bytes, Priority.PREFETCH, limit)

    def take_packed(self, places: Mapping[int, int], received_to: int) -> Run:
        """A prefetch run of free frames that are together in another blob."""
        run = Run(self.layer, [self.layer.frames[number] for number in places], Priority.PREFETCH, received_to, places)
        for number in places:
            self._faults.pop(number, None)
            self.inflight[number] = run
        return run

    def is_free(self, number: int) -> bool:
        """Whether a frame is neither here nor on its way."""
        return number not in self.layer.present and number not in self.inflight

    def _extend(
        self, number: int, window_bytes: int, priority: Priority, wanted: Callable[[int], bool] | None = None
    ) -> Run:
        frames = [self.layer.frames[number]]
        size = frames[0].size
        self._faults.pop(number, None)
        while (following := frames[-1].number + 1) < len(self.layer.frames):
            waited = following in self._faults
            if not self.is_free(following) or (wanted is not None and not wanted(following)):
                break
            frame = self.layer.frames[following]
            if not waited and size + frame.size > window_bytes:
                break
            if size + frame.size > self.config.readahead_bytes:
                break
            self._faults.pop(following, None)
            frames.append(frame)
            size += frame.size
        run = Run(self.layer, frames, priority, received_to=frames[0].offset)
        for frame in frames:
            self.inflight[frame.number] = run
        return run

    def arrived(self, frame: Frame) -> list[Waiter]:
        """The frame is present: the waiters that lacked only it, to be released."""
        self._faults.pop(frame.number, None)
        self.failures.pop(frame.number, None)
        ready = []
        for waiter in self.waiters.pop(frame.number, ()):
            waiter.missing.discard(frame.number)
            if not waiter.missing:
                ready.append(waiter)
        return ready

    def give_back(self, run: Run) -> None:
        """The run has ended, well or not: its frames that are absent may be fetched again."""
        for frame in run.frames:
            if self.inflight.get(frame.number) is run:
                del self.inflight[frame.number]
            if frame.number not in self.layer.present:
                self._fill_from = min(self._fill_from, frame.number)

    def fail_waiters(self, numbers: Iterable[int]) -> list[Waiter]:
        """Give up on frames: the waiters that needed any of them, each once, to be failed."""
        failed: dict[int, Waiter] = {}
        for number in numbers:
            self._faults.pop(number, None)
            for waiter in self.waiters.get(number, ()):
                failed[id(waiter)] = waiter
        for waiter in failed.values():
            for number in waiter.missing:
                remaining = [other for other in self.waiters.get(number, ()) if other is not waiter]
                if remaining:
                    self.waiters[number] = remaining
                else:
                    self.waiters.pop(number, None)
        return list(failed.values())

    @property
    def waiting(self) -> list[Waiter]:
        """Every waiter, once."""
        return list({id(waiter): waiter for waiters in self.waiters.values() for waiter in waiters}.values())


class Piece(NamedTuple):
    """A frame on its way into its layer."""

    queue: LayerQueue
    frame: Frame
