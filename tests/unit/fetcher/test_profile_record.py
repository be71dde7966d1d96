"""What a recording keeps of the reads it is told."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from fetcher.model import ImageHint
from fetcher.profiles.document import MAX_ROWS, check_disjoint
from fetcher.profiles.profile import Read
from fetcher.profiles.recording import RangeSet, Recording
from layerformat.annotations import LayerRef
from tests.unit.fetcher.test_profile import diff_id

ranges = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 30)), max_size=40)


def ref(number: int, blob: int | None = None) -> LayerRef:
    return LayerRef(
        version=1,
        digest=diff_id(1000 + (number if blob is None else blob)),  # type: ignore[arg-type]
        size=10_000,
        index_offset=100,
        index_size=100,
        index_digest=diff_id(2000),  # type: ignore[arg-type]
        diff_id=diff_id(number),
    )


def recording(*refs: LayerRef, window_s: float = 60) -> Recording:
    hint = ImageHint(name=None, manifest_digest=None, layers=refs, origins=())
    return Recording(hint, requested=False, partial=False, window_s=window_s)


@given(ranges)
def test_a_range_set_tells_what_is_new(added: list[tuple[int, int]]) -> None:
    kept, known = RangeSet(), set[int]()
    for start, length in added:
        new = kept.add(start, start + length)
        told = [at for begin, end in new for at in range(begin, end)]
        assert set(told) == set(range(start, start + length)) - known
        assert told == sorted(told)
        known |= set(told)


async def test_first_touches_in_order_joined_where_one_follows_the_other() -> None:
    made = recording(ref(0), ref(1))
    for layer, offset, end in [(1, 0, 10), (1, 10, 30), (0, 5, 10), (1, 20, 40), (0, 0, 12), (0, 0, 12)]:
        made.touch(ref(layer).digest, offset, end)
    made.touch(ref(9).digest, 0, 10)
    profile = made.profile()
    assert profile is not None
    assert profile.layers == (diff_id(0), diff_id(1))
    assert profile.reads == (
        Read(1, 0, 30),
        Read(0, 5, 5),
        Read(1, 30, 10),
        Read(0, 0, 5),
        Read(0, 10, 2),
    )
    check_disjoint("reads", profile.reads)


async def test_equal_layers_are_one() -> None:
    made = recording(ref(0), ref(1), ref(0, blob=7))
    made.touch(ref(0, blob=7).digest, 0, 10)
    made.touch(ref(0).digest, 0, 20)
    profile = made.profile()
    assert profile is not None
    assert profile.layers == (diff_id(0), diff_id(1))
    assert profile.reads == (Read(0, 0, 20),)


async def test_nothing_read_is_no_profile() -> None:
    made = recording(ref(0))
    made.stop()
    made.touch(ref(0).digest, 0, 10)
    await made.over()
    assert made.profile() is None


async def test_the_time_runs_from_the_first_read_and_can_be_prolonged() -> None:
    made = recording(ref(0), window_s=0.1)
    over = asyncio.ensure_future(made.over())
    await asyncio.sleep(0.2)
    assert not over.done()
    made.touch(ref(0).digest, 0, 10)
    await asyncio.sleep(0.02)
    made.request(0.4)
    await asyncio.sleep(0.2)
    assert not over.done()
    async with asyncio.timeout(5):
        await over


async def test_a_recording_is_bounded() -> None:
    made = recording(ref(0))
    for number in range(MAX_ROWS + 10):
        made.touch(ref(0).digest, number * 10, number * 10 + 1)
    assert made.read_count == MAX_ROWS
