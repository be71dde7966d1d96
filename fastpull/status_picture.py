"""What `fastpull status` shows on a terminal, from 60 columns up. Pure: data in, things that rich can print out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fastpull.amounts import counted, in_bytes, in_rate, in_seconds
from fastpull.daemon_client import Daemon, Layer
from fastpull.failures import Failure
from fastpull.status_view import ImageLines, LayerLine, seconds_left

_BAR = 20
_BLOCK_ROWS = 5  # of an image on a narrow terminal, with the empty line after it
_NARROW_BAR, _NARROW = 12, 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The state of the node at one moment. `unlisted`: the daemon's layers that belong to none of the images."""

    daemon: Daemon
    images: tuple[ImageLines, ...]
    unlisted: tuple[Layer, ...] = ()
    wanted: str | None = None
    """The image that was asked for, which need not be here yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An answer as a terminal shows it; `rows` is the height there is, None for as much as it takes."""

    answer: Answer
    rows: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield headline(self.answer.daemon)
        room = None if self.rows is None else self.rows - 3
        if self.answer.wanted is not None:
            yield from self._detailed(room, options.max_width)
        else:
            yield from self._overview(room, options.max_width)

    def _overview(self, room: int | None, width: int) -> RenderResult:
        images = sorted(self.answer.images, key=_urgency)
        shown = images if room is None else images[: max((room - 2) // _BLOCK_ROWS, 1)]
        yield from (part for image in shown for part in (image_block(image, width), Text()))
        if len(shown) < len(images):
            yield Text(f"and {counted(len(images) - len(shown), 'more image')}; a taller window shows them")
        if self.answer.unlisted:
            yield _unlisted(self.answer.unlisted)
        elif not images:
            yield Text("No image here uses fastpull. Start one with: fastpull run IMAGE", style="yellow")

    def _detailed(self, room: int | None, width: int) -> RenderResult:
        if not self.answer.images:
            yield Text(f"There is no image {self.answer.wanted} here yet.", style="yellow")
        for image in self.answer.images:
            yield image_block(image, width)
            yield Text()
            yield _layers(image, width, None if room is None else max(room - 7, 1))


def headline(daemon: Daemon) -> Text:
    """What happens now, and what happened since the daemon started."""
    waiting = sum(layer.waiting for layer in daemon.layers.values())
    left = seconds_left(daemon)
    text = Text()
    text.append("now    ", style="bold")
    text.append(f"{in_rate(daemon.rate_bytes_per_s)} arriving, ")
    text.append(f"{counted(waiting, 'read')} waiting for data", style="yellow" if waiting else "")
    if waiting and not daemon.rate_bytes_per_s:
        text.append(": nothing comes from the registry", style="red")
    text.append(f"; all local in about {_rounded(left)}\n" if left is not None else "\n")
    text.append("total  ", style="bold")
    text.append(f"{in_bytes(sum(daemon.fetched.values()))} since the daemon started; ")
    if daemon.faults:
        mean_s = daemon.fault_wait_s / daemon.faults
        text.append(f"{counted(daemon.faults, 'read')} waited, {in_seconds(mean_s)} on average\n")
    else:
        text.append("no read had to wait\n")
    return text


def _rounded(seconds: float) -> str:
    """An estimate: no more digits than it deserves, and never none."""
    return in_seconds(max(1, math.ceil(seconds)) if seconds >= 9.5 else max(1.0, round(seconds))).replace(".0 s", " s")


def image_block(image: ImageLines, width: int) -> RenderableType:
    """Three lines: its name; how much is local and what is going on; what it is made of."""
    facts = Padding(Text(_facts(image, width - 2), style="dim"), (0, 0, 0, 2))
    return Group(Text(image.name, style="bold", overflow="fold"), Padding(_progress(image, width), (0, 0, 0, 2)), facts)


def _progress(image: ImageLines, width: int) -> RenderableType:
    if image.local is None:
        return Text(f"not lazy: {_why_not(image)}", style="yellow")
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=_bar_width(width))
    row.add_column(justify="right", width=5)
    row.add_column()
    row.add_row(_bar(image.local, _bar_width(width)), _percent(image.local), _doing(image))
    return row


def _doing(image: ImageLines) -> Text:
    if image.problem:
        return Text(f"local; {image.problem}", style="red")
    if not image.loading:
        said = "local and verified" if image.local == 1 else "local; nothing uses it now, so the rest is not loaded"
        return Text(said, style="green" if image.local == 1 else "")
    text = Text("local, loading" if (image.local or 0) < 1 else "local, being checked")
    if image.rate_bytes_per_s:
        text.append(f" {in_rate(image.rate_bytes_per_s)}")
    if image.waiting:
        text.append(f", {counted(image.waiting, 'read')} waiting", style="yellow")
    return text


def _facts(image: ImageLines, width: int) -> str:
    packed, unpacked = sum(layer.size for layer in image.layers), sum(layer.total_bytes for layer in image.layers)
    said = f"{image.lazy} of {len(image.layers)} layers lazy"
    if 0 < image.lazy < len(image.layers):
        said += f" (else {_why_not(image)})"
    said += f"; {in_bytes(packed)}, unpacked {in_bytes(unpacked)}" if unpacked else f"; {in_bytes(packed)}"
    said += f"; from {', '.join(image.hosts)}" if image.hosts else ""
    if not image.lazy:
        return said
    profile = f"profile: {image.profile}"
    return f"{said}{'; ' if len(said) + len(profile) + 2 <= width else chr(10)}{profile}"


def _why_not(image: ImageLines) -> str:
    return next((layer.why for layer in image.layers if not layer.lazy), "it has no layers")


def _urgency(image: ImageLines) -> tuple[bool, bool, bool]:
    """What waits comes first, then what failed, then what loads."""
    return not image.waiting, not image.problem, not image.loading


def _unlisted(layers: Sequence[Layer]) -> Text:
    total = sum(layer.tar_bytes for layer in layers)
    share = sum(layer.present_bytes for layer in layers) / total if total else 1.0
    what = f"{counted(len(layers), 'more layer')}, {_percent(share)} of {in_bytes(total)} local"
    return Text(f"{what}: of an image being pulled, removed, or in another namespace (-n k8s.io: Kubernetes)", "dim")


def _layers(image: ImageLines, width: int, room: int | None) -> Table:
    """The layers, the lowest first. Where there is no room for all, those that are complete are left out first."""
    lazy = any(layer.local is not None for layer in image.layers)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("layer", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    if lazy:
        table.add_column("local", justify="right", no_wrap=True, min_width=5)
        table.add_column("", no_wrap=True, width=_bar_width(width) // 2)
        table.add_column("reads waiting", justify="right", no_wrap=True)
    table.add_column("state")
    shown = _fitting(image.layers, room)
    for layer in shown:
        cells = _row(layer, _bar_width(width) // 2)
        table.add_row(*(cells if lazy else [*cells[:2], cells[-1]]))
    if len(shown) < len(image.layers):
        table.caption = f"and {counted(len(image.layers) - len(shown), 'more layer')}; a taller window shows them"
        table.caption_justify = "left"
    return table


def _fitting(layers: Sequence[LayerLine], room: int | None) -> list[LayerLine]:
    if room is None or len(layers) <= room:
        return list(layers)
    busy_first = sorted(layers, key=lambda layer: (not layer.waiting, not layer.problem, not layer.loading))
    chosen = {id(layer) for layer in busy_first[:room]}
    return [layer for layer in layers if id(layer) in chosen]


def _row(layer: LayerLine, bar: int) -> list[RenderableType]:
    style = "red" if layer.problem else "" if layer.lazy else "yellow"
    rate = ""
    if layer.loading and layer.rate_bytes_per_s is not None and (layer.local or 0) < 1:
        rate = f", {in_rate(layer.rate_bytes_per_s)}" if layer.rate_bytes_per_s else "; others come first now"
    return [
        layer.digest[7:19],
        in_bytes(layer.size),
        _percent(layer.local),
        _bar(layer.local, bar),
        Text(str(layer.waiting), style="yellow") if layer.waiting else "",
        Text(layer.why + rate, style=style),
    ]


def unanswered(problem: Failure, since: str) -> Group:
    """Above the last picture while nobody answers."""
    lines = [Text(f"since {since}: {problem.format_message()}", style="bold red")]
    if problem.hint:
        lines.append(Text(f"  {problem.hint}"))
    lines.append(Text("Containers keep running; a read of what is not local waits. Below is what was seen last.\n"))
    return Group(*lines)


def one_line(image: ImageLines) -> str:
    """An image in one line, for a log."""
    share = "not lazy" if image.local is None else f"{_percent(image.local)} {_doing(image).plain}"
    return f"{image.name}: {share}; {image.lazy} of {len(image.layers)} layers lazy"


def _bar_width(width: int) -> int:
    return _BAR if width >= _NARROW else _NARROW_BAR


def _percent(share: float | None) -> str:
    """Never 100 % before it is all."""
    return "" if share is None else f"{math.floor(share * 100)} %"


def _bar(share: float | None, width: int) -> RenderableType:
    if share is None:
        return ""
    return ProgressBar(total=1.0, completed=share, width=width, complete_style="cyan", finished_style="green")
