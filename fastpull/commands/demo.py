"""`fastpull demo`: see both ways of starting an image, on this machine, without touching its configuration."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from fastpull.demo.bench import Bench, Mode, Workload, in_turn
from fastpull.demo.image import Say, demo_image
from fastpull.demo.picture import draw
from fastpull.demo.results import ColdStart, Comparison
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.lab.network import LinkShape, ShapedLink
from fastpull.lab.process import LabError
from fastpull.lab.registry import Registry
from fastpull.lab.workspace import Workspace

DEMO_WORKLOAD = Workload(name="demo", environment=("PORT={port}",), endpoint="http://127.0.0.1:{port}/")
_RATE = re.compile(r"(?P<number>[0-9.]+) ?(?P<unit>[kmg]?)(?:bit(?:/s)?)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}

EPILOG = """\b
Examples:
  fastpull demo                                        # 1 Gbit/s, 5 ms, three starts of each kind
  fastpull demo --rate 200m --rtt-ms 40 --runs 1
  fastpull demo --image registry.example/server:1 --endpoint http://127.0.0.1:8000/health
"""


def parse_rate(text: str) -> int | None:
    """Bits per second from "1g", "200 Mbit/s" or "none"."""
    if text.lower() in ("none", "unshaped"):
        return None
    found = _RATE.fullmatch(text.strip())
    if found is None or not float(found["number"]):
        raise click.BadParameter(f"{text!r}: not a rate such as 1g, 200m or none")
    return int(float(found["number"]) * _UNITS[found["unit"].lower()])


def default_cache() -> Path:
    """Where the demo's image is kept: `$FASTPULL_DEMO_CACHE`, or the user's cache directory."""
    named = os.environ.get("FASTPULL_DEMO_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "fastpull" / "demo"


@click.command(epilog=EPILOG)
@click.option("--image", help="Start this image in place of the demo's own.")
@click.option("--endpoint", help="With --image: the URL that answers when it is ready. [wait for its end]")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Cold starts of each kind.")
@click.option("--rate", default="1g", show_default=True, help="Of the link to the registry, in bit/s; none: unshaped.")
@click.option("--rtt-ms", type=click.FloatRange(0), default=5.0, show_default=True, help="Round trip of the link.")
@click.option("--output-dir", type=click.Path(path_type=Path), default="demo-results", show_default=True)
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where the demo's image is kept.")
@click.option("--keep", is_flag=True, help="Keep the temporary directory with all logs.")
def demo(
    image: str | None,
    endpoint: str | None,
    runs: int,
    rate: str,
    rtt_ms: float,
    output_dir: Path,
    cache_dir: Path | None,
    keep: bool,
) -> None:
    """Start an image cold on overlayfs and with fastpull, in turn, and show the difference.

    A private containerd, registry and daemon run in one temporary directory, the registry behind a slow link. Nothing
    of this machine's own configuration is read or changed. Needs root.
    """
    if os.geteuid() != 0:
        raise Failure("the demo needs root", hint="sudo fastpull demo", code=ExitCode.NOT_PERMITTED)
    shape = LinkShape(rate_bits_s=parse_rate(rate), rtt_ms=rtt_ms)
    console = Console()
    workload = DEMO_WORKLOAD if image is None else Workload(name=image, endpoint=endpoint)
    source = image or str(demo_image(cache_dir or default_cache(), _steps(console)))
    with _reported(), _bench(shape, console, keep=keep) as bench:
        modes = _prepare(bench, source, console)
        comparison = Comparison(
            image=image or "the demo's image",
            link=str(shape),
            starts=tuple(_starts(bench, modes, workload, runs, console)),
        )
    _write(comparison, output_dir, console)


def _steps(console: Console) -> Say:
    return lambda text: console.print(f"  {text}", style="dim", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """A part of the laboratory that failed is told in its own words, not as a defect of the command."""
    try:
        yield
    except LabError as problem:
        raise Failure(str(problem), code=ExitCode.COMMAND_FAILED) from problem


@contextlib.contextmanager
def _bench(shape: LinkShape, console: Console, *, keep: bool) -> Iterator[Bench]:
    with (
        Workspace(keep=keep) as workspace,
        ShapedLink(shape) as link,
        Registry(workspace, link, storage=True) as registry,
    ):
        console.print(f"laboratory in {workspace.path}, registry at {registry.host} ({shape})", highlight=False)
        yield Bench(workspace, link, registry, _steps(console))
    for line in workspace.left:
        console.print(f"swept up: {line}", style="yellow", highlight=False)


def _prepare(bench: Bench, source: str, console: Console) -> list[Mode]:
    """Push the image as it is and converted; an overlayfs start uses the first, a lazy one the second."""
    console.print("pushing the image as it is", highlight=False)
    plain = bench.push(source, "demo/image:plain")
    console.print("converting it", highlight=False)
    before = bench.link.sent_bytes()
    converted = bench.convert(plain, "demo/image:fastpull")
    console.print(f"  converted, {(bench.link.sent_bytes() - before) >> 20} MiB pushed", style="dim", highlight=False)
    return [
        Mode(name="overlayfs", snapshotter="overlayfs", reference=plain),
        Mode(name="fastpull", snapshotter="fastpull", reference=converted),
    ]


def _starts(bench: Bench, modes: list[Mode], workload: Workload, runs: int, console: Console) -> Iterator[ColdStart]:
    for mode in in_turn(modes, runs):
        start = bench.cold_start(mode, workload)
        console.print(
            f"{mode.name:>10}: started {start.container_start_s:6.2f} s, ready {start.ready_s:6.2f} s "
            f"with {start.bytes_to_ready >> 20} MiB, all {start.bytes_total >> 20} MiB after {start.complete_s:6.2f} s",
            highlight=False,
            soft_wrap=True,
        )
        yield start


def _write(comparison: Comparison, directory: Path, console: Console) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    console.print(comparison.table())
    document = directory / "demo.json"
    document.write_text(json.dumps(comparison.to_json(), indent=2) + "\n")
    picture = directory / "demo.png"
    with contextlib.suppress(ImportError):
        draw(comparison, picture)
        console.print(f"picture: {picture}", highlight=False)
    console.print(f"figures: {document}", highlight=False)
