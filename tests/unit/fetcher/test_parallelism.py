"""How many connections the fill settles on."""

from collections.abc import Callable

from fetcher.scheduler.parallelism import RETRY_S, WINDOW_S, Parallelism

MB = 1_000_000


def run(parallelism: Parallelism, rate: Callable[[int], float], seconds: float, start: float = 0.0) -> float:
    """Fill for a while at `rate(streams)`, looked at ten times a second; returns when that was over."""
    received, now = 0.0, start
    while now < start + seconds:
        parallelism.note(now, int(received), busy=True)
        now += WINDOW_S / 10
        received += rate(parallelism.streams) * WINDOW_S / 10
    return now


def test_connections_that_are_each_slow_become_many() -> None:
    parallelism = Parallelism(4, 16)
    run(parallelism, lambda streams: 5 * MB * streams, 4)
    assert parallelism.streams == 16


def test_a_full_link_is_left_alone_but_for_one_second_in_a_while() -> None:
    parallelism = Parallelism(4, 16)
    tried = []

    def rate(streams: int) -> float:
        tried.append(streams)
        return 125 * MB

    run(parallelism, rate, RETRY_S)
    assert parallelism.streams == 4
    assert 0 < tried.count(8) <= 11 and 16 not in tried


def test_it_stops_where_more_brings_no_more() -> None:
    parallelism = Parallelism(4, 16)
    run(parallelism, lambda streams: 5 * MB * min(streams, 9), 10)
    assert parallelism.streams == 8


def test_it_is_tried_again() -> None:
    parallelism = Parallelism(4, 16)
    now = run(parallelism, lambda _: 20 * MB, 5)
    run(parallelism, lambda streams: 5 * MB * streams, RETRY_S + 5, now)
    assert parallelism.streams == 16


def test_a_pause_is_no_slow_second() -> None:
    parallelism = Parallelism(4, 16)
    parallelism.note(0.0, 0, busy=True)
    parallelism.note(0.5, 10 * MB, busy=False)
    parallelism.note(9.0, 10 * MB, busy=True)
    assert parallelism.streams == 4
    parallelism.note(9.0 + WINDOW_S, 30 * MB, busy=True)
    assert parallelism.streams == 8
