"""`fastpull setup`: install fastpull on this machine as one transaction, or take it away again."""

import os
import shutil
import sys
from functools import partial
from pathlib import Path

import click

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.setup.containerd_edit import Cri
from fastpull.setup.install import (
    Installation,
    containerd_release,
    difference,
    install,
    plan,
    put_back_interrupted,
    remove,
)
from fastpull.setup.services import Services
from fastpull.setup.unit import Paths

_PATH = click.Path(path_type=Path)
_DAEMON = "fastpull-snapshotter"

EXAMPLES = """\b
Examples:
  sudo fastpull setup --dry-run            # print every change as a diff, change nothing
  sudo fastpull setup                      # install: nerdctl, ctr
  sudo fastpull setup --cri runtimeclass   # and Kubernetes: pods with runtimeClassName: fastpull
  sudo fastpull setup --docker             # and Docker (its containerd image store)
  sudo fastpull setup --uninstall

\b
Written: containerd's config.toml (edited in place, comments kept), /etc/fastpull/config.toml, the systemd unit,
/etc/tmpfiles.d/fastpull.conf. The result is proven by pulling a tiny image lazily; if that fails, everything is
put back as it was and the exit code is 12. Running containers are not touched.
"""


@click.command(epilog=EXAMPLES)
@click.option("--uninstall", is_flag=True, help="Put every file back as it was before the installation.")
@click.option("--dry-run", is_flag=True, help="Print the changes as a diff; change nothing.")
@click.option(
    "--cri",
    type=click.Choice([c.value for c in Cri]),
    default=Cri.NONE.value,
    show_default=True,
    help="What Kubernetes' pods get.",
)
@click.option("--docker", is_flag=True, help="Also choose fastpull in Docker's daemon.json.")
@click.option("--force", is_flag=True, help="With --uninstall: also over files changed since.")
@click.option("--root-dir", type=_PATH, default=Path("/"), help="Write below this directory and start nothing.")
@click.option("--containerd", "binary", default="containerd", show_default=True, help="The containerd program.")
@click.option("--containerd-config", type=_PATH, default=Path("/etc/containerd/config.toml"), show_default=True)
@click.option("--containerd-address", type=_PATH, default=Path("/run/containerd/containerd.sock"), show_default=True)
@click.option("--root", type=_PATH, default=Path("/var/lib/fastpull"), show_default=True, help="The daemon's data.")
@click.option("--run-dir", type=_PATH, default=Path("/run/fastpull"), show_default=True, help="Its sockets.")
@click.option("--snapshotter", default="fastpull", show_default=True, help="The name containerd knows it by.")
@click.option("--program", help="The daemon's program.  [default: fastpull-snapshotter beside this command]")
@click.option(
    "--restart-command", metavar="CMD", help="Without systemd: restarts containerd; the daemon is yours to run."
)
def setup(
    uninstall: bool,
    dry_run: bool,
    cri: str,
    docker: bool,
    force: bool,
    root_dir: Path,
    binary: str,
    containerd_config: Path,
    containerd_address: Path,
    root: Path,
    run_dir: Path,
    snapshotter: str,
    program: str | None,
    restart_command: str | None,
) -> int:
    """Install fastpull on this machine: the daemon, and containerd's configuration."""
    paths = Paths(
        program=program or _daemon_program(),
        root=str(root),
        run_dir=str(run_dir),
        containerd_address=str(containerd_address),
    )
    installation = Installation(
        root_dir=root_dir.absolute(),
        paths=paths,
        containerd_config=containerd_config,
        containerd_binary=_found(binary),
        snapshotter=snapshotter,
        cri=Cri(cri),
        docker=docker,
    )
    # Before the services are looked for: looking at the changes needs neither root nor systemd.
    if dry_run and not uninstall:
        click.echo(difference(plan(installation)) or "nothing to change\n", nl=False)
        return ExitCode.OK
    services = (
        None
        if root_dir.absolute() != Path("/") and restart_command is None
        else _services(installation, restart_command)
    )
    if root_dir.absolute() == Path("/") and os.geteuid() != 0:
        raise Failure(
            "setup changes the machine: run it as root", hint="--dry-run works without", code=ExitCode.NOT_PERMITTED
        )
    if uninstall:
        remove(installation, services, force=force, say=click.echo)
        return ExitCode.OK
    return _install(installation, services)


def _install(installation: Installation, services: Services | None) -> int:
    # Imported here: the proof needs the converter, which --help, --dry-run and --uninstall do not.
    from fastpull.setup.proof import Proof, prove

    put_back_interrupted(installation, click.echo)
    changes = plan(installation)
    if not changes and services is None:
        click.echo("everything is installed already; fastpull doctor checks that it works")
        return ExitCode.OK
    address = Path(installation.paths.containerd_address)
    proof = Proof(
        containerd_address=address,
        snapshotter=installation.snapshotter,
        ctr=_ctr_beside(installation),
        release=containerd_release(installation.containerd_binary),
    )
    if not changes:
        prove(proof)
        click.echo("everything is installed already, and a test image starts lazily")
        return ExitCode.OK
    install(installation, changes, services, partial(prove, proof), click.echo)
    click.echo(
        "done: fastpull run IMAGE starts a converted image lazily" if services else "done: the files are written"
    )
    return ExitCode.OK


def _services(installation: Installation, restart_command: str | None) -> Services:
    services = Services(restart_command=restart_command, containerd_address=Path(installation.paths.containerd_address))
    if not services.available():
        raise Failure(
            "systemd is not running here",
            hint="give --restart-command CMD (restarts containerd) and run fastpull-snapshotter yourself",
            code=ExitCode.MISSING_TOOL,
        )
    return services


def _found(binary: str) -> str:
    return shutil.which(binary) or binary


def _ctr_beside(installation: Installation) -> str:
    """ctr of the same containerd: an older one does not know the newer one's pull service."""
    beside = Path(installation.containerd_binary).with_name("ctr")
    return str(beside) if beside.exists() else "ctr"


def _daemon_program() -> str:
    """`fastpull-snapshotter` beside this command, which may itself have been called by a symbolic link."""
    called = Path(sys.argv[0]).absolute()
    for beside in (called.with_name(_DAEMON), called.resolve().with_name(_DAEMON)):
        if beside.exists():
            return str(beside)
    found = shutil.which(_DAEMON)
    if found is None:
        raise Failure(f"{_DAEMON} was not found", hint="name it with --program", code=ExitCode.MISSING_TOOL)
    return found
