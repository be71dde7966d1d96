"""`fastpull clean`: remove what fastpull made on this machine, and nothing else."""

import os
from pathlib import Path

import click

from fastpull.aio import run_async
from fastpull.cleaning import Plan, Scope, make_plan, remove, survey
from fastpull.daemon_client import clear_cache
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.local_images import local_images
from fastpull.nerdctl import Nerdctl, find_nerdctl

_ALIASES = {"nydus": "fastpull", "normal": "overlayfs"}

EXAMPLES = """\b
Examples:
  sudo fastpull clean --all --dry-run          # what would go, and what would stay and why
  sudo fastpull clean --all                    # stopped containers and images that only fastpull holds
  sudo fastpull clean --containers --force     # running ones too
  sudo fastpull clean --images --snapshotter all
  sudo fastpull clean --cache --yes
"""


@click.command(epilog=EXAMPLES)
@click.option("--containers", is_flag=True, help="Remove containers started with fastpull.")
@click.option("--images", is_flag=True, help="Remove images that fastpull unpacked.")
@click.option("--cache", is_flag=True, help="Have the daemon drop layers that no image here uses.")
@click.option("--all", "both", is_flag=True, help="All three.")
@click.option(
    "--snapshotter",
    type=click.Choice(["fastpull", "overlayfs", "all", *_ALIASES]),
    default="fastpull",
    show_default=True,
    help="Whose containers and images; nydus means fastpull.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Do not ask, and remove running containers too.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    default=Path("/run/fastpull"),
    show_default=True,
    help="The daemon's sockets.",
)
@click.option("--nerdctl-arg", multiple=True, metavar="ARG", help="A global option for every nerdctl call.")
def clean(
    containers: bool,
    images: bool,
    cache: bool,
    both: bool,
    snapshotter: str,
    dry_run: bool,
    yes: bool,
    force: bool,
    run_dir: Path,
    nerdctl_arg: tuple[str, ...],
) -> int:
    """Remove what fastpull made: containers, images, cached layers. Others' are not touched."""
    if not (containers or images or cache or both):
        raise Failure("say what to remove: --containers, --images, --cache or --all", code=ExitCode.USAGE)
    chosen = _ALIASES.get(snapshotter, snapshotter)
    scope = Scope(
        containers=containers or both,
        images=images or both,
        snapshotters=None if chosen == "all" else frozenset({chosen}),
        force=force,
    )
    nerdctl = find_nerdctl(os.environ, nerdctl_arg)
    plan = _plan(nerdctl, scope) if scope.containers or scope.images else Plan(containers=(), images=(), kept=())
    cache_too = (cache or both) and chosen != "overlayfs"
    _tell(plan, cache_too)
    if dry_run or (plan.empty and not cache_too):
        return ExitCode.OK
    if not (yes or force):
        click.confirm("Remove these?", abort=True, err=True)
    failed = remove(nerdctl, plan)
    for line in failed:
        click.echo(f"fastpull: {line}", err=True)
    if cache_too:
        _clear_cache(run_dir / "admin.sock")
    return ExitCode.COMMAND_FAILED if failed else ExitCode.OK


def _clear_cache(socket: Path) -> None:
    """Layers can only be dropped by the daemon that serves them; where none runs there is nothing to ask."""
    if not socket.exists():
        click.echo(f"fastpull: note: no daemon at {socket}: its cache stays as it is", err=True)
        return
    dropped = run_async(clear_cache(socket))
    click.echo(f"dropped {len(dropped)} cached layers")


def _plan(nerdctl: Nerdctl, scope: Scope) -> Plan:
    images = run_async(local_images(nerdctl.address, nerdctl.namespace)) if scope.images else []
    return make_plan(survey(nerdctl), images, scope)


def _tell(plan: Plan, cache_too: bool) -> None:
    for container in plan.containers:
        click.echo(f"remove container {container.name} ({container.image}){' RUNNING' if container.running else ''}")
    for image in plan.images:
        click.echo(f"remove image {image.name}")
    for kept in plan.kept:
        click.echo(f"keep {kept.name}: {kept.why}")
    if cache_too:
        click.echo("drop cached layers that no image uses")
    if plan.empty and not cache_too:
        click.echo("nothing to remove")
