"""What is fetched next: decisions over real layers of random bytes, no I/O but their making."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetcher.layers.layer import Layer
from fetcher.model import GovernorConfig, Priority
from fetcher.scheduler import queues
from fetcher.scheduler.queues import LayerQueue, Run, Waiter
from tests.harness.layers import make_layer

FRAMES = 256
FRAME_BYTES = 16 << 10


@pytest.fixture(scope="module")
def layer_bytes() -> bytes:
    return random.Random(1).randbytes(FRAMES * FRAME_BYTES - 4096)


@pytest.fixture
def layer(tmp_path: Path, layer_bytes: bytes) -> Iterator[Layer]:
    made = make_layer({"data": layer_bytes}, frame_bytes=FRAME_BYTES)
    payload = made.blob[made.ref.index_offset : made.ref.index_offset + made.ref.index_size]
    layer = Layer.draft(tmp_path, made.ref, [], payload)
    yield layer
    layer.close()


@pytest.fixture
def queue(layer: Layer) -> LayerQueue:
    return LayerQueue(layer, GovernorConfig(readahead_bytes=64 * FRAME_BYTES))


def wait_for(queue: LayerQueue, *numbers: int) -> list[int]:
    """Add a waiter; what it was answered is appended to the result."""
    answers: list[int] = []
    queue.add_waiter(numbers, Waiter(answers.append, 0.0))
    return answers


def numbers(run: Run | None) -> list[int]:
    return [] if run is None else [frame.number for frame in run.frames]


RUN_BYTES = 20 * FRAME_BYTES


def finish(queue: LayerQueue, run: Run | None) -> list[Waiter]:
    """The run's frames arrive."""
    assert run is not None
    ready = []
    for frame in run.frames:
        queue.layer.mark_present(frame)
        ready += queue.arrived(frame)
    queue.give_back(run)
    return ready


def test_neighbouring_faults_are_one_run(queue: LayerQueue) -> None:
    wait_for(queue, 10, 11)
    wait_for(queue, 12)
    wait_for(queue, 40)
    assert numbers(queue.take_fault_run()) == [10, 11, 12]
    assert numbers(queue.take_fault_run()) == [40]
    assert queue.take_fault_run() is None


def test_a_frame_is_fetched_once(queue: LayerQueue) -> None:
    wait_for(queue, 10)
    run = queue.take_fault_run()
    wait_for(queue, 10)
    assert queue.take_fault_run() is None
    assert len(finish(queue, run)) == 2
    assert not queue.waiters


def test_a_waiter_goes_on_when_its_last_frame_is_there(queue: LayerQueue) -> None:
    wait_for(queue, 10, 11)
    run = queue.take_fault_run()
    assert run is not None
    queue.layer.mark_present(run.frames[1])
    assert queue.arrived(run.frames[1]) == []
    queue.layer.mark_present(run.frames[0])
    assert len(queue.arrived(run.frames[0])) == 1


def test_a_sequential_reader_is_fed_more_and_more(queue: LayerQueue) -> None:
    sizes, at = [], 0
    for _ in range(5):
        wait_for(queue, at)
        run = queue.take_fault_run()
        sizes.append(len(numbers(run)))
        finish(queue, run)
        at += sizes[-1]
    assert sizes[0] == 1
    assert sizes[1] > 1, "recognised within two faults"
    assert sizes == sorted(sizes)
    assert sizes[-1] <= 64


def test_a_sequential_reader_is_fed_before_it_asks(queue: LayerQueue) -> None:
    for number in (0, 1):
        wait_for(queue, number)
        finish(queue, queue.take_fault_run())
    front = queue.layer.present.first_absent(0)
    assert queue.take_ahead_run() is None
    assert queue.note_read(front - 1, front - 1)
    ahead = queue.take_ahead_run()
    assert numbers(ahead)[0] == front
    assert ahead is not None
    assert ahead.priority is Priority.FAULT
    assert not queue.note_read(front - 1, front - 1), "enough is under way"


def test_random_readers_get_what_they_ask_for(queue: LayerQueue) -> None:
    for number in (200, 17, 99, 150, 3):
        wait_for(queue, number)
        run = queue.take_fault_run()
        assert numbers(run) == [number]
        finish(queue, run)


