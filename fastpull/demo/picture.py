"""The PNG: bytes received against time for each way of starting, with the moments that matter to a user."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastpull.demo.results import MIB, ColdStart, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#7a7f87", "#1a73e8", "#d9822b")
_SIZE_INCHES = (10, 5.2)


def median_start(starts: Sequence[ColdStart]) -> ColdStart:
    """The start whose time to ready is the median (of an even number, the slower of the two in the middle)."""
    return sorted(starts, key=lambda start: start.ready_s)[len(starts) // 2]


def draw(comparison: Comparison, path: Path) -> None:
    """Write the picture. Needs matplotlib, which the extra `charts` installs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=_SIZE_INCHES, layout="constrained")
    for mode, colour in zip(comparison.modes, _COLOURS, strict=False):
        mine = [start for start in comparison.starts if start.mode == mode]
        chosen = median_start(mine)
        for start in mine:
            _line(axes, start, colour, main=start is chosen)
        _milestones(axes, chosen, colour)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds since the request")
    axes.set_ylabel("MiB received from the registry")
    axes.set_title(f"Cold start of {comparison.image} ({comparison.link})", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _line(axes: "Axes", start: ColdStart, colour: str, *, main: bool) -> None:
    end_s = max(start.complete_s, start.ready_s)
    pairs = [pair for pair in start.curve if pair[0] <= end_s]
    pairs.append((end_s, pairs[-1][1]))
    axes.plot(
        [time_s for time_s, _ in pairs],
        [received / MIB for _, received in pairs],
        color=colour,
        linewidth=2.2 if main else 0.8,
        alpha=1 if main else 0.35,
        label=f"{start.mode}: ready after {start.ready_s:.1f} s" if main else None,
    )


def _milestones(axes: "Axes", start: ColdStart, colour: str) -> None:
    """A hollow mark where the container starts, a full one where it is ready."""
    for time_s, filled in ((start.container_start_s, False), (start.ready_s, True)):
        received = max((total for at_s, total in start.curve if at_s <= time_s), default=0)
        face = colour if filled else "white"
        axes.plot([time_s], [received / MIB], marker="o", markersize=9, color=colour, markerfacecolor=face, zorder=5)
        word = "ready" if filled else "started"
        axes.annotate(word, (time_s, received / MIB), (8, -12), textcoords="offset points", color=colour, fontsize=9)
