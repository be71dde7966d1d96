"""`fastpull clean`: remove what fastpull made on this machine, and nothing else."""

import os

import click

from fastpull.aio import run_async
from fastpull.cleaning import Plan, Scope, make_plan, remove, survey
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
"""


@click.command(epilog=EXAMPLES)
@click.option("--containers", is_flag=True, help="Remove containers started with fastpull.")
@click.option("--images", is_flag=True, help="Remove images that fastpull unpacked.")
@click.option("--all", "both", is_flag=True, help="Both.")
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
@click.option("--nerdctl-arg", multiple=True, metavar="ARG", help="A global option for every nerdctl call.")
def clean(
    containers: bool,
    images: bool,
    both: bool,
    snapshotter: str,
    dry_run: bool,
    yes: bool,
    force: bool,
    nerdctl_arg: tuple[str, ...],
) -> int:
    """Remove what fastpull made: containers, images. Other containers and images are not touched."""
    if not (containers or images or both):
        raise Failure("say what to remove: --containers, --images or --all", code=ExitCode.USAGE)
    chosen = _ALIASES.get(snapshotter, snapshotter)
    scope = Scope(
        containers=containers or both,
        images=images or both,
        snapshotters=None if chosen == "all" else frozenset({chosen}),
        force=force,
    )
    nerdctl = find_nerdctl(os.environ, nerdctl_arg)
    plan = _plan(nerdctl, scope)
    _tell(plan)
    if dry_run or plan.empty:
        return ExitCode.OK
    if not (yes or force):
        click.confirm("Remove these?", abort=True, err=True)
    failed = remove(nerdctl, plan)
    for line in failed:
        click.echo(f"fastpull: {line}", err=True)
    return ExitCode.COMMAND_FAILED if failed else ExitCode.OK


def _plan(nerdctl: Nerdctl, scope: Scope) -> Plan:
    images = run_async(local_images(nerdctl.address, nerdctl.namespace)) if scope.images else []
    return make_plan(survey(nerdctl), images, scope)


def _tell(plan: Plan) -> None:
    for container in plan.containers:
        click.echo(f"remove container {container.name} ({container.image}){' RUNNING' if container.running else ''}")
    for image in plan.images:
        click.echo(f"remove image {image.name}")
    for kept in plan.kept:
        click.echo(f"keep {kept.name}: {kept.why}")
    if plan.empty:
        click.echo("nothing to remove")
