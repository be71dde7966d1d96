"""How a rate becomes a queueing discipline."""

import pytest

from fastpull.lab.network import LinkShape, tbf_arguments


@pytest.mark.parametrize(
    ("rate_bits_s", "burst_bytes"),
    [(10_000_000, 262_144), (1_000_000_000, 1_250_000), (10_000_000_000, 12_500_000)],
)
def test_the_burst_holds_a_packet_and_a_tick(rate_bits_s: int, burst_bytes: int) -> None:
    arguments = tbf_arguments(rate_bits_s)
    assert arguments[:3] == ["tbf", "rate", f"{rate_bits_s}bit"]
    assert int(arguments[arguments.index("burst") + 1]) == burst_bytes


def test_a_shape_reads_as_a_person_would_say_it() -> None:
    assert str(LinkShape(rate_bits_s=1_000_000_000, rtt_ms=5)) == "1 Gbit/s, 5 ms"
    assert str(LinkShape()) == "unshaped, 0 ms"
