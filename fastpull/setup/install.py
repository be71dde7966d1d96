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
from fastpull.setup.files import Change, Transaction, installed, recover
from fastpull.setup.leavings import clear
from fastpull.setup.readers import readers
from fastpull.setup.services import Services
from fastpull.setup.toml_edit import CannotEdit, apply
from fastpull.setup.unit import TMPFILES, UNIT_NAME, Paths, config_text, unit_text

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What is to be installed, and where. File paths are below `root_dir`; what they say is not.

    `unit`: systemd is to run the daemon.
    """

    root_dir: Path
    paths: Paths
    containerd_config: Path
    containerd_binary: str
    snapshotter: str
    cri: Cri
    docker: bool
    unit: bool = True

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
    }
    if installation.unit:
        files[installation.at(f"/etc/systemd/system/{UNIT_NAME}")] = unit_text(installation.paths)
        files[installation.at("/etc/tmpfiles.d/fastpull.conf")] = TMPFILES
    files[installation.at(installation.containerd_config)] = _containerd_text(installation)
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
) -> list[str]:
    """Write, check, start, prove. Whatever goes wrong, an interruption too, everything is put back.

    Returns what is left for the owner to do before it can be proven; then the files stay as written.

    Raises:
        Failure: it did not work; with the code ROLLED_BACK.
    """
    earlier = installed(installation.state)
    fresh = not Path(installation.paths.root).exists()
    transaction = Transaction(installation.state)
    transaction.adopt(earlier)
    try:
        for change in changes:
            transaction.write(change)
            say(f"wrote {change.path}")
        _check_containerd(installation)
        left = [] if services is None else _run(installation, changes, services, prove, say)
    except BaseException as problem:
        say("putting everything back")
        undo = Undo(installation=installation, services=services, was_installed=bool(earlier), fresh=fresh)
        undo.stop(say)
        transaction.rollback()
        undo.restart(say)
        if isinstance(problem, Failure):
            message = f"nothing was changed: {problem.message}"
            raise Failure(message, hint=problem.hint, code=ExitCode.ROLLED_BACK) from problem
        raise
    transaction.commit()
    return left


def _check_containerd(installation: Installation) -> None:
    """Have containerd itself read the new file before it has to live with it."""
    effective_config(installation.at(installation.containerd_config), installation.containerd_binary)


def _run(
    installation: Installation, changes: list[Change], services: Services, prove: Callable[[], None], say: Say
) -> list[str]:
    containerd_config = installation.at(installation.containerd_config).resolve()
    containerd_changed = any(change.path.resolve() == containerd_config for change in changes)
    done, left = services.bring_up(files_changed=bool(changes), containerd_changed=containerd_changed)
    for line in done:
        say(line)
    if not left:
        prove()
    return left


def prove_again(installation: Installation, services: Services, prove: Callable[[], None], say: Say) -> list[str]:
    """For an installation whose files are all as they should be: have it run and prove it. As `install`, but what
    fails stays in place.
    """
    try:
        return _run(installation, [], services, prove, say)
    except Failure as problem:
        hint = f"{problem.hint}; fastpull setup --uninstall takes it all back".removeprefix("; ")
        raise Failure(problem.message, hint=hint, code=ExitCode(problem.exit_code)) from problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """How what runs is put back. `fresh`: the daemon's data did not exist before, so nobody's is in it."""

    installation: Installation
    services: Services | None
    was_installed: bool
    fresh: bool

    def stop(self, say: Say) -> None:
        """Before the files are put back: systemd finds a unit by its file."""
        if self.services is not None and not self.was_installed:
            _attempt(self.services.daemon.stop, say)

    def restart(self, say: Say) -> None:
        """After the files were put back. An earlier installation runs on with its own."""
        if self.services is None:
            return
        _attempt(self.services.daemon.forget, say)
        if self.was_installed:
            _attempt(self.services.daemon.start, say)
        _attempt(self.services.restart_containerd, say)
        if not self.was_installed:
            _attempt(self._clear, say)

    def _clear(self) -> None:
        """Nothing was pulled in these seconds but the proof; where somebody was quicker than that, all stays."""
        assert self.services is not None
        root, run_dir = Path(self.installation.paths.root), Path(self.installation.paths.run_dir)
        if self.services.daemon.foreign() is None and not readers(root, run_dir):
            clear(root, run_dir, data=self.fresh)


def _attempt(step: Callable[[], object], say: Say) -> None:
    try:
        step()
    except (Failure, OSError) as problem:
        say(f"after the rollback: {problem}")
