"""Which rows and targets the benchmarks make of what was measured; what is known of an image without starting it."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from fastpull.demo.image import Layout
from fastpull.demo.results import ColdStart
from fastpull.lab.layout import ImageInput, LayerInput, Member, members, write_layout
from fastpull.lab.network import LinkShape
from layerformat.frames import FrameTable
from tests.bench.images import kept, with_changes
from tests.bench.start_rows import LOCAL_WARM, StartRows
from tests.bench.table import Machine, Report, Row, Target, figure
from tests.bench.touched import Touched, compressed
from tests.bench.trials import Trial

START = ColdStart(
    mode="x",
    container_start_s=1,
    ready_s=80,
    complete_s=70,
    bytes_to_ready=3_000_000_000,
    bytes_total=3_000_000_000,
    daemon_idle_rss_bytes=1,
    daemon_peak_rss_bytes=300 << 20,
    daemon_cpu_s=9,
    curve=((0.0, 0), (70.0, 3_000_000_000)),
)
TOUCHED = Touched(document=b"", plain_bytes=500_000_000, frame_bytes=300_000_000, exact_bytes=200_000_000)
GIGABIT = LinkShape(rate_bits_s=1_000_000_000, rtt_ms=5)


def trial(mode: str, ready_s: float, cpu_s: float = 1) -> Trial:
    return Trial(mode=mode, start=replace(START, mode=mode, ready_s=ready_s), cpu_to_ready_s=cpu_s)


def rows(*trials: Trial, shape: LinkShape = GIGABIT) -> dict[tuple[str, str], Row]:
    found = StartRows("a", shape, TOUCHED, trials).rows()
    return {(row.what, row.base_name if row.base else ""): row for row in found}


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [
        (2.0, Target(at_most=2), True),
        (2.01, Target(at_most=2), False),
        (0.9, Target(at_least=0.9), True),
        (0.89, Target(at_least=0.9), False),
        (5, Target(at_least=1, at_most=4), False),
    ],
)
def test_a_target_is_met_on_its_bound(value: float, target: Target, met: bool) -> None:
    assert target.met(value) is met


def test_a_ratio_target_without_a_base_is_not_judged() -> None:
    row = Row(workload="a", what="x", ours=figure([1.0], "s"), target=Target(at_most=2))
    assert row.met is None


def test_the_limit_is_the_local_start_or_the_link() -> None:
    local = rows(trial(LOCAL_WARM, 5))[("limit: local and warm, or touched bytes / link", "")]
    assert local.ours.values == (5.0,)
    slow = rows(trial(LOCAL_WARM, 5), shape=LinkShape(rate_bits_s=100_000_000))
    assert slow[("limit: local and warm, or touched bytes / link", "")].ours.values == (16.0,)


def test_starts_are_held_against_the_limit_and_the_full_pull() -> None:
    found = rows(trial("overlayfs", 80), trial("fastpull", 9.9), trial("fastpull", 10.1), trial(LOCAL_WARM, 5))
    against_limit = found["fastpull: time to ready", "limit"]
    assert (against_limit.ratio, against_limit.met) == (2.0, True)
    against_pull = found["fastpull: time to ready", "overlayfs"]
    assert (against_pull.ratio, against_pull.met) == (0.125, True)


def test_what_was_not_measured_gives_no_row() -> None:
    found = rows(trial("fastpull", 10))
    assert not [what for what, base in found if base in ("limit", "overlayfs")]


def test_a_rival_is_held_against_the_start_without_a_profile() -> None:
    found = rows(trial("fastpull", 10), trial("fastpull-profile", 5), trial("stargz", 25, cpu_s=3))
    row = found["stargz: time to ready", "fastpull"]
    assert (row.ratio, row.target) == (2.5, None)
    assert found["stargz: daemon CPU to ready", "fastpull"].ratio == 3
    assert not [what for what, _ in found if what.startswith("soci")]


def test_absolute_targets() -> None:
    found = rows(trial("fastpull-along", 6, cpu_s=4.5))
    assert found["fastpull-along: daemon CPU to ready", ""].met is False
    assert found["fastpull-along: bytes fetched to ready", ""].met is False
    assert found["fastpull-along: daemon RSS at most, streaming", ""].met is True


def test_the_report_is_json_with_every_row_and_value(tmp_path: Path) -> None:
    found = list(rows(trial("overlayfs", 80), trial("fastpull", 10)).values())
    report = Report(machine=Machine(cores=2), runs=1, rows=found, details={"a": {"trials": [trial("x", 1).to_json()]}})
    report.write(tmp_path / "sub" / "bench.json")
    document = json.loads((tmp_path / "sub" / "bench.json").read_text())
    assert [row["what"] for row in document["rows"]] == [row.what for row in found]
    assert document["rows"][0]["target"] == "<= 0.125 x overlayfs"
    assert document["details"]["a"]["trials"][0]["curve"][-1] == [70.0, 3_000_000_000]


def test_touched_bytes_count_each_frame_once_and_by_its_share() -> None:
    table = FrameTable.from_sizes([(100, 4096, bytes(32)), (1000, 8192, bytes(32)), (10, 4096, bytes(32))])
    # The second half of the first frame, and a quarter of the second in two parts.
    whole, exact = compressed(table, ((2048, 4096), (4096, 5120), (6144, 7168)))
    assert (whole, exact) == (1100, 50 + 250)


def test_a_kept_directory_is_made_once_and_replaces_an_older_recipe(tmp_path: Path) -> None:
    made: list[str] = []

    def build(word: str) -> Path:
        def make(path: Path) -> None:
            made.append(word)
            path.mkdir()

        return kept(tmp_path, "image", (word,), make)

    first = build("one")
    assert build("one") == first
    second = build("two")
    assert made == ["one", "two"]
    assert sorted(tmp_path.iterdir()) == [second]


def test_the_next_version_differs_in_one_package(tmp_path: Path) -> None:
    entries = [Member(name="site/uvicorn/a.py", data=b"a = 1\n"), Member(name="site/other/b.py", data=b"b = 1\n")]
    entries.append(Member(name="site/uvicorn/c.bin", data=b"\0"))
    write_layout(tmp_path / "image", "x", ImageInput(layers=[LayerInput(write=members(entries))]))
    sink = io.BytesIO()
    with_changes(Layout(tmp_path / "image", "x"), 0, "site/uvicorn/")(sink)
    with tarfile.open(fileobj=io.BytesIO(sink.getvalue())) as archive:
        data = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert data == {
        "site/uvicorn/a.py": b"a = 1\n\n# another release\n",
        "site/other/b.py": b"b = 1\n",
        "site/uvicorn/c.bin": b"\0",
    }
