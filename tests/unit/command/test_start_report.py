"""The report's figures and its page."""

import html.parser
import re

from fastpull.daemon_client import Touch
from fastpull.start_report.findings import Findings, Inputs, ProfileUse, find
from fastpull.start_report.page import page
from fastpull.start_report.trace import FileMap, Read, distinct_bytes, stalled_s, starts
from fastpull.status_view import ImageLines, LayerLine
from layerformat.entries import Entry

SECOND = 1_000_000_000
LOW, HIGH = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def entry(path: bytes, offset: int, size: int) -> Entry:
    return Entry(path=path, mode=0o100644, uid=0, gid=0, mtime_ns=0, size=size, data_offset=offset)


def line(digest: str, *, lazy: bool = True) -> LayerLine:
    return LayerLine(digest=digest, size=1000, lazy=lazy, why="loading", local=0.5, total_bytes=100_000)


def findings(**changes: object) -> Findings:
    touches = {
        LOW: [Touch(5 * SECOND, 4096, 4096, SECOND * 14 // 1000), Touch(6 * SECOND, 4096, 8192, 0)],
        HIGH: [Touch(7 * SECOND, 0, 4096, SECOND // 100)],
    }
    [trace] = starts(touches, [LOW, HIGH])
    given: dict[str, object] = {
        "lines": ImageLines(name="r.example/<app>:1", namespace="d", digest="", layers=(line(LOW), line(HIGH))),
        "files": {0: FileMap([entry(b"lib/a<b>.so", 4096, 5000)]), 1: FileMap([])},
        "frame_bytes": 65536,
        "fetched": {"fault": 3000, "fill": 500},
    }
    return find(trace, Inputs(**{**given, **changes}))  # type: ignore[arg-type]


def test_starts_are_told_apart_by_quiet() -> None:
    touches = {LOW: [Touch(at * SECOND, 0, 1, 0) for at in (100, 129, 160, 161)]}
    first, second = starts(touches, [LOW])
    assert (len(first.reads), len(second.reads)) == (2, 2)
    assert (second.number, second.of) == (2, 2)
    assert [read.at_s for read in second.reads] == [0.0, 1.0]
    assert starts(touches, [HIGH]) == []


def test_waits_at_the_same_time_stall_once() -> None:
    late = [Read(1.0, 0, 0, 1, 2.0), Read(2.0, 0, 4096, 1, 0.5), Read(4.0, 0, 8192, 1), Read(5.0, 0, 9000, 1, -1e-9)]
    assert stalled_s(late, 7.0) == 4.0
    assert stalled_s([], 7.0) == 0.0


def test_a_profile_is_held_against_what_was_read() -> None:
    assert findings().profile is None and "no profile was replayed" in page(findings())
    # Read: [4096, 12288) of the lower layer, [0, 4096) of the upper one.
    found = findings(named={0: [(0, 8192), (8192, 9000), (20000, 20100)], 1: []})
    assert found.profile == ProfileUse(hit_bytes=4904, missed_bytes=3288 + 4096, unread_bytes=4096 + 100)
    assert "40 %" in page(found) and found.to_json()["profile"]["hit_bytes"] == 4904


def test_bytes_are_counted_once() -> None:
    assert distinct_bytes([(0, 10), (5, 12), (20, 21), (0, 3)]) == 13
    assert distinct_bytes([]) == 0


def test_a_byte_finds_its_file() -> None:
    files = FileMap([entry(b"b", 8192, 10), entry(b"a", 0, 4096), entry(b"empty", 0, 0)])
    assert files.at(0) == files.at(4095) == "/a"
    assert files.at(4096) is None and files.at(8201) == "/b" and files.at(8202) is None


def test_the_figures_of_a_start() -> None:
    found = findings()
    assert (found.reads, found.waits, found.read_bytes) == (3, 2, 8192 + 4096)
    assert found.used == (8192 + 4096) / 65536
    top = found.files[0]
    assert (top.path, top.reads, top.waits, top.bytes) == ("/lib/a<b>.so", 2, 1, 8192)
    assert any("along its profile" in one for one in found.advice)


def test_advice_follows_the_figures() -> None:
    assert findings(frame_bytes=12288).advice == (
        "Nothing stands out: this start read what it fetched, and seldom waited.",
    )
    mixed = ImageLines(name="i", namespace="d", digest="", layers=(line(LOW), line(HIGH, lazy=False)))
    assert any("1 layers (1.00 kB) were not lazy" in one for one in findings(lines=mixed).advice)


class _Checked(html.parser.HTMLParser):
    """Every element that is opened is closed, and nothing is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {name for name, _ in attrs} & {"src", "href"}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("line", "rect")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing() -> None:
    text = page(findings())
    checked = _Checked()
    checked.feed(text)
    assert checked.open == []
    assert "<app>" not in text and "/lib/a&lt;b&gt;.so" in text
    assert "2 × 12 ms" in text
    assert len(re.findall(r"<rect ", text)) == 3


def test_what_was_read_ahead_is_told_apart() -> None:
    [trace] = starts({LOW: [Touch(0, 0, 8192, 0, 1), Touch(SECOND, 8192, 4096, 0, 0)]}, [LOW])
    image = ImageLines(name="app", namespace="d", digest="", layers=(line(LOW),))
    named = {0: [(0, 8192), (65536, 69632)]}
    found = find(trace, Inputs(lines=image, files={}, frame_bytes=16384, fetched={}, named=named))
    assert (found.reads, found.read_bytes, found.ahead_bytes) == (1, 12288, 8192)
    # Which of the pages that were ready the program used is the kernel's secret.
    assert found.profile == ProfileUse(hit_bytes=8192, missed_bytes=4096, unread_bytes=None)
    text = page(found)
    assert "before the program asked" in text
    assert "named and not read" not in text
    assert "var(--ahead)" in text
