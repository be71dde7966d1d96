"""The order of an installation: look, write, check, restart, prove; and all back if anything fails."""

import difflib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastpull.doctor.services import effective_config, release_of
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.setup import docker_edit
from fastpull.setup.containerd_edit import Cri, Wanted, edits
from fastpull.setup.files import Change, Record, Transaction, changed_since, installed, recover, uninstall
from fastpull.setup.services import Services
from fastpull.setup.toml_edit import CannotEdit, apply
from fastpull.setup.unit import TMPFILES, UNIT_NAME, Paths, config_text, unit_text

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What is to be installed, and where. File paths are below `root_dir`; what they say is not."""

    root_dir: Path
    paths: Paths
    containerd_config: Path
    containerd_binary: str
    snapshotter: str
    cri: Cri
    docker: bool

    def at(self, path: str | Path) -> Path:
        """A path of the machine, below the scratch root if there is one."""
        return self.root_dir / Path(path).relative_to("/")

    @property
    def state(self) -> Path:
        return self.at(self.paths.root) / "setup"


def plan(installation: Installation) -> list[Change]:
    """The files that have to change, in the order they are written; nothing is written here.

    Raises:
        Failure: a file cannot be changed safely.
    """
    files = {
        installation.at("/etc/fastpull/config.toml"): config_text(installation.paths),
        installation.at(f"/etc/systemd/system/{UNIT_NAME}"): unit_text(installation.paths),
        installation.at("/etc/tmpfiles.d/fastpull.conf"): TMPFILES,
        installation.at(installation.containerd_config): _containerd_text(installation),
    }
    # A configuration that is there was written by somebody: it stays.
    if installation.at("/etc/fastpull/config.toml").exists():
        del files[installation.at("/etc/fastpull/config.toml")]
    if installation.docker:
        files[installation.at("/etc/docker/daemon.json")] = _docker_text(installation)
    return [Change(path=path, text=text) for path, text in files.items() if text != _read(path)]


def _containerd_text(installation: Installation) -> str:
    path = installation.at(installation.containerd_config)
    wanted = Wanted(
        release=containerd_release(installation.containerd_binary),
        snapshotter=installation.snapshotter,
        socket=installation.paths.socket,
        root=installation.paths.root,
        cri=installation.cri,
    )
    text = _read(path) or ""
    try:
        return apply(text, edits(text, wanted))
    except CannotEdit as problem:
        raise Failure(f"{path}: {problem}", hint="see docs/commands.md for the lines to add by hand") from None


def _docker_text(installation: Installation) -> str:
    try:
        return docker_edit.edit(_read(installation.at("/etc/docker/daemon.json")) or "", installation.snapshotter)
    except CannotEdit as problem:
        raise Failure(str(problem)) from None


def containerd_release(binary: str) -> tuple[int, int]:
    """Major and minor version of the containerd that is installed.

    Raises:
        Failure: there is none.
    """
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        hint = "install containerd 1.6 or later, or name the program with --containerd"
        raise Failure(f"containerd was not found ({binary})", hint=hint, code=ExitCode.MISSING_TOOL) from None
    words = [release_of(word) for word in said.split()]
    return next((release for release in words if release != (0, 0)), (0, 0))


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def difference(changes: list[Change]) -> str:
    """The changes as one unified diff."""
    parts: list[str] = []
    for change in changes:
        before = _read(change.path)
        old_name = str(change.path) if before is not None else "/dev/null"
        old, new = (before or "").splitlines(keepends=True), change.text.splitlines(keepends=True)
        parts += difflib.unified_diff(old, new, old_name, str(change.path))
    return "".join(parts)


def put_back_interrupted(installation: Installation, say: Say) -> bool:
    """Undo what a set-up that was killed had written; whether there was one."""
    found = recover(installation.state)
    for record in found:
        say(f"put back {record.path}: an earlier setup was interrupted")
    return bool(found)


def install(
    installation: Installation, changes: list[Change], services: Services | None, prove: Callable[[], None], say: Say
) -> None:
    """Write, check, restart, prove. Whatever goes wrong, an interruption too, everything is put back.

    Raises:
        Failure: it did not work; with the code ROLLED_BACK.
    """
    earlier = installed(installation.state)
    transaction = Transaction(installation.state)
    transaction.adopt(earlier)
    try:
        for change in changes:
            transaction.write(change)
            say(f"wrote {change.path}")
        _check_containerd(installation)
        if services is not None:
            services.start_daemon()
            services.restart_containerd()
            say("fastpull runs, and containerd was restarted with it")
            prove()
    except BaseException as problem:
        say("putting everything back")
        transaction.rollback()
        _restart_as_before(services, bool(earlier), say)
        if isinstance(problem, Failure):
            message = f"nothing was changed: {problem.message}"
            raise Failure(message, hint=problem.hint, code=ExitCode.ROLLED_BACK) from problem
        raise
    transaction.commit()


def _check_containerd(installation: Installation) -> None:
    """Have containerd itself read the new file before it has to live with it."""
    effective_config(installation.at(installation.containerd_config), installation.containerd_binary)


def _restart_as_before(services: Services | None, was_installed: bool, say: Say) -> None:
    if services is None:
        return
    try:
        if not was_installed:
            services.stop_daemon()
        services.restart_containerd()
    except Failure as problem:
        say(f"after the rollback: {problem.message}")


def remove(installation: Installation, services: Services | None, *, force: bool, say: Say) -> list[Record]:
    """Put back every file as it was before the installation, and restart containerd without fastpull.

    Raises:
        Failure: it is not installed, or a file was changed since and `force` is off.
    """
    undone = put_back_interrupted(installation, say)
    records = installed(installation.state)
    if not records and undone:
        _restart_as_before(services, False, say)
        return []
    if not records:
        raise Failure(f"fastpull is not installed (no journal in {installation.state})", code=ExitCode.NOT_FOUND)
    changed = changed_since(records)
    if changed and not force:
        names = ", ".join(map(str, changed))
        hint = "take fastpull out of them by hand, or use --force to put their old versions back"
        raise Failure(f"changed since the installation: {names}", hint=hint, code=ExitCode.NOT_PERMITTED)
    uninstall(installation.state, records)
    for record in records:
        say(f"{'put back' if record.backup else 'removed'} {record.path}")
    if services is not None:
        services.restart_containerd()
        services.stop_daemon()
        say("containerd was restarted without fastpull")
    return records
