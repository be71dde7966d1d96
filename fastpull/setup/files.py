"""A transaction over files: what is written can be taken back, at once or years later.

Every file that is about to change is copied aside and noted in a journal first. While the transaction is open
`rollback` puts everything back; once committed, the journal tells `uninstall` the same. A set-up that was killed leaves
its transaction open in the journal: the next one begins with `recover`.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A file and what it is to hold; `mode` is for a file that is new."""

    path: Path
    text: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One file that was changed. `backup` is None where there was none before; `sha256` is of what was written.

    `made` are the directories that had to be made for it, the deepest first.
    """

    path: str
    backup: str | None
    mode: int
    sha256: str
    made: Sequence[str] = ()


class Transaction:
    """Changes below one state directory (`<state>/journal.json` and `<state>/backup/`)."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._records: list[Record] = []
        self._adopted: tuple[Record, ...] = ()

    def adopt(self, earlier: Sequence[Record]) -> None:
        """Continue an installation that is there: its backups stay the ones that uninstalling puts back."""
        self._adopted = tuple(earlier)

    def write(self, change: Change) -> None:
        """Write a file atomically, its former self kept aside. Directories are made."""
        # A symbolic link stays one: what it points to is changed.
        change = replace(change, path=change.path.resolve())
        record = self._keep(change)
        # Noted before the write: an interruption between the two is rolled back like a finished write.
        self._records.append(record)
        _write_journal(self._state, self._adopted, self._records)
        change.path.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(change.path, change.text.encode(), record.mode)

    def _keep(self, change: Change) -> Record:
        digest = hashlib.sha256(change.text.encode()).hexdigest()
        if not change.path.exists():
            made = [str(above) for above in change.path.parents if not above.exists()]
            return Record(path=str(change.path), backup=None, mode=change.mode, sha256=digest, made=made)
        backup = _free_name(self._state / "backup", change.path.name)
        shutil.copy2(change.path, backup)
        mode = change.path.stat().st_mode & 0o7777
        return Record(path=str(change.path), backup=str(backup), mode=mode, sha256=digest)

    def rollback(self) -> None:
        """Put every file back as it was before."""
        _roll_back(self._state, self._adopted, self._records)
        self._records.clear()

    def commit(self) -> None:
        """Make the changes last; from now on `uninstall` can take them back."""
        _write_journal(self._state, self._merged(), ())

    def _merged(self) -> list[Record]:
        """One record a file: the backup of the first installation, the digest of the last."""
        merged = {record.path: record for record in self._adopted}
        for record in self._records:
            first = merged.get(record.path)
            merged[record.path] = record if first is None else replace(first, sha256=record.sha256)
        return list(merged.values())


def installed(state: Path) -> list[Record]:
    """What the last committed transaction changed; empty where there was none.

    Raises:
        Failure: the journal is damaged.
    """
    return _read_journal(state)[0]


def interrupted(state: Path) -> bool:
    """Whether a set-up was killed and has not been undone yet. Raises Failure for a damaged journal."""
    return bool(_read_journal(state)[1])


def recover(state: Path) -> list[Record]:
    """Put back what a transaction changed that was interrupted for good; tells which files those are.

    Raises:
        Failure: the journal is damaged.
    """
    committed, left_open = _read_journal(state)
    if left_open:
        _roll_back(state, committed, left_open)
    return left_open


def _read_journal(state: Path) -> tuple[list[Record], list[Record]]:
    """What is installed, and what an open transaction has changed beyond it."""
    journal = state / "journal.json"
    try:
        document = json.loads(journal.read_text())
        committed, left_open = ([Record(**row) for row in document.get(name, ())] for name in ("files", "open"))
        return committed, left_open
    except FileNotFoundError:
        return [], []
    except (ValueError, AttributeError, TypeError):
        raise Failure(f"{journal} is damaged", hint="put the files back by hand", code=ExitCode.MALFORMED) from None


def _write_journal(state: Path, committed: Sequence[Record], left_open: Sequence[Record]) -> None:
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    rows = {"files": [asdict(record) for record in committed], "open": [asdict(record) for record in left_open]}
    text = json.dumps({"version": _VERSION, **rows}, indent=2)
    _write_atomically(state / "journal.json", text.encode(), 0o600)


def _roll_back(state: Path, committed: Sequence[Record], left_open: Sequence[Record]) -> None:
    for record in reversed(left_open):
        _restore(record)
    # Only now: an interruption before is followed by the same once more.
    if committed:
        _write_journal(state, committed, ())
    else:
        (state / "journal.json").unlink(missing_ok=True)
    for record in left_open:
        if record.backup is not None:
            Path(record.backup).unlink(missing_ok=True)
    remove_empty([state / "backup", state, state.parent])


def _free_name(directory: Path, name: str) -> Path:
    """Where a file of that name can be kept beside what is kept there."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return next(path for number in itertools.count() if not (path := directory / f"{number}-{name}").exists())


def changed_since(records: Sequence[Record]) -> list[Path]:
    """Files that somebody changed after the installation: putting their old selves back would lose that."""
    return [Path(record.path) for record in records if _digest(Path(record.path)) not in _expected(record)]


def _expected(record: Record) -> tuple[str | None, ...]:
    """What a file may be: as installed, gone, or as it was (an uninstallation was interrupted)."""
    return record.sha256, None, _digest(Path(record.backup)) if record.backup is not None else None


def uninstall(state: Path, records: Sequence[Record]) -> None:
    """Put back what a committed transaction changed, and forget it."""
    for record in reversed(records):
        _restore(record)
    (state / "journal.json").unlink(missing_ok=True)
    shutil.rmtree(state / "backup", ignore_errors=True)
    remove_empty([state, state.parent])


def remove_empty(directories: Iterable[str | Path]) -> None:
    """Remove what is empty of these directories; what holds something, or is gone already, stays as it is."""
    for directory in directories:
        with suppress(OSError):
            Path(directory).rmdir()


def _restore(record: Record) -> None:
    path = Path(record.path)
    if record.backup is None:
        path.unlink(missing_ok=True)
        remove_empty(record.made)
        return
    data = Path(record.backup).read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(path, data, record.mode)


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def _write_atomically(path: Path, data: bytes, mode: int) -> None:
    """All or nothing, also over a crash: the file and its directory are on the disk when this returns."""
    partial = path.with_name(path.name + ".fastpull-new")
    with partial.open("wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
