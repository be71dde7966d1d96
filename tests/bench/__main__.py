"""`python -m tests.bench`: run the benchmarks, print the table, write JSON and pictures. See docs/benchmarks.md."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import click
from rich.console import Console

from fastpull.commands.demo import parse_rate
from fastpull.lab.network import LinkShape
from tests.bench.charts import draw
from tests.bench.setting import MIB, Setting
from tests.bench.table import Machine, Report
from tests.bench.workload import Measured
from tests.bench.workloads import ALL

MODES = tuple(dict.fromkeys(mode for workload in ALL for mode in workload.modes))


@click.command()
@click.option(
    "--workload",
    "letters",
    multiple=True,
    type=click.Choice([workload.letter for workload in ALL]),
    help="; ".join(f"{workload.letter}: {workload.name}" for workload in ALL) + ". May be repeated. [all]",
)
@click.option("--mode", "modes", multiple=True, type=click.Choice(MODES), help="Only these ways of starting.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Values of each figure.")
@click.option("--rate", default="1g", show_default=True, help="Of the link, in bit/s; none: unshaped.")
@click.option("--rtt-ms", type=click.FloatRange(0), default=5.0, show_default=True, help="Round trip of the link.")
@click.option("--size", "size_mib", type=click.IntRange(1), default=4096, show_default=True, help="MiB of weights (b).")
@click.option("--steady/--no-steady", default=True, help="Whether to compare reading when all is local, too.")
@click.option("--cache-dir", type=click.Path(path_type=Path), default=".tools/bench", show_default=True)
@click.option("--output-dir", type=click.Path(path_type=Path), default="bench-results", show_default=True)
@click.option("--keep", is_flag=True, help="Keep the temporary directory with all logs and stores.")
def main(
    letters: tuple[str, ...],
    modes: tuple[str, ...],
    runs: int,
    rate: str,
    rtt_ms: float,
    size_mib: int,
    steady: bool,
    cache_dir: Path,
    output_dir: Path,
    keep: bool,
) -> None:
    """Measure fastpull against plain overlayfs, both in this run, on this machine. Needs root."""
    if os.geteuid() != 0:
        raise click.ClickException("the benchmarks need root")
    # As Ctrl-C: whatever was set up is taken down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A pipe has no width of its own; the table needs some.
    console = Console(width=None if sys.stdout.isatty() else 180)
    report = Report(machine=Machine(cores=os.cpu_count() or 0), runs=runs)
    setting = Setting(
        cache=cache_dir.resolve(),
        runs=runs,
        say=lambda text: console.print(text, style="dim", highlight=False, soft_wrap=True),
        shape=LinkShape(rate_bits_s=parse_rate(rate), rtt_ms=rtt_ms),
        modes=frozenset(modes),
        steady=steady,
        weights_bytes=size_mib * MIB,
        keep=keep,
    )
    for workload in ALL:
        if workload.letter in (letters or [known.letter for known in ALL]):
            _run(workload, setting, report, output_dir)
    console.print(report.table())
    console.print(f"figures: {output_dir / 'bench.json'}", highlight=False)


def _run(workload: Measured, setting: Setting, report: Report, output_dir: Path) -> None:
    """One workload; what it measured is written before the next one begins."""
    outcome = workload.run(setting)
    report.rows += outcome.rows
    trials = [trial.to_json() for trial in outcome.trials]
    report.details[workload.name] = {"link": str(setting.shape), "trials": trials, **outcome.values}
    report.write(output_dir / "bench.json")
    if outcome.trials:
        with contextlib.suppress(ImportError):
            draw(outcome.trials, f"{workload.name} ({setting.shape})", output_dir / f"{workload.letter}.png")


if __name__ == "__main__":
    main()