def test_fill_goes_front_to_back_around_what_is_under_way(queue: LayerQueue) -> None:
    wait_for(queue, 5)
    fault = queue.take_fault_run()
    first = queue.take_fill_run(RUN_BYTES)
    assert numbers(first) == [0, 1, 2, 3, 4]
    second = queue.take_fill_run(RUN_BYTES)
    assert numbers(second)[0] == 6
    assert second is not None
    assert second.size <= 20 * FRAME_BYTES
    for run in (fault, first, second):
        finish(queue, run)
    while run := queue.take_fill_run(RUN_BYTES):
        finish(queue, run)
    assert queue.layer.present.complete


def test_fill_prefers_what_lies_around_a_fault(queue: LayerQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "AROUND_BYTES", 8 * FRAME_BYTES)
    wait_for(queue, 98)
    finish(queue, queue.take_fault_run())
    behind, before = queue.take_hint_run(RUN_BYTES), queue.take_hint_run(RUN_BYTES)
    assert numbers(behind) == [99, 100, 101, 102, 103]
    assert numbers(before) == [96, 97]
    assert queue.take_hint_run(RUN_BYTES) is None


def test_a_fault_overtakes_a_distant_fill(queue: LayerQueue) -> None:
    queue.config = GovernorConfig(readahead_bytes=200 * FRAME_BYTES)
    fill = queue.take_fill_run(200 * FRAME_BYTES)
    near, far = 1, 150
    wait_for(queue, near)
    assert queue.take_fault_run() is None, "it is about to come anyway"
    wait_for(queue, far)
    overtaking = queue.take_fault_run()
    assert numbers(overtaking) == [far]
    finish(queue, overtaking)
    assert far in queue.layer.present
    finish(queue, fill)
    assert not queue.inflight
    assert not queue.waiters


def test_what_a_failed_run_leaves_is_taken_again(queue: LayerQueue) -> None:
    answers = wait_for(queue, 7)
    run = queue.take_fault_run()
    assert run is not None
    queue.give_back(run)
    assert queue.take_fault_run() is None
    queue.requeue_waiting()
    assert numbers(queue.take_fault_run()) == [7]
    assert answers == []


def test_failing_a_frame_fails_each_of_its_waiters_once(queue: LayerQueue) -> None:
    wait_for(queue, 7, 8)
    wait_for(queue, 8)
    wait_for(queue, 9)
    assert len(queue.fail_waiters([7, 8])) == 2
    assert sorted(queue.waiters) == [9]
    assert len(queue.waiting) == 1


def test_any_interleaving_ends_with_everything_answered(queue: LayerQueue) -> None:
    """Faults, fill, failures and arrivals in random order; nothing is fetched twice at a time, nobody is forgotten."""
    chance = random.Random(42)
    queue.config = GovernorConfig(readahead_bytes=4 * FRAME_BYTES)
    asked, answered, runs = 0, 0, []
    for _ in range(3000):
        action = chance.randrange(5)
        if action == 0:
            start = chance.randrange(FRAMES)
            absent = [n for n in range(start, min(start + 3, FRAMES)) if n not in queue.layer.present]
            if absent:
                wait_for(queue, *absent)
                asked += 1
        elif (action == 1 and (run := queue.take_fault_run() or queue.take_ahead_run())) or (
            action == 2
            and chance.random() < 0.1
            and (run := queue.take_hint_run(RUN_BYTES) or queue.take_fill_run(RUN_BYTES))
        ):
            runs.append(run)
        elif action == 3 and runs:
            answered += len(finish(queue, runs.pop(chance.randrange(len(runs)))))
        elif action == 4 and runs and chance.random() < 0.3:
            queue.give_back(runs.pop(chance.randrange(len(runs))))
            queue.requeue_waiting()
        for number, run in queue.inflight.items():
            assert any(frame.number == number for frame in run.frames)
    queue.requeue_waiting()
    while runs or (run := queue.take_fault_run() or queue.take_fill_run(RUN_BYTES)):
        answered += len(finish(queue, runs.pop() if runs else run))
        queue.requeue_waiting()
    assert asked == answered > 50
    assert not queue.waiters
    assert queue.layer.present.complete
