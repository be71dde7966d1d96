"""The page: one HTML file with nothing outside it, readable in light and dark, on paper and without scripts. Pure."""

from collections.abc import Iterable, Sequence
from html import escape

from fastpull.amounts import in_bytes
from fastpull.start_report.findings import FileUse, Findings, ProfileUse
from fastpull.status_view import LayerLine

_WIDTH, _LEFT, _TOP = 900, 150, 8
_ROW, _GAP = 34, 8
_LEAST, _LEAST_WAIT = 2.0, 7.0  # a wait has to be seen, however little was read
_BINS = 300
_AHEAD_LEGEND = '<i style="background:var(--ahead)"></i>read by fastpull before the program asked'

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #57606a; --line: #d0d7de; --read: #2f81f7; --wait: #d1242f;
        --ahead: #8ab6a8; --paper: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --read: #58a6ff;
        --wait: #ff7b72; --ahead: #4f8a79; --paper: #0d1117; --card: #161b22; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1060px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.sub, .note { color: var(--soft); margin: .2rem 0 1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(260px, 100%), 1fr)); gap: .8rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.5rem; font-weight: 600; white-space: nowrap; } .card span { color: var(--soft); }
ul.advice { padding-left: 1.2rem; } ul.advice li { margin: .3rem 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.path { overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: .85em; }
.wide { overflow-x: auto; } svg { width: 100%; min-width: 720px; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
@media (max-width: 640px) {
  tr:has(th) { display: none; } tr { display: flex; flex-wrap: wrap; border-bottom: 1px solid var(--line); }
  td { border: 0; padding-right: 1.2rem; } td.path { flex: 1 0 100%; } td:empty { display: none; }
  td[data-is]::before { content: attr(data-is) " "; color: var(--soft); } }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 1em; }
"""


def page(findings: Findings) -> str:
    """The whole document."""
    title = f"Start of {findings.image}"
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(findings.image)}</h1>",
        f'<p class="sub">{_subtitle(findings)}</p>',
        _cards(findings),
        "<h2>What to change</h2>",
        '<ul class="advice">' + "".join(f"<li>{escape(one)}</li>" for one in findings.advice) + "</ul>",
        "<h2>What was read when</h2>",
        _waterfall(findings),
        "<h2>Files</h2>",
        '<p class="note">Those waited for longest come first; several processes may wait at the same time.</p>',
        _files(findings.files),
        "<h2>Layers</h2>",
        _layers(findings.layers.layers),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _subtitle(findings: Findings) -> str:
    trace = findings.trace
    which = f"start {trace.number} of {trace.of} since the daemon came up" if trace.of > 1 else "the start"
    return f"{which}; {trace.seconds:.1f} s from the first read to the last"


def _cards(findings: Findings) -> str:
    total = findings.image_bytes
    share = f"{findings.read_bytes / total * 100:.1f} % of the image's {in_bytes(total)}" if total else ""
    mean_ms = 1000 * findings.wait_s / findings.waits if findings.waits else 0.0
    waits = f"{findings.waits} × {mean_ms:.0f} ms" if findings.waits else "0"
    used = "" if findings.used is None else f"{findings.used * 100:.0f} %"
    stalled = f"of {findings.trace.seconds:.1f} s: at least one read waited for the network"
    cards = [
        (f"{findings.stalled_s:.1f} s", stalled),
        (in_bytes(findings.read_bytes), f"read, unpacked: {share}{_ahead(findings)}"),
        (waits, f"of {findings.reads} reads had to wait for the network"),
        (in_bytes(sum(findings.fetched.values())), f"fetched, compressed: {_by_reason(findings)}"),
        (used or "–", "of the frames these reads lie in was read; frames are fetched whole"),
        _profile_card(findings.profile),
    ]
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{a}</b><span>{b}</span></div>' for a, b in cards)
        + "</div>"
    )


def _ahead(findings: Findings) -> str:
    if not findings.ahead_bytes:
        return ""
    return f"; {in_bytes(findings.ahead_bytes)} of it by fastpull, into the page cache before the program asked"


def _profile_card(use: ProfileUse | None) -> tuple[str, str]:
    if use is None:
        return "–", "no profile was replayed"
    read = use.hit_bytes + use.missed_bytes
    share = f"{use.hit_bytes / read * 100:.0f} %" if read else "–"
    rest = f"{in_bytes(use.missed_bytes)} read that it lacks"
    if use.unread_bytes is not None:
        rest += f", {in_bytes(use.unread_bytes)} named and not read"
    return share, f"of the bytes read were in the replayed profile; {rest}"


def _by_reason(findings: Findings) -> str:
    words = {"fault": "for waiting reads", "prefetch": "ahead, by a profile", "fill": "in the background"}
    told = [f"{in_bytes(count)} {words.get(reason, reason)}" for reason, count in findings.fetched.items() if count]
    return ", ".join(told) or "nothing"


def _waterfall(findings: Findings) -> str:
    """A row for each layer: how much was read in each moment, red what waited."""
    seconds = max(findings.trace.seconds, 0.001)
    layers = findings.layers.layers
    height = _TOP + len(layers) * (_ROW + _GAP) + 24
    rows = [_row(findings, number, layer, seconds) for number, layer in enumerate(layers)]
    return (
        '<p class="note legend">Each row is a layer, the lowest first; a mark is as high as what was read then.'
        '<i style="background:var(--read)"></i>was there<i style="background:var(--wait)"></i>had to wait'
        f"{_AHEAD_LEGEND if findings.ahead_bytes else ''}</p>"
        f'<div class="wide"><svg viewBox="0 0 {_WIDTH + _LEFT + 20} {height}" role="img" '
        f'aria-label="{_in_words(findings)}">'
        f"{''.join(rows)}{_axis(seconds, height - 20)}</svg></div>"
        '<p class="note">What is read of a complete layer, or finds its pages in the page cache, is the kernel\'s '
        "alone, and not shown.</p>"
    )


def _in_words(findings: Findings) -> str:
    """The picture for who cannot see it: how many reads each layer had, and how many of them waited."""
    reads = findings.trace.reads
    told = [
        f"layer {number}: {sum(r.layer == number and not r.ahead for r in reads)} reads, "
        f"{sum(r.layer == number and r.waited for r in reads)} waited"
        for number in range(len(findings.layers.layers))
    ]
    return escape(f"Reads of each layer over {findings.trace.seconds:.1f} s. {'; '.join(told)}")


def _row(findings: Findings, number: int, layer: LayerLine, seconds: float) -> str:
    top = _TOP + number * (_ROW + _GAP)
    ahead, there, waited = [0] * _BINS, [0] * _BINS, [0] * _BINS
    for read in findings.trace.reads:
        if read.layer == number:
            place = min(int(read.at_s / seconds * _BINS), _BINS - 1)
            (waited if read.waited else ahead if read.ahead else there)[place] += read.count
    moments = list(zip(ahead, there, waited, strict=True))
    highest = max(map(sum, moments), default=0) or 1
    label = f"layer {number}, {in_bytes(layer.size)}"
    base = f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{top + _ROW}" y2="{top + _ROW}" stroke="var(--line)"/>'
    text = f'<text x="{_LEFT - 10}" y="{top + _ROW - 6}" text-anchor="end">{label}</text>'
    return base + text + "".join(_marks(moments, highest, top))


def _marks(moments: Sequence[tuple[int, int, int]], highest: int, top: int) -> Iterable[str]:
    """What was read ahead, what was there and what had to wait, on top of each other."""
    step = _WIDTH / _BINS
    kinds = (("--ahead", _LEAST), ("--read", _LEAST), ("--wait", _LEAST_WAIT))
    for place, amounts in enumerate(moments):
        x, y = _LEFT + place * step, float(top + _ROW)
        share = 1 / max(1, sum(map(bool, amounts)))
        for amount, (colour, least) in zip(amounts, kinds, strict=True):
            if amount:
                # The square root keeps small reads visible beside large ones.
                tall = max(least, _ROW * (amount / highest) ** 0.5 * share)
                y -= tall
                yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{step:.1f}" height="{tall:.1f}" fill="var({colour})"/>'


def _axis(seconds: float, y: int) -> str:
    ticks = [seconds * part / 5 for part in range(6)]
    decimals = 0 if seconds >= 20 else 1 if seconds >= 2 else 2
    places = [(_LEFT + tick / seconds * _WIDTH, f"{tick:.{decimals}f} s") for tick in ticks]
    marks = (f'<text x="{x:.0f}" y="{y + 14}" text-anchor="middle">{told}</text>' for x, told in places)
    return "".join(marks)


def _files(files: Sequence[FileUse]) -> str:
    head = '<tr><th>file</th><th class="n">layer</th><th class="n">read</th><th class="n">reads</th>'
    head += '<th class="n">waited</th><th class="n">first at</th></tr>'
    rows = [
        f'<tr><td class="path">{escape(use.path)}</td>{_cell("layer", str(use.layer))}'
        f"{_cell('read', in_bytes(use.bytes))}{_cell('reads', str(use.reads))}{_cell('waited', _waited(use))}"
        f"{_cell('first at', f'{use.first_s:.2f} s')}</tr>"
        for use in files
    ]
    return f"<table>{head}{''.join(rows)}</table>"


def _cell(name: str, text: str) -> str:
    """A number; its column's name stands beside it where the page is too narrow for columns."""
    return f'<td class="n" data-is="{name}">{text}</td>'


def _waited(use: FileUse) -> str:
    return f"{use.wait_s:.2f} s in {use.waits}" if use.waits else ""


def _layers(layers: Sequence[LayerLine]) -> str:
    head = (
        '<tr><th class="n">#</th><th>digest</th><th class="n">size</th><th class="n">local now</th><th>state</th></tr>'
    )
    rows = [
        f'<tr>{_cell("layer", str(number))}<td class="path">{escape(layer.digest[7:19])}</td>'
        f"{_cell('size', in_bytes(layer.size))}{_cell('local now', _percent(layer.local))}"
        f"<td>{escape(layer.why)}</td></tr>"
        for number, layer in enumerate(layers)
    ]
    return f"<table>{head}{''.join(rows)}</table>"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share * 100:.0f} %"
