"""Pictures of one workload: bytes received against time, and the times of every way of starting side by side."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.trials import MB, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (
    "#7a7f87",
    "#b0a08a",
    "#1a73e8",
    "#0b8457",
    "#d9822b",
    "#8e44ad",
    "#444444",
    "#c0392b",
    "#16a085",
    "#2c3e50",
)


def draw(trials: Sequence[Trial], title: str, path: Path) -> None:
    """Write the picture. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    modes = list(dict.fromkeys(trial.mode for trial in trials))
    figure, (bars, lines) = pyplot.subplots(1, 2, figsize=(14, 5.2), layout="constrained")
    _bars(bars, trials, modes)
    _lines(lines, trials, modes)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bars(axes: "Axes", trials: Sequence[Trial], modes: Sequence[str]) -> None:
    """Container start within time to ready: medians, with the least and the greatest."""
    for place, mode in enumerate(modes):
        ready = [trial.start.ready_s for trial in trials if trial.mode == mode]
        started = statistics.median(trial.start.container_start_s for trial in trials if trial.mode == mode)
        median = statistics.median(ready)
        colour = _COLOURS[place % len(_COLOURS)]
        spread = [[median - min(ready)], [max(ready) - median]]
        axes.barh(place, median, color=colour, xerr=spread, error_kw={"elinewidth": 1, "ecolor": "black"})
        axes.barh(place, min(started, median), color="black", alpha=0.25)
        axes.text(max(ready), place, f"  {median:.1f} s", va="center", fontsize=9)
    axes.set_yticks(range(len(modes)), modes)
    axes.invert_yaxis()
    axes.set_xlabel("seconds to ready (shaded: until the container started)")
    axes.spines[["top", "right"]].set_visible(False)


def _lines(axes: "Axes", trials: Sequence[Trial], modes: Sequence[str]) -> None:
    """Bytes against time of each mode's start that is the median; a mark where it was ready."""
    for place, mode in enumerate(modes):
        mine = sorted((trial.start for trial in trials if trial.mode == mode), key=lambda start: start.ready_s)
        start = mine[len(mine) // 2]
        if start.bytes_total < MB:
            continue
        colour = _COLOURS[place % len(_COLOURS)]
        end_s = max(start.complete_s, start.ready_s)
        points = [(time_s, total / MB) for time_s, total in start.curve if time_s <= end_s]
        axes.plot(*zip(*points, strict=True), color=colour, label=mode)
        reached = max((total for time_s, total in points if time_s <= start.ready_s), default=0.0)
        axes.plot([start.ready_s], [reached], marker="o", color=colour)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds since the request")
    axes.set_ylabel("MB received")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
