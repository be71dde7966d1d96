"""`fastpull doctor`: what this machine can do, what is wrong with it, and what to do about each."""

import json
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastpull.doctor.check import Check, Level
from fastpull.doctor.config import Expected
from fastpull.doctor.host import host_checks
from fastpull.doctor.services import Machine, service_checks
from fastpull.exit_codes import ExitCode

_SIGNS = {Level.OK: "[green]ok[/]", Level.NOTE: "[yellow]note[/]", Level.FAIL: "[red bold]FAIL[/]"}

EXAMPLES = """\b
Examples:
  sudo fastpull doctor
  sudo fastpull doctor --json | jq '.checks[] | select(.level == "fail")'
  sudo fastpull doctor --containerd-address /run/k3s/containerd/containerd.sock \\
      --containerd-config /var/lib/rancher/k3s/agent/etc/containerd/config.toml

\b
Exit code: 0 if nothing failed (notes do not count), 1 otherwise.
"""

_PATH = click.Path(path_type=Path)


@click.command(epilog=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--root", type=_PATH, default=Path("/var/lib/fastpull"), show_default=True, help="The daemon's data.")
@click.option("--run-dir", type=_PATH, default=Path("/run/fastpull"), show_default=True, help="Where its sockets are.")
@click.option("--snapshotter", default="fastpull", show_default=True, help="Its name in containerd's configuration.")
@click.option(
    "--containerd-address",
    type=_PATH,
    envvar="CONTAINERD_ADDRESS",
    default=Path("/run/containerd/containerd.sock"),
    show_default=True,
)
@click.option("--containerd-config", type=_PATH, default=Path("/etc/containerd/config.toml"), show_default=True)
def doctor(
    as_json: bool, root: Path, run_dir: Path, snapshotter: str, containerd_address: Path, containerd_config: Path
) -> int:
    """Check this machine: kernel, containerd and its configuration, nerdctl, the fastpull daemon."""
    machine = Machine(
        containerd_address=containerd_address,
        containerd_config=containerd_config,
        expected=Expected(snapshotter=snapshotter, socket=run_dir / "fastpull.sock", root=root),
        environment=os.environ,
    )
    checks = [*host_checks(root), *service_checks(machine)]
    healthy = all(check.level is not Level.FAIL for check in checks)
    if as_json:
        click.echo(json.dumps({"healthy": healthy, "checks": [check.to_json() for check in checks]}, indent=2))
    else:
        _print(checks)
    return ExitCode.OK if healthy else ExitCode.FAILED


def _print(checks: Sequence[Check]) -> None:
    console = Console()
    for area, found in groupby(checks, key=lambda check: check.area):
        console.print(f"\n[bold]{area}[/]")
        table = Table.grid(padding=(0, 2))
        for check in found:
            table.add_row("", _SIGNS[check.level], check.name, escape(check.found))
            if check.fix:
                table.add_row("", "", "", f"[cyan]fix:[/] {escape(check.fix)}")
        console.print(table)
    failed = sum(check.level is Level.FAIL for check in checks)
    console.print(f"\n{failed or 'Nothing'} failed.\n")
