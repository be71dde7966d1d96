"""The metadata database: its schema, and the one thread that uses it.

sqlite in WAL mode with `synchronous=FULL`: a change that was reported to containerd is on the disk. All work on it, and
the directory operations that belong to a transaction, run on one dedicated thread, so transactions never wait for each
other inside sqlite and never block the event loop.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from snapshotter.store import Transaction

T = TypeVar("T")

VERSION: Final = 1

# Invariants, beyond what the constraints say:
# * `name` is the key of a view or an active snapshot and the name of a committed one: one namespace for both.
# * A parent is always committed (kind 3), and a committed snapshot never changes its parent, so there are no cycles.
# * `id` is never used twice (AUTOINCREMENT): a directory that a crash left can not be taken for a later snapshot's.
# * A row with `layer` NULL has a directory `snapshots/<id>` from before its transaction ends until after it is deleted;
#   a directory without a row is garbage. A row with a layer has no directory: its files are the layer's.
# * No label has an empty value: setting it to empty removes it, as in containerd.
# * Times are nanoseconds since the epoch; a new snapshot has updated_ns = created_ns.
SCHEMA: Final = """
CREATE TABLE snapshots (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  name       TEXT    NOT NULL UNIQUE CHECK (name <> ''),
  parent     INTEGER REFERENCES snapshots (id) ON DELETE RESTRICT,
  kind       INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),
  created_ns INTEGER NOT NULL,
  updated_ns INTEGER NOT NULL,
  size       INTEGER NOT NULL DEFAULT 0,
  inodes     INTEGER NOT NULL DEFAULT 0,
  layer      TEXT    CHECK (layer IS NULL OR kind = 3)
) STRICT;
CREATE INDEX snapshots_parent ON snapshots (parent);
CREATE INDEX snapshots_layer ON snapshots (layer) WHERE layer IS NOT NULL;
CREATE TABLE labels (
  snapshot INTEGER NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
  key      TEXT    NOT NULL,
  value    TEXT    NOT NULL CHECK (value <> ''),
  PRIMARY KEY (snapshot, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX labels_value ON labels (key, value);
"""


class DatabaseUnusable(Exception):
    """The file is no database of ours, damaged, or of a newer release; one line that names it."""


class Database:
    """Async context manager. `read` and `write` run a function of a `Transaction` on the database's thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metadata")
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        self._connection = await self._submit(lambda: connect(self._path))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            await self._submit(self._connection.close)
        self._thread.shutdown(wait=False)

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` on one consistent state of the database."""
        return await self._submit(lambda: self._transact("BEGIN", work))

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` and commit; if it raises, nothing was changed. Ends even if the caller is cancelled."""
        return await self._submit(lambda: self._transact("BEGIN IMMEDIATE", work))

    async def _submit(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _transact(self, begin: str, work: Callable[[Transaction], T]) -> T:
        connection = self._connection
        assert connection is not None, "the database is used before it is entered"
        connection.execute(begin)
        try:
            result = work(Transaction(connection))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return result


def connect(path: Path) -> sqlite3.Connection:
    """Open or create the database. Raises DatabaseUnusable."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        _prepare(connection)
    except (sqlite3.DatabaseError, DatabaseUnusable) as exc:
        connection.close()
        raise DatabaseUnusable(f"{path}: {exc}") from exc
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}")
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise DatabaseUnusable(f"written by a newer release (schema {version}, this one knows {VERSION})")
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
