"""Which layers the cache gives up."""

import pytest

from fetcher.cache import CacheConfig, Candidate, choose_evictions

GIB = 1 << 30


def layer(name: str, last_used: float, *, releasable: bool = True) -> Candidate:
    return Candidate(digest=name, size=10 * GIB, last_used=last_used, releasable=releasable)


LAYERS = [layer("newest", 3), layer("in use", 0, releasable=False), layer("oldest", 1), layer("middle", 2)]


@pytest.mark.parametrize(
    ("config", "free_bytes", "expected"),
    [
        (CacheConfig(), 100 * GIB, []),
        (CacheConfig(max_bytes=40 * GIB), 100 * GIB, []),
        (CacheConfig(max_bytes=39 * GIB, low_ratio=1.0), 100 * GIB, ["oldest"]),
        (CacheConfig(max_bytes=39 * GIB, low_ratio=0.5), 100 * GIB, ["oldest", "middle", "newest"]),
        (CacheConfig(max_bytes=1, low_ratio=1.0), 100 * GIB, ["oldest", "middle", "newest"]),
        (CacheConfig(min_free_bytes=2 * GIB), 1 * GIB, ["oldest"]),
        (CacheConfig(min_free_bytes=12 * GIB), 1 * GIB, ["oldest", "middle"]),
    ],
)
def test_the_longest_unused_go_first(config: CacheConfig, free_bytes: int, expected: list[str]) -> None:
    assert choose_evictions(LAYERS, config, free_bytes) == expected
