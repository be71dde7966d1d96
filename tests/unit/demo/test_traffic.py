"""The curve of bytes against time."""

import time

from fastpull.demo.traffic import Curve, Sampler


def curve(*pairs: tuple[float, int]) -> Curve:
    made = Curve()
    for time_s, received in pairs:
        made.add(time_s, received)
    return made


def test_bytes_count_from_the_first_sample() -> None:
    made = curve((10.0, 5000), (10.1, 5000), (10.2, 8000))
    assert [made.at(time_s) for time_s in (9.0, 10.0, 10.15, 10.2, 99.0)] == [0, 0, 3000, 3000, 3000]


def test_the_end_of_the_traffic_is_the_last_sample_that_brought_much() -> None:
    made = curve((0.0, 0), (1.0, 10_000_000), (2.0, 20_000_000), (3.0, 20_000_100), (4.0, 20_000_200))
    assert made.quiet_since() == 2.0


def test_pairs_start_at_the_request_and_hold_only_changes() -> None:
    made = curve((0.0, 100), (1.0, 150), (2.0, 150), (3.0, 350))
    assert made.since(1.0) == [(0.0, 0), (2.0, 200)]


def test_a_sampler_waits_until_nothing_comes() -> None:
    began = time.monotonic()

    def counter() -> int:
        return int(min(time.monotonic() - began, 0.3) * 10_000_000)

    with Sampler(counter) as sampler:
        assert sampler.wait_quiet(quiet_s=0.2, timeout_s=5)
        assert 0.4 < time.monotonic() - began < 2
    assert sampler.curve.at(time.monotonic()) > 2_900_000


def test_a_sampler_gives_up_when_it_never_ends() -> None:
    with Sampler(lambda: int(time.monotonic() * 10_000_000)) as sampler:
        assert not sampler.wait_quiet(quiet_s=0.2, timeout_s=0.4)
