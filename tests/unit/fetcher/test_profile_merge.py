"""Several recordings as one profile."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.profiles.document import ProfileError, check_disjoint
from fetcher.profiles.merging import merge
from fetcher.profiles.profile import Profile, Read, decode_profile, encode_profile
from tests.unit.fetcher.test_profile import LAYERS, diff_id, profile

KIB = 1 << 10


def order(made: Profile) -> list[int]:
    return [read.offset for read in made.reads]


def starts(*offsets: int) -> Profile:
    """Reads of 1 KiB each that do not touch one another."""
    return profile(*(Read(0, offset * 2 * KIB, KIB) for offset in offsets))


def test_one_stays_as_it_is() -> None:
    one = starts(5, 1, 3)
    assert merge([one]) == one


def test_nothing_is_an_error() -> None:
    with pytest.raises(ProfileError):
        merge([])


def test_the_median_decides_the_order() -> None:
    merged = merge([starts(1, 2, 3, 4), starts(1, 3, 2, 4), starts(1, 2, 3, 4)])
    assert [offset // (2 * KIB) for offset in order(merged)] == [1, 2, 3, 4]
    assert merged.recordings == 3
    assert all(read.seen == 3 for read in merged.reads)


def test_of_two_the_earlier_need_counts() -> None:
    merged = merge([starts(1, 2, 9), starts(9, 1, 2)])
    assert [offset // (2 * KIB) for offset in order(merged)] == [1, 9, 2]


def test_what_a_minority_has_goes_last_and_what_hardly_any_has_goes() -> None:
    merged = merge([starts(7, 1, 2), starts(1, 2), starts(1, 2)])
    assert [offset // (2 * KIB) for offset in order(merged)] == [1, 2, 7]
    assert merged.reads[-1].seen == 1
    assert not merged.is_common(merged.reads[-1])
    assert 7 * 2 * KIB not in order(merge([merged, starts(1, 2), starts(1, 2)]))


def test_merging_step_by_step_counts_each_recording() -> None:
    once = merge([merge([starts(1, 2), starts(1, 3)]), starts(1, 3)])
    assert once.recordings == 3
    assert {read.offset // (2 * KIB): read.seen for read in once.reads} == {1: 3, 2: 1, 3: 2}


def test_ranges_that_overlap_in_part_are_divided() -> None:
    merged = merge([profile(Read(0, 0, 8 * KIB)), profile(Read(0, 4 * KIB, 8 * KIB))])
    assert {(read.offset, read.length): read.seen for read in merged.reads} == {
        (0, 4 * KIB): 1,
        (4 * KIB, 4 * KIB): 2,
        (8 * KIB, 4 * KIB): 1,
    }


def test_layers_of_different_profiles_are_kept_apart() -> None:
    one = profile(Read(0, 0, 100), layers=(diff_id(7),))
    two = profile(Read(0, 0, 100), layers=(diff_id(8),))
    assert {merge([one, two]).layers[read.layer] for read in merge([one, two]).reads} == {diff_id(7), diff_id(8)}


@st.composite
def recordings(draw: st.DrawFn) -> Profile:
    reads = []
    for layer in range(len(LAYERS)):
        bounds = sorted(draw(st.sets(st.integers(0, 40), max_size=8)))
        reads += [Read(layer, a, b - a) for a, b in zip(bounds[::2], bounds[1::2], strict=False)]
    return profile(*draw(st.permutations(reads)))


def touched(made: Profile) -> Counter[tuple[int, int]]:
    """How many recordings had each byte."""
    return Counter({(read.layer, at): read.seen for read in made.reads for at in range(read.offset, read.end)})


@given(st.lists(recordings(), min_size=1, max_size=4))
def test_merging_loses_no_byte_and_is_sound(parts: list[Profile]) -> None:
    merged = merge(parts)
    check_disjoint("reads", merged.reads)
    assert decode_profile(encode_profile(merged)) == merged
    expected = Counter[tuple[int, int]]()
    for part in parts:
        expected.update(touched(part))
    assert touched(merged) == expected
    common = [merged.is_common(read) for read in merged.reads]
    assert common == sorted(common, reverse=True)


@given(st.lists(recordings(), min_size=2, max_size=3))
def test_the_order_of_the_list_does_not_matter(parts: list[Profile]) -> None:
    assert len({encode_profile(merge(list(each))) for each in itertools.permutations(parts)}) == 1
