"""`fastpull report`: a page about one start: what was read when, what waited, what to change."""

import json
import os
from pathlib import Path

import click

from fastpull.aio import run_async
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.nerdctl import find_nerdctl
from fastpull.start_report.findings import Findings
from fastpull.start_report.gather import Node, gather
from fastpull.start_report.page import page

_PATH = click.Path(path_type=Path)

EXAMPLES = """\b
Examples:
  sudo fastpull report registry.example/app:1 --output start.html
  sudo fastpull report my-container --json start.json
  sudo fastpull report --start 2 registry.example/app:1

\b
A start begins with the first read after half a minute of quiet. The daemon remembers the last 200,000 reads of
layers that were not complete yet; what is read of a complete layer is the kernel's alone.
"""


@click.command(epilog=EXAMPLES)
@click.argument("what", metavar="IMAGE|CONTAINER")
@click.option("--output", "-o", type=_PATH, default=Path("fastpull-report.html"), show_default=True, help="The page.")
@click.option("--json", "json_file", type=_PATH, help="Also write everything as JSON.")
@click.option(
    "--start", "number", type=click.IntRange(min=1), help="Which start since the daemon came up.  [default: 1]"
)
@click.option("--root", type=_PATH, default=Path("/var/lib/fastpull"), show_default=True, help="The daemon's data.")
@click.option("--run-dir", type=_PATH, default=Path("/run/fastpull"), show_default=True, help="The daemon's sockets.")
@click.option("--namespace", "-n", envvar="CONTAINERD_NAMESPACE", default="default", show_default=True)
@click.option("--snapshotter", default="fastpull", show_default=True, help="Its name in containerd's configuration.")
@click.option(
    "--containerd-address",
    type=_PATH,
    envvar="CONTAINERD_ADDRESS",
    default=Path("/run/containerd/containerd.sock"),
    show_default=True,
)
def report(
    what: str,
    output: Path,
    json_file: Path | None,
    number: int | None,
    root: Path,
    run_dir: Path,
    namespace: str,
    snapshotter: str,
    containerd_address: Path,
) -> None:
    """Write a page about one start of IMAGE, or of CONTAINER's image."""
    node = Node(
        root=root,
        run_dir=run_dir,
        containerd_address=containerd_address,
        namespace=namespace,
        snapshotter=snapshotter,
    )
    findings = _findings(node, what, number)
    output.write_text(page(findings))
    if json_file is not None:
        json_file.write_text(json.dumps(findings.to_json(), indent=2) + "\n")
    click.echo(f"{output}: {findings.reads} reads, {findings.waits} of them waited")


def _findings(node: Node, what: str, number: int | None) -> Findings:
    try:
        return run_async(gather(node, what, number))
    except Failure as problem:
        image = _image_of(node, what) if problem.exit_code == ExitCode.NOT_FOUND else None
        if image is None:
            raise
    return run_async(gather(node, image, number))


def _image_of(node: Node, container: str) -> str | None:
    """The image of a container, by its name or id; None where there is none of that name."""
    options = (f"--namespace={node.namespace}", f"--address={node.containerd_address}")
    try:
        nerdctl = find_nerdctl(os.environ, options)
        native = json.loads(nerdctl.output("container", "inspect", "--mode", "native", container))
    except (Failure, ValueError):
        return None
    return str(native[0]["Image"]) if native else None
