"""`fastpull setup`: install fastpull on this machine as one transaction, or take it away again."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.service_hints import DAEMON_LOG, systemd_runs
from fastpull.setup.background import Background
from fastpull.setup.containerd_edit import Cri
from fastpull.setup.install import (
    Installation,
    containerd_release,
    difference,
    install,
    plan,
    prove_again,
    put_back_interrupted,
)
from fastpull.setup.services import DaemonService, OwnSupervisor, Services, Unit, restart_words
from fastpull.setup.uninstall import Uninstallation, preview, remove
from fastpull.setup.unit import Paths

_PATH = click.Path(path_type=Path)
_DAEMON = "fastpull-snapshotter"

EXAMPLES = """\b
Examples:
  sudo fastpull setup --dry-run            # print every change as a diff, change nothing
  sudo fastpull setup                      # install: nerdctl, ctr
  sudo fastpull setup --cri runtimeclass   # and Kubernetes: pods with runtimeClassName: fastpull
  sudo fastpull setup --docker             # and Docker (its containerd image store)
  sudo fastpull setup --restart-command 'systemctl restart k3s'
  sudo fastpull setup --uninstall          # --purge: and the layers it has downloaded

\b
Written: containerd's config.toml (edited in place, comments kept), /etc/fastpull/config.toml, and with systemd the
unit and /etc/tmpfiles.d/fastpull.conf. Without systemd the daemon is started in the background. The result is proven
by pulling a tiny image lazily; if that fails, everything is put back as it was and the exit code is 12. Where only
you can restart containerd (or, with --no-service, start the daemon), setup says so and ends with 13: do it, and run
setup again for the proof. Running containers are not touched; --uninstall refuses (11) while one still needs fastpull.
"""


@click.command(epilog=EXAMPLES)
@click.option("--uninstall", is_flag=True, help="Put every file back as it was before the installation.")
@click.option("--purge", is_flag=True, help="With --uninstall: remove the daemon's data too (layers, profiles).")
@click.option("--dry-run", is_flag=True, help="Print the changes as a diff; change nothing.")
@click.option(
    "--cri",
    type=click.Choice([c.value for c in Cri]),
    default=Cri.NONE.value,
    show_default=True,
    help="What Kubernetes' pods get.",
)
@click.option("--docker", is_flag=True, help="Also choose fastpull in Docker's daemon.json.")
@click.option("--force", is_flag=True, help="With --uninstall: whatever was changed or still runs.")
@click.option("--root-dir", type=_PATH, default=Path("/"), help="Write below this directory and start nothing.")
@click.option("--containerd", "binary", default="containerd", show_default=True, help="The containerd program.")
@click.option("--containerd-config", type=_PATH, default=Path("/etc/containerd/config.toml"), show_default=True)
@click.option("--containerd-address", type=_PATH, default=Path("/run/containerd/containerd.sock"), show_default=True)
@click.option("--root", type=_PATH, default=Path("/var/lib/fastpull"), show_default=True, help="The daemon's data.")
@click.option("--run-dir", type=_PATH, default=Path("/run/fastpull"), show_default=True, help="Its sockets.")
@click.option("--snapshotter", default="fastpull", show_default=True, help="The name containerd knows it by.")
@click.option("--program", help="The daemon's program.  [default: fastpull-snapshotter beside this command]")
@click.option("--no-service", is_flag=True, help="No unit and no daemon: your own supervisor starts it.")
@click.option(
    "--restart-command",
    metavar="CMD",
    help="Restarts containerd; empty: you do it.  [default: by systemd or /etc/init.d/containerd]",
)
def setup(
    uninstall: bool,
    purge: bool,
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
    no_service: bool,
    restart_command: str | None,
) -> int:
    """Install fastpull on this machine: the daemon, and containerd's configuration."""
    if purge and not uninstall:
        raise Failure("--purge goes with --uninstall", code=ExitCode.USAGE)
    paths = Paths(
        # Uninstalling works after the program was removed.
        program=program or (_DAEMON if uninstall else _daemon_program()),
        root=str(root),
        run_dir=str(run_dir),
        containerd_address=str(containerd_address),
    )
    # Below another root nothing is this machine's: its systemd is not asked.
    here = root_dir.absolute() == Path("/")
    live = here or restart_command is not None
    systemd = here and systemd_runs()
    installation = Installation(
        root_dir=root_dir.absolute(),
        paths=paths,
        containerd_config=containerd_config,
        containerd_binary=_found(binary),
        snapshotter=snapshotter,
        cri=Cri(cri),
        docker=docker,
        unit=not no_service and (systemd or not live),
    )
    # Before anything else: looking at the changes needs no root.
    if dry_run and not uninstall:
        click.echo(difference(plan(installation)) or "nothing to change\n", nl=False)
        return ExitCode.OK
    if here and os.geteuid() != 0:
        raise Failure(
            "setup changes the machine: run it as root", hint="--dry-run works without", code=ExitCode.NOT_PERMITTED
        )
    restart = restart_words(restart_command, systemd=systemd)
    services = _services(installation, restart, systemd=systemd, own=no_service) if live else None
    if uninstall:
        going = Uninstallation(
            installation=installation, services=services, log=_log(installation), force=force, purge=purge
        )
        if dry_run:
            preview(going, click.echo)
            return ExitCode.OK
        return remove(going, click.echo)
    return _install(installation, services)


