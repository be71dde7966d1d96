"""How a conversion speaks of sizes: a tiny layer that grew must not look like a failure."""

import io

import pytest

from converter.progress import LineProgress, size_change


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (812, 1290, "812 B before, 1.3 kB now"),
        (0, 512, "0 B before, 512 B now"),
        (999_400, 400_000, "999.4 kB before, 400.0 kB now"),
        (4_000_000, 3_000_000, "4.0 MB before, 3.0 MB now (25% smaller)"),
        (2_000_000, 2_100_000, "2.0 MB before, 2.1 MB now (5% larger)"),
        (1_200_000_000, 1_200_000_001, "1.2 GB before, 1.2 GB now"),
        (999_999_999, 1, "1.0 GB before, 1 B now (100% smaller)"),
    ],
)
def test_a_change_of_size_is_told(before: int, after: int, said: str) -> None:
    assert size_change(before, after) == said


def test_a_tiny_layer_has_a_size() -> None:
    out = io.StringIO()
    LineProgress(out).started("key", "layer 1", 812)
    assert out.getvalue() == "layer 1: started, 812 B\n"
