"""Taking an installation away: its files, then what runs and is mounted; never what somebody still reads from."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fastpull.amounts import counted, in_bytes
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.service_hints import restart_containerd
from fastpull.setup.background import end, listener
from fastpull.setup.files import changed_since, installed, interrupted, uninstall
from fastpull.setup.install import Installation, Say, put_back_interrupted
from fastpull.setup.leavings import DATA, clear
from fastpull.setup.readers import Reader, readers, through_fuse
from fastpull.setup.services import Services
from fetcher import kernel
from fetcher.planes.teardown import keeper_pid

# snapshotter.model.Kind: active snapshots. Nothing is written to a view, and nerdctl's own, of each new container, goes
# only when containerd collects garbage.
_WRITTEN_TO = "kind = 2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Uninstallation:
    """What is taken away. `log` is of a daemon that setup started; `services` is None where only files are written."""

    installation: Installation
    services: Services | None
    log: Path
    force: bool
    purge: bool

    @property
    def root(self) -> Path:
        return Path(self.installation.paths.root)

    @property
    def run_dir(self) -> Path:
        return Path(self.installation.paths.run_dir)


def remove(wanted: Uninstallation, say: Say) -> ExitCode:
    """Put back every file as it was before the installation, and end what it started.

    Raises:
        Failure: it is not installed, somebody still needs it, or a file was changed since and `force` is off.
    """
    state, services = wanted.installation.state, wanted.services
    _check(wanted)
    undone = put_back_interrupted(wanted.installation, say)
    records = installed(state)
    stopped = services is not None and _stop_daemon(wanted, services, say)
    uninstall(state, records)
    for record in records:
        say(f"{'put back' if record.backup else 'removed'} {record.path}")
    if services is None:
        return ExitCode.OK
    services.daemon.forget()
    restarted = _restart_containerd(services, say) if records or undone else True
    # Only now: a container may have been started since it was looked whether there is one.
    using = [one for one in readers(wanted.root, wanted.run_dir) if one.unfinished]
    if using:
        _tell_kept(wanted, using, say)
    elif stopped:
        _take_down(wanted, say)
    return ExitCode.OK if restarted else ExitCode.UNPROVEN


def preview(wanted: Uninstallation, say: Say) -> None:
    """Say what `remove` would do; raises what it would."""
    _check(wanted)
    for record in installed(wanted.installation.state):
        say(f"would {'put back' if record.backup else 'remove'} {record.path}")
    if wanted.services is not None:
        say(f"would stop the daemon and {'leave it to you to ' * (wanted.services.restart is None)}restart containerd")
        say(f"would {'remove' if wanted.purge else 'keep'} {wanted.root}")


# Whether it may be done


def _check(wanted: Uninstallation) -> None:
    records = installed(wanted.installation.state)
    if not records and not interrupted(wanted.installation.state) and not _left_over(wanted):
        message = f"fastpull is not installed (no journal in {wanted.installation.state})"
        raise Failure(message, code=ExitCode.NOT_FOUND)
    changed = changed_since(records)
    if changed and not wanted.force:
        names = ", ".join(map(str, changed))
        hint = "take fastpull out of them by hand, or use --force to put their old versions back"
        raise Failure(f"changed since the installation: {names}", hint=hint, code=ExitCode.NOT_PERMITTED)
    if wanted.services is not None:
        _check_daemon(wanted, wanted.services)
        _check_readers(wanted)


def _left_over(wanted: Uninstallation) -> bool:
    """Whether an uninstallation that had to leave something can go on now."""
    if wanted.services is None:
        return False
    tops = (wanted.root / "layers", wanted.run_dir / "fuse")
    mounted = any(kernel.mounts_below(top) for top in tops if top.parent.exists())
    data = wanted.purge and any((wanted.root / name).exists() for name in DATA)
    return mounted or keeper_pid(wanted.run_dir) is not None or data


def _check_daemon(wanted: Uninstallation, services: Services) -> None:
    other = services.daemon.foreign()
    if other is not None and not wanted.force:
        message = f"fastpull-snapshotter (process {other}) runs and was not started by setup"
        hint = "stop it where it is started, then run this again; --force ends it"
        raise Failure(message, hint=hint, code=ExitCode.NOT_PERMITTED)


def _check_readers(wanted: Uninstallation) -> None:
    every = readers(wanted.root, wanted.run_dir)
    unfinished = [one for one in every if one.unfinished]
    if unfinished and not wanted.force:
        which = "through fastpull's FUSE mount" if through_fuse(wanted.run_dir) else "that are not complete"
        message = f"{_named(unfinished)} still read{'s' * (len(unfinished) == 1)} layers {which}"
        hint = "remove them (fastpull clean --containers --force), or wait for fastpull status; with --force they hang"
        raise Failure(message, hint=hint, code=ExitCode.NOT_PERMITTED)
    if every and wanted.purge:
        message = f"--purge would take the files from under {_named(every)}"
        raise Failure(message, hint="remove them: fastpull clean --containers --force", code=ExitCode.NOT_PERMITTED)
    kept = _snapshots(wanted.root, _WRITTEN_TO)
    if kept and wanted.purge and not wanted.force:
        message = f"--purge would delete what {counted(kept, 'container')} wrote"
        hint = "fastpull clean --containers removes them; --force deletes it all the same"
        raise Failure(message, hint=hint, code=ExitCode.NOT_PERMITTED)


def _named(found: Sequence[Reader]) -> str:
    return f"{counted(len(found), 'container')} ({', '.join(map(str, found))})"


def _snapshots(root: Path, which: str = "1") -> int:
    """How many snapshots the daemon keeps for containerd, read past it; 0 where there is no database."""
    try:
        with closing(sqlite3.connect(f"file:{root / 'metadata.db'}?mode=ro", uri=True)) as database:
            return int(database.execute(f"SELECT count(*) FROM snapshots WHERE {which}").fetchone()[0])
    except sqlite3.Error:
        return 0


# Doing it


def _stop_daemon(wanted: Uninstallation, services: Services, say: Say) -> bool:
    """End the daemon; False if it is there again, by whoever starts it."""
    services.daemon.stop()
    other = listener(services.daemon.socket)
    if other is not None:
        end(other)
    again = listener(services.daemon.socket)
    if again is None:
        say("the daemon is stopped")
        return True
    say(f"fastpull-snapshotter was started again (process {again}): stop it there, then run this once more")
    return False


def _restart_containerd(services: Services, say: Say) -> bool:
    restarted = services.restart_containerd()
    say("containerd was restarted without fastpull" if restarted else f"left to you: {restart_containerd()}")
    return restarted


def _take_down(wanted: Uninstallation, say: Say) -> None:
    """Unmount, end the keeper, remove what the daemon made. Nobody reads from it: that was looked at."""
    try:
        unmounted = clear(wanted.root, wanted.run_dir, data=wanted.purge)
    except OSError as problem:
        hint = "something works in there: find it (fuser -vm PATH), end it, then run this again"
        raise Failure(f"cannot unmount: {problem}", hint=hint, code=ExitCode.NOT_PERMITTED) from None
    say(f"unmounted {counted(unmounted, 'layer')}; nothing of fastpull runs any more")
    wanted.log.unlink(missing_ok=True)
    _tell_rest(wanted, say)


def _tell_rest(wanted: Uninstallation, say: Say) -> None:
    if not any((wanted.root / name).exists() for name in DATA):
        return
    size = sum(path.lstat().st_blocks * 512 for path in wanted.root.rglob("*"))
    say(f"kept {wanted.root} ({in_bytes(size)}: layers, snapshots, profiles); --uninstall --purge removes it")
    count = _snapshots(wanted.root)
    if count:
        say(f"containerd still has {counted(count, 'snapshot')} there: those images and containers cannot start now.")
        say("Remove them (nerdctl rm, nerdctl rmi) and pull the images again, or install fastpull again.")


def _tell_kept(wanted: Uninstallation, using: Sequence[Reader], say: Say) -> None:
    say(f"left: the keeper (process {keeper_pid(wanted.run_dir)}) and the mounts, for {_named(using)}")
    say("Their reads of what has not arrived wait for ever. Remove them, then run fastpull setup --uninstall again.")
