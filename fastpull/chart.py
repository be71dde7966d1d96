"""A picture of measured starts: one bar per milestone and mode, the spread of the runs as a whisker."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.samples import Benchmark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = {
    "container_start_time": "container started",
    "readiness_time": "ready",
    "completion_time": "completed",
}
_COLOURS = {"normal": "#9aa0a6", "fastpull": "#1a73e8"}
_BAR_HEIGHT = 0.38


def check_chart(path: Path) -> Path:
    """The path itself, once it is sure that a chart can be written there. Called before anything is started.

    Raises:
        Failure: the suffix is no picture's, its directory is missing, or matplotlib is not installed.
    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise Failure(f"--chart {path}: the name must end in .png, .svg or .pdf", code=ExitCode.USAGE)
    if not path.absolute().parent.is_dir():
        raise Failure(f"--chart {path}: there is no such directory", code=ExitCode.NOT_FOUND)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        hint = "pip install 'fastpull[charts]'"
        raise Failure("--chart needs matplotlib", hint=hint, code=ExitCode.MISSING_TOOL) from None
    return path


def write_chart(path: Path, benchmarks: Sequence[Benchmark]) -> None:
    """Draw the medians of every mode, least to greatest as whiskers; seconds since the request."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in _SHOWN if any(name in one.statistics() for one in benchmarks)]
    figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.8 * len(names)), layout="constrained")
    for number, one in enumerate(benchmarks):
        _bars(axes, one, names, (number - (len(benchmarks) - 1) / 2) * _BAR_HEIGHT)
    axes.set_yticks(range(len(names)), [_SHOWN[name] for name in names])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.margins(x=0.12)
    axes.set_xlabel("seconds since the request (median; whiskers: fastest and slowest run)")
    axes.set_title(benchmarks[0].image if benchmarks else "", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _bars(axes: "Axes", one: Benchmark, names: Sequence[str], shift: float) -> None:
    statistics = one.statistics()
    shown = [(row, statistics[name]) for row, name in enumerate(names) if name in statistics]
    rows = [row + shift for row, _ in shown]
    widths = [value.median for _, value in shown]
    whiskers = ([v.median - v.minimum for _, v in shown], [v.maximum - v.median for _, v in shown])
    runs = f"{len(one.samples)} run{'s' if len(one.samples) != 1 else ''}"
    bars = axes.barh(
        rows,
        widths,
        height=_BAR_HEIGHT * 0.9,
        xerr=whiskers if len(one.samples) > 1 else None,
        color=_COLOURS.get(one.mode, "#1a73e8"),
        error_kw={"elinewidth": 1, "capsize": 3, "ecolor": "#444444"},
        label=f"{one.mode} ({runs})",
    )
    axes.bar_label(bars, fmt="%.2f s", padding=6, fontsize=9)
