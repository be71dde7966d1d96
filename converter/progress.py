"""What a conversion tells while it runs: bars on a terminal, one line per event elsewhere."""

import sys
import time
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

#: Below it a layer's index and padding outweigh what compression does, and a ratio would only alarm.
_WORTH_A_RATIO_BYTES = 1_000_000


def size_text(count: int) -> str:
    """`812 B`, `40.0 kB`, `1.2 GB`."""
    value, units = float(count), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    for larger in units:
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def size_change(before: int, after: int) -> str:
    """What became of a layer's size: `4.0 MB before, 3.0 MB now (25% smaller)`."""
    text = f"{size_text(before)} before, {size_text(after)} now"
    if before < _WORTH_A_RATIO_BYTES:
        return text
    share = round(abs(after - before) / before * 100)
    return f"{text} ({share}% {'smaller' if after < before else 'larger'})" if share else text


class ConvertProgress(Protocol):
    """Told by the converter, from the event loop's thread. `key` names one layer's work."""

    def started(self, key: str, label: str, total: int) -> None:
        """Work on `total` bytes of the source begins."""
        ...

    def advanced(self, key: str, count: int) -> None:
        """`count` more bytes of the source were read."""
        ...

    def finished(self, key: str, outcome: str) -> None:
        """Done; `outcome` is a few words."""
        ...


class SilentProgress:
    """For callers that want no output."""

    def started(self, key: str, label: str, total: int) -> None: ...
    def advanced(self, key: str, count: int) -> None: ...
    def finished(self, key: str, outcome: str) -> None: ...


class LineProgress:
    """A line when a layer begins and one when it is done: for logs."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._begun: dict[str, tuple[str, int, float]] = {}

    def started(self, key: str, label: str, total: int) -> None:
        self._begun[key] = label, total, time.monotonic()
        self._print(f"{label}: started, {size_text(total)}")

    def advanced(self, key: str, count: int) -> None: ...

    def finished(self, key: str, outcome: str) -> None:
        label, _, begun = self._begun.pop(key, (key, 0, time.monotonic()))
        self._print(f"{label}: {outcome} ({time.monotonic() - begun:.1f} s)")

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class BarProgress:
    """One bar per layer in progress. A context manager: the terminal is restored when it is left."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bars = Progress(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "BarProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, key: str, label: str, total: int) -> None:
        self._tasks[key] = self._bars.add_task(label, total=total)

    def advanced(self, key: str, count: int) -> None:
        if key in self._tasks:
            self._bars.advance(self._tasks[key], count)

    def finished(self, key: str, outcome: str) -> None:
        if key in self._tasks:
            task = self._tasks.pop(key)
            label = self._bars.tasks[self._bars.task_ids.index(task)].description
            self._bars.remove_task(task)
            self._bars.console.print(f"{label}: {outcome}", highlight=False)


def progress_for(stream: TextIO = sys.stderr) -> LineProgress | BarProgress:
    """Bars where a person watches, lines elsewhere."""
    if stream.isatty():
        return BarProgress(Console(file=stream))
    return LineProgress(stream)
