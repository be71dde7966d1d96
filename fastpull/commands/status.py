"""`fastpull status`: what is local, what is loading, and what is not lazy and why."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fastpull.aio import run_async
from fastpull.amounts import in_bytes, in_rate
from fastpull.daemon_client import Daemon, ask
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.local_images import canonical, local_images
from fastpull.profile_client import ProfileClient
from fastpull.status_view import ImageLines, LayerLine, image_lines, profile_words, relevant

_REFRESH_S = 0.5
_PATH = click.Path(path_type=Path)

EXAMPLES = """\b
Examples:
  sudo fastpull status
  sudo fastpull status --watch registry.example/app:1
  sudo fastpull status --json | jq '.images[] | {name, local}'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What was asked, and of whom."""

    image: str | None
    admin_socket: Path
    containerd_address: Path
    namespace: str
    snapshotter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The state of the node at one moment."""

    daemon: Daemon
    images: tuple[ImageLines, ...]


@click.command(epilog=EXAMPLES)
@click.argument("image", required=False)
@click.option("--watch", is_flag=True, help="Keep the picture up to date until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
def status(
    image: str | None,
    watch: bool,
    as_json: bool,
    run_dir: Path,
    namespace: str,
    snapshotter: str,
    containerd_address: Path,
) -> None:
    """Show what is local and what is loading; with IMAGE, layer by layer."""
    question = Question(
        image=None if image is None else canonical(image),
        admin_socket=run_dir / "admin.sock",
        containerd_address=containerd_address,
        namespace=namespace,
        snapshotter=snapshotter,
    )
    if watch:
        run_async(_watch(question))
        return
    answer = run_async(_look(question))
    if as_json:
        click.echo(json.dumps(_document(answer), indent=2))
    else:
        Console().print(_picture(answer, detailed=image is not None))


async def _look(question: Question) -> Answer:
    daemon = await ask(question.admin_socket)
    images = await local_images(str(question.containerd_address), question.namespace)
    shown = relevant(images, question.snapshotter, question.image)
    if question.image is not None and not shown:
        hint = f"nerdctl --namespace {question.namespace} images lists what there is; -n names another namespace"
        raise Failure(f"there is no image {question.image} here", hint=hint, code=ExitCode.NOT_FOUND)
    rows = await ProfileClient(question.admin_socket).index() if daemon.plane != "none" else []
    told = {str(row["manifest"]): profile_words(row) for row in rows}
    lines = tuple(image_lines(one, daemon, question.snapshotter, told) for one in shown)
    return Answer(daemon=daemon, images=lines)


async def _watch(question: Question) -> None:
    with Live(console=Console(), auto_refresh=False, screen=False) as live:
        while True:
            answer = await _look(question)
            live.update(_picture(answer, detailed=question.image is not None), refresh=True)
            await asyncio.sleep(_REFRESH_S)


def _document(answer: Answer) -> dict[str, object]:
    daemon = answer.daemon
    return {
        "plane": daemon.plane,
        "rate_bytes_per_s": daemon.rate_bytes_per_s,
        "fetched_bytes": dict(daemon.fetched),
        "faults": daemon.faults,
        "fault_wait_s": daemon.fault_wait_s,
        "images": [image.to_json() for image in answer.images],
    }


def _picture(answer: Answer, *, detailed: bool) -> RenderableType:
    parts: list[RenderableType] = [_headline(answer.daemon)]
    if not answer.images:
        parts.append(Text("No image here uses fastpull. Start one with: fastpull run IMAGE", style="yellow"))
    elif detailed:
        parts += [part for image in answer.images for part in (_title(image), _layers(image))]
    else:
        parts.append(_images(answer.images))
    return Group(*parts)


def _headline(daemon: Daemon) -> Text:
    waiting = sum(layer.waiting for layer in daemon.layers.values())
    fetched = sum(daemon.fetched.values())
    mean_ms = daemon.fault_wait_s / daemon.faults * 1000 if daemon.faults else 0.0
    text = Text()
    text.append("now  ", style="bold")
    text.append(f"{in_rate(daemon.rate_bytes_per_s)}, {waiting} read{'s' * (waiting != 1)} waiting\n")
    text.append("all  ", style="bold")
    text.append(f"{in_bytes(fetched)} fetched since the daemon started; {daemon.faults} reads waited")
    text.append(f", {mean_ms:.0f} ms on average\n" if daemon.faults else "\n")
    return text


def _images(images: tuple[ImageLines, ...]) -> Table:
    table = _table("image", "lazy layers", "local", "", "reads waiting", "profile")
    for image in images:
        share = image.local
        lazy = f"{image.lazy} of {len(image.layers)}"
        waiting = sum(layer.waiting for layer in image.layers)
        table.add_row(
            escape(image.name), lazy, _percent(share), _bar(share), str(waiting) if waiting else "", image.profile
        )
    return table


def _title(image: ImageLines) -> Text:
    counted = f"  {image.lazy} of {len(image.layers)} layers lazy; profile: {image.profile}"
    return Text.assemble((image.name, "bold"), counted)


def _layers(image: ImageLines) -> Table:
    table = _table("layer", "size", "local", "", "fetched", "waiting", "state", "from")
    for layer in image.layers:
        table.add_row(*_row(layer))
    return table


def _row(layer: LayerLine) -> list[RenderableType]:
    style = "" if layer.lazy else "yellow"
    return [
        layer.digest[7:19],
        in_bytes(layer.size),
        _percent(layer.local),
        _bar(layer.local),
        in_bytes(layer.fetched_bytes) if layer.lazy else "",
        str(layer.waiting) if layer.waiting else "",
        Text(layer.why, style=style),
        Text(", ".join(dict.fromkeys(source.partition("/")[0] for source in layer.sources))),
    ]


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        numeric = heading in ("size", "local", "fetched", "waiting", "reads waiting")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric or heading == "layer")
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share * 100:.0f} %"


def _bar(share: float | None) -> RenderableType:
    return "" if share is None else ProgressBar(total=1.0, completed=share, width=20)
