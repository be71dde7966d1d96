"""`python -m tests.bench [WORKLOAD...]`: run the benchmarks, print the table, write JSON."""

import os
import sys
from pathlib import Path

import click
from rich.console import Console

from tests.bench.table import Machine, Report
from tests.bench.workloads import ALL, DEFAULT, Setting


@click.command()
@click.argument("names", nargs=-1, metavar="[WORKLOAD]...")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Values of each figure.")
@click.option("--cache-dir", type=click.Path(path_type=Path), default=".tools/demo", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default="bench-results/bench.json", show_default=True)
def main(names: tuple[str, ...], runs: int, cache_dir: Path, output: Path) -> None:
    """Measure fastpull against plain overlayfs, both in this run, on this machine. Needs root."""
    known = {workload.name: workload for workload in ALL}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: known are {', '.join(known)}")
    cache_dir.mkdir(parents=True, exist_ok=True)
    # A pipe has no width of its own; the table needs some.
    console = Console(width=None if sys.stdout.isatty() else 150)
    report = Report(machine=Machine(cores=os.cpu_count() or 0))
    setting = Setting(cache=cache_dir, runs=runs, say=lambda text: console.print(text, style="dim", highlight=False))
    for name in names or DEFAULT:
        report.rows += known[name].rows(setting)
        # After each workload: what was measured is not lost with a later one.
        report.write(output)
    console.print(report.table())
    console.print(f"figures: {output}", highlight=False)


if __name__ == "__main__":
    main()