def _install(installation: Installation, services: Services | None) -> int:
    # Imported here: the proof needs the converter, which --help, --dry-run and --uninstall do not.
    from fastpull.setup.proof import Proof, prove

    put_back_interrupted(installation, click.echo)
    changes = plan(installation)
    if not changes and services is None:
        click.echo("everything is installed already; fastpull doctor checks that it works")
        return ExitCode.OK
    proof = partial(
        prove,
        Proof(
            containerd_address=Path(installation.paths.containerd_address),
            snapshotter=installation.snapshotter,
            ctr=_ctr_beside(installation),
            release=containerd_release(installation.containerd_binary),
        ),
    )
    if not changes and services is not None:
        left = prove_again(installation, services, proof, click.echo)
        done = "everything is installed already, and a test image starts lazily"
    else:
        left = install(installation, changes, services, proof, click.echo)
        done = "done: a test image starts lazily, and so does every converted one: fastpull run IMAGE"
    if left:
        click.echo(f"not proven yet: {', '.join(left)}, then run `fastpull setup` again")
        return ExitCode.UNPROVEN
    click.echo(done if services else "done: the files are written")
    _tell_the_rest(installation, services)
    return ExitCode.OK


def _tell_the_rest(installation: Installation, services: Services | None) -> None:
    """What setup cannot know how to do here."""
    if services is None:
        return
    if isinstance(services.daemon, Background):
        click.echo(f"At each boot, start it before containerd: {shlex.join(services.daemon.command)}")
    if installation.docker:
        click.echo("Docker reads its daemon.json when it is restarted: do that when its containers may stop.")


def _services(installation: Installation, restart: Sequence[str] | None, *, systemd: bool, own: bool) -> Services:
    socket = Path(installation.paths.socket)
    config = installation.at("/etc/fastpull/config.toml")
    background = Background(
        program=installation.paths.program,
        config=config,
        socket=socket,
        log=_log(installation),
        pid_file=socket.with_name("daemon.pid"),
    )
    daemon: DaemonService = background
    if own:
        daemon = OwnSupervisor(command=background.command, socket=socket)
    elif systemd:
        daemon = Unit(command=background.command, socket=socket)
    return Services(
        daemon=daemon,
        restart=restart,
        containerd_address=Path(installation.paths.containerd_address),
        snapshotter=installation.snapshotter,
    )


def _log(installation: Installation) -> Path:
    return installation.at(DAEMON_LOG)


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
