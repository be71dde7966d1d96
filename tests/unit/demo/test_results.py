"""What the demo says about what it measured."""

import json
from dataclasses import replace
from pathlib import Path

import click
import pytest
from rich.console import Console

from fastpull.commands.demo import parse_rate
from fastpull.demo.bench import Mode, in_turn
from fastpull.demo.picture import draw, median_start
from fastpull.demo.results import ColdStart, Comparison

START = ColdStart(
    mode="overlayfs",
    container_start_s=7,
    ready_s=8,
    complete_s=2.5,
    bytes_to_ready=260 << 20,
    bytes_total=260 << 20,
    daemon_idle_rss_bytes=1,
    daemon_peak_rss_bytes=2,
    daemon_cpu_s=0,
    curve=((0.0, 0), (1.0, 100 << 20), (2.5, 260 << 20)),
)
LAZY = replace(START, mode="fastpull", container_start_s=0.5, ready_s=2, bytes_to_ready=130 << 20)
COMPARISON = Comparison(
    image="an image",
    link="1 Gbit/s, 5 ms",
    starts=(START, LAZY, replace(START, ready_s=9), replace(LAZY, ready_s=4), replace(START, ready_s=10), LAZY),
)


def test_medians_and_ratios() -> None:
    assert COMPARISON.spread("overlayfs", "ready_s").median == 9
    assert (COMPARISON.spread("fastpull", "ready_s").least, COMPARISON.spread("fastpull", "ready_s").greatest) == (2, 4)
    assert COMPARISON.ratio("ready_s") == 4.5
    assert COMPARISON.ratio("bytes_to_ready") == 2


def test_the_document_is_json_and_holds_every_start() -> None:
    document = json.loads(json.dumps(COMPARISON.to_json()))
    assert document["summary"]["fastpull"]["ready_s"] == {"median": 2, "least": 2, "greatest": 4}
    assert len(document["starts"]) == 6
    assert document["starts"][0]["curve"][-1] == [2.5, 260 << 20]


def test_the_table_names_both_modes_and_the_ratio() -> None:
    console = Console(width=120, record=True, quiet=False, file=Path("/dev/null").open("w"))  # noqa: SIM115
    with console.file:
        console.print(COMPARISON.table())
        text = console.export_text()
    assert "overlayfs" in text
    assert "fastpull" in text
    assert "4.5x" in text


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(COMPARISON, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_median_start_is_one_of_them() -> None:
    starts = [replace(START, ready_s=seconds) for seconds in (9, 7, 8)]
    assert median_start(starts).ready_s == 8


def test_modes_take_turns() -> None:
    one, other = (Mode(name=name, snapshotter=name, reference="r") for name in ("a", "b"))
    assert in_turn([one, other], 2) == [one, other, one, other]


@pytest.mark.parametrize(
    ("text", "bits"),
    [("1g", 10**9), ("1.5 Gbit/s", 15 * 10**8), ("200m", 2 * 10**8), ("200Mbit", 2 * 10**8), ("none", None)],
)
def test_rates(text: str, bits: int | None) -> None:
    assert parse_rate(text) == bits


@pytest.mark.parametrize("text", ["", "fast", "0", "-1g", "1 GB/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_rate(text)
