"""`fastpull status`: what is local, what is loading, and what is not lazy and why."""

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from fastpull.aio import run_async
from fastpull.daemon_client import ask
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.layer_rates import LayerRates
from fastpull.local_images import canonical, local_images
from fastpull.profile_client import ProfileClient
from fastpull.status_picture import Answer, Picture, one_line, unanswered
from fastpull.status_view import image_lines, profile_words, relevant, seconds_left, unlisted

_REFRESH_S = 0.5
_LINE_S = 1.0
_PATH = click.Path(path_type=Path)

EXAMPLES = """\b
Examples:
  sudo fastpull status
  sudo fastpull status --watch registry.example/app:1
  sudo fastpull status --watch --json | jq -c '{rate_bytes_per_s, faults}'
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


@click.command(epilog=EXAMPLES)
@click.argument("image", required=False)
@click.option("--watch", is_flag=True, help="Keep it up to date until Ctrl-C; lines if piped.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch, a document a line.")
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
    console = Console()
    if watch:
        run_async(_watch(question, as_json=as_json, console=console))
        return
    answer = run_async(_look(question))
    _must_be_here(answer, namespace)
    if as_json:
        click.echo(json.dumps(_document(answer), indent=2))
    else:
        console.print(Picture(answer=answer))


async def _look(question: Question, rates: LayerRates | None = None) -> Answer:
    """Ask the daemon and containerd. Raises Failure where one of them does not answer."""
    daemon = await ask(question.admin_socket)
    speeds = {} if rates is None else rates.add(time.monotonic(), daemon)
    images = await local_images(str(question.containerd_address), question.namespace)
    shown = relevant(images, question.snapshotter, question.image)
    rows = await ProfileClient(question.admin_socket).index() if daemon.plane != "none" else []
    told = {str(row["manifest"]): profile_words(row) for row in rows}
    return Answer(
        daemon=daemon,
        images=tuple(image_lines(one, daemon, question.snapshotter, told, speeds) for one in shown),
        unlisted=tuple(unlisted(images, daemon)),
        wanted=question.image,
    )


def _must_be_here(answer: Answer, namespace: str) -> None:
    if answer.wanted is not None and not answer.images:
        hint = f"nerdctl --namespace {namespace} images lists what there is; -n names another namespace"
        raise Failure(f"there is no image {answer.wanted} here", hint=hint, code=ExitCode.NOT_FOUND)


async def _watch(question: Question, *, as_json: bool, console: Console) -> None:
    """Until Ctrl-C: as a live picture on a terminal, and as lines where the output goes elsewhere."""
    rates = LayerRates()
    first = await _look(question, rates)  # what does not answer now is a mistake, and not a restart
    if as_json or not console.is_terminal:
        await _watch_lines(question, rates, first, as_json=as_json)
    else:
        await _watch_picture(question, rates, first, console)


async def _watch_picture(question: Question, rates: LayerRates, answer: Answer, console: Console) -> None:
    """On the terminal's other screen, so that resizing leaves no debris; the last picture stays when it ends."""
    trouble: RenderableType | None = None
    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                foot = Text(f"\n{_clock()}  Ctrl-C ends", style="dim")
                rows = console.height - (7 if trouble else 3)
                picture = Picture(answer=answer, rows=rows)
                live.update(Group(trouble, picture, foot) if trouble else Group(picture, foot), refresh=True)
                await asyncio.sleep(_REFRESH_S)
                try:
                    answer, trouble = await _look(question, rates), None
                except Failure as problem:
                    trouble = trouble or unanswered(problem, _clock())
    finally:
        console.print(Picture(answer=answer))


async def _watch_lines(question: Question, rates: LayerRates, answer: Answer, *, as_json: bool) -> None:
    """A line when something has changed, once a second at most; as JSON, a document in each line."""
    told: list[str] = []
    while True:
        lines = [json.dumps(_document(answer))] if as_json else _lines(answer)
        if lines != told:
            for line in lines:
                click.echo(line if as_json else f"{_clock()}  {line}")
        told = lines
        await asyncio.sleep(_LINE_S)
        try:
            answer = await _look(question, rates)
        except Failure as problem:
            click.echo(f"{_clock()}  {problem.format_message()}", err=as_json)


def _lines(answer: Answer) -> list[str]:
    return [one_line(image) for image in answer.images] or [f"no image {answer.wanted or 'of fastpull'} here yet"]


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _document(answer: Answer) -> dict[str, object]:
    daemon = answer.daemon
    return {
        "plane": daemon.plane,
        "rate_bytes_per_s": daemon.rate_bytes_per_s,
        "fetched_bytes": dict(daemon.fetched),
        "faults": daemon.faults,
        "fault_wait_s": daemon.fault_wait_s,
        "seconds_left": seconds_left(daemon),
        "images": [image.to_json() for image in answer.images],
    }
