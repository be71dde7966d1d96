"""Where frames end."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.cuts import PAGE, CutPlan, cuts, hot_ranges
from converter.framer import frames_of
from converter.tarlayer import Piece

KIB = 1 << 10
SIZE = 64 * KIB
PLAN = CutPlan(frame_size=SIZE, cold_size=256 * KIB)


def layout(sizes: list[int]) -> tuple[list[tuple[int, int]], int]:
    """Files of these sizes as a padded tar has them: data on a page boundary, at least a header between."""
    files = []
    position = 0
    for size in sizes:
        start = -(-(position + 512) // PAGE) * PAGE
        files.append((start, start + size))
        position = -(-(start + size) // 512) * 512
    return files, -(-(position + 1024) // PAGE) * PAGE


def spans(ends: list[int]) -> list[tuple[int, int]]:
    return list(zip([0, *ends], ends, strict=False))


def test_a_large_file_has_frames_of_its_own_that_depend_on_nothing_else() -> None:
    size = 3 * SIZE + 1000
    shapes = set()
    for before in (0, 100, 5000, SIZE - 1, SIZE, 7 * SIZE):
        files, total = layout([before, size, 10] if before else [size, 10])
        start, end = files[-2]
        inside = [span for span in spans(cuts(files, total, PLAN)) if span[0] < end and span[1] > start]
        assert inside[0][0] == start
        assert inside[-1][1] == end
        shapes.add(tuple(stop - begin for begin, stop in inside))
    assert shapes == {(SIZE, SIZE, SIZE, 1000)}


def test_small_files_share_frames() -> None:
    files, total = layout([100] * 100)
    ends = cuts(files, total, PLAN)
    assert len(ends) == -(-total // SIZE)


def test_a_small_file_is_not_torn_when_the_frame_is_half_full() -> None:
    files, total = layout([40 * KIB, 40 * KIB, 40 * KIB])
    frames = spans(cuts(files, total, PLAN))
    for start, end in files:
        assert sum(begin < end and stop > start for begin, stop in frames) == 1


def test_ranges_are_widened_to_pages_and_merged() -> None:
    ranges = [(20_000, 20_001), (5000, 9000), (8192, 12_288), (30_000, 30_000), (12_300, 12_301)]
    assert hot_ranges(ranges) == ((4096, 20_480),)
    assert hot_ranges([(0, 1), (8192, 8193)]) == ((0, 4096), (8192, 12_288))
    assert hot_ranges([(0, 1), (8192, 8193)], gap=4096) == ((0, 12_288),)


def test_hot_ranges_are_cut_out_exactly_and_the_rest_is_cut_large() -> None:
    hot = hot_ranges([(1_000_000, 1_010_000), (1_112_000, 1_120_000), (3_000_000, 3_000_001)])
    files, total = layout([5000] * 1000)
    ends = cuts(files, total, CutPlan(frame_size=SIZE, cold_size=256 * KIB, hot=hot))
    for start, end in hot:
        assert {start, end} <= set(ends)
    cold = [stop - begin for begin, stop in spans(ends) if not any(begin < end and stop > start for start, end in hot)]
    assert SIZE < max(cold) <= 256 * KIB


@pytest.mark.parametrize("bad", [0, 4096, 100_000, 128 << 20, -4096])
def test_sizes_that_the_format_does_not_know(bad: int) -> None:
    with pytest.raises(ValueError, match="frame size"):
        CutPlan(frame_size=bad)


sizes_lists = st.lists(st.integers(1, 5 * SIZE), max_size=30)
ranges_lists = st.lists(st.tuples(st.integers(0, 40 * SIZE), st.integers(1, 2 * SIZE)), max_size=6)


@given(sizes_lists, ranges_lists)
def test_frames_tile_the_tar_and_keep_their_bounds(sizes: list[int], ranges: list[tuple[int, int]]) -> None:
    files, total = layout(sizes)
    hot = hot_ranges((start, start + length) for start, length in ranges)
    plan = CutPlan(frame_size=SIZE, cold_size=256 * KIB, hot=hot)
    ends = cuts(files, total, plan)
    assert ends == sorted(set(ends))
    assert ends[-1] == total
    file_ends = {end for _, end in files}
    for start, end in spans(ends):
        assert end - start <= (256 * KIB if hot else SIZE)
        assert end % PAGE == 0 or end in file_ends
    for start, end in files:
        if not hot and end - start >= SIZE:
            assert {start, end} <= {0, *ends}


@given(sizes_lists, st.integers(0, 2**32))
def test_the_stream_is_cut_where_the_function_says(sizes: list[int], seed: int) -> None:
    files, total = layout(sizes)
    chance = random.Random(seed)
    data = chance.randbytes(total)
    frames = list(frames_of(pieces(data, files, chance), PLAN))
    assert b"".join(frames) == data
    ends: list[int] = []
    for frame in frames:
        ends.append(len(frame) + (ends[-1] if ends else 0))
    assert ends == cuts(files, total, PLAN)


def pieces(data: bytes, files: list[tuple[int, int]], chance: random.Random) -> list[Piece]:
    """The tar in pieces of any size, the first of each file marked."""
    bounds = sorted({0, len(data), *(bound for span in files for bound in span)})
    starts = {start: end - start for start, end in files}
    found = []
    for begin, end in itertools.pairwise(bounds):
        position = begin
        while position < end:
            step = min(end - position, chance.randint(1, 2 * SIZE))
            found.append(Piece(data[position : position + step], starts.get(position, 0)))
            position += step
    return found
