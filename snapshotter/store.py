"""What the metadata database can do, one transaction at a time. Synchronous; `database.Database` says on which thread.

The rules (who may be whose parent, what a commit may change, which error comes first) are those of containerd's own
snapshot storage, because clients read the errors.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from layerformat.digest import Digest
from snapshotter.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from snapshotter.filters import Filter, Operator, Selector
from snapshotter.model import MAX_LABEL_BYTES, SNAPSHOT_REF, Chain, Info, Kind, Member, SnapshotKey, Usage

LABEL_FIELD: Final = "labels."


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row."""

    id: int
    info: Info
    usage: Usage
    """As it was at commit; of a layer and of an active snapshot: nothing."""
    layer: Digest | None


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises InvalidArgument for a label that containerd would not take either."""
    for key, value in labels.items():
        size = len(key.encode()) + len(value.encode())
        if size > MAX_LABEL_BYTES:
            raise InvalidArgument(f"label {key[:64]!r}: key and value are {size} bytes, more than {MAX_LABEL_BYTES}")


class Transaction:
    """Valid inside `Database.read` or `Database.write` only."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    # What is there

    def record(self, name: SnapshotKey) -> Record:
        """Raises NotFound."""
        found = self._find(name)
        if found is None:
            raise NotFound(f"snapshot {name}: not found")
        return found

    def chain(self, key: SnapshotKey) -> Chain:
        """What has to be mounted for an active snapshot or a view. Raises NotFound, FailedPrecondition."""
        record = self.record(key)
        if record.info.kind is Kind.COMMITTED:
            raise FailedPrecondition(f"snapshot {key} is committed, only an active snapshot or a view has mounts")
        parents = self.members(record.info.parent) if record.info.parent else ()
        return Chain(id=record.id, kind=record.info.kind, parents=parents, labels=record.info.labels)

    def members(self, name: SnapshotKey) -> tuple[Member, ...]:
        """The snapshot and everything below it, nearest first. Raises NotFound."""
        rows = self._sql.execute(
            """WITH RECURSIVE chain (id, parent, layer, depth) AS (
                 SELECT id, parent, layer, 0 FROM snapshots WHERE name = ?
                 UNION ALL
                 SELECT s.id, s.parent, s.layer, depth + 1 FROM snapshots s JOIN chain ON s.id = chain.parent)
               SELECT id, layer FROM chain ORDER BY depth""",
            (name,),
        ).fetchall()
        if not rows:
            raise NotFound(f"snapshot {name}: not found")
        return tuple(Member(id=row["id"], layer=row["layer"]) for row in rows)

    def parent_chain(self, parent: SnapshotKey | None) -> tuple[Member, ...]:
        """What a new snapshot on `parent` would lie on. Raises NotFound, InvalidArgument (it is not committed)."""
        if parent is None:
            return ()
        self._parent_id(parent)
        return self.members(parent)

    def walk(self, wanted: Filter) -> list[Info]:
        """All that match, in the order of their names."""
        records = self._records(*_narrow(wanted))
        return [record.info for record in records if wanted.matches(lambda path, i=record.info: info_field(i, path))]  # type: ignore[misc]

    def ids(self) -> frozenset[int]:
        return frozenset(row["id"] for row in self._sql.execute("SELECT id FROM snapshots"))

    def layers(self) -> frozenset[Digest]:
        """The layers that at least one snapshot uses."""
        rows = self._sql.execute("SELECT DISTINCT layer FROM snapshots WHERE layer IS NOT NULL")
        return frozenset(row["layer"] for row in rows)

    def uses(self, layer: Digest) -> bool:
        return self._sql.execute("SELECT 1 FROM snapshots WHERE layer = ? LIMIT 1", (layer,)).fetchone() is not None

    def layers_of(self, target: str, parent: SnapshotKey | None) -> list[tuple[SnapshotKey, Digest]]:
        """The layer snapshots that answer for chain id `target` on `parent`, in containerd's order."""
        rows = self._sql.execute(
            """SELECT s.name, s.layer FROM snapshots s JOIN labels l ON l.snapshot = s.id
               LEFT JOIN snapshots p ON p.id = s.parent
               WHERE l.key = ? AND l.value = ? AND p.name IS ? AND s.layer IS NOT NULL ORDER BY s.name""",
            (SNAPSHOT_REF, target, parent),
        )
        return [(row["name"], row["layer"]) for row in rows]

    # What changes it

    def create(self, kind: Kind, key: SnapshotKey, parent: SnapshotKey | None, labels: Mapping[str, str]) -> Chain:
        """A new active snapshot or view. Raises NotFound, InvalidArgument (both: the parent) and AlreadyExists."""
        parents = self.parent_chain(parent)
        now = time.time_ns()
        new = self._insert(key, parents, kind, now, labels)
        kept = {label: value for label, value in labels.items() if value}
        return Chain(id=new, kind=kind, parents=parents, labels=kept)

    def create_layer(
        self, name: SnapshotKey, parent: SnapshotKey | None, labels: Mapping[str, str], layer: Digest
    ) -> None:
        """A committed snapshot whose files are those of `layer`. Raises as `create` does."""
        self._insert(name, self.parent_chain(parent), Kind.COMMITTED, time.time_ns(), labels, layer)

    def commit(
        self, key: SnapshotKey, name: SnapshotKey, parent: SnapshotKey | None, labels: Mapping[str, str], usage: Usage
    ) -> None:
        """Make the active snapshot `key` the committed snapshot `name`.

        Labels are replaced, not inherited. `parent` may give a parent to a snapshot that was prepared without one.
        Raises AlreadyExists (`name`), NotFound (`key`, `parent`), FailedPrecondition (`key` is not active, `parent` is
        not committed), InvalidArgument (`parent` is another than the snapshot's own).
        """
        check_labels(labels)
        self._check_free(name)
        record = self.record(key)
        if record.info.kind is not Kind.ACTIVE:
            raise FailedPrecondition(f"snapshot {key} is not active")
        parent_id = self._commit_parent(record, parent)
        now = time.time_ns()
        self._sql.execute(
            """UPDATE snapshots SET name = ?, kind = ?, parent = ?, created_ns = ?, updated_ns = ?, size = ?, inodes = ?
               WHERE id = ?""",
            (name, Kind.COMMITTED, parent_id, now, now, usage.size, usage.inodes, record.id),
        )
        self._set_labels(record.id, labels)

    def remove(self, name: SnapshotKey) -> Record:
        """Raises NotFound, and FailedPrecondition while another snapshot lies on it."""
        record = self.record(name)
        child = self._sql.execute("SELECT name FROM snapshots WHERE parent = ? LIMIT 1", (record.id,)).fetchone()
        if child is not None:
            raise FailedPrecondition(f"cannot remove snapshot {name}: it has children, {child['name']} is one")
        self._sql.execute("DELETE FROM snapshots WHERE id = ?", (record.id,))
        return record

    def update(self, name: SnapshotKey, labels: Mapping[str, str], mask: Sequence[str]) -> Info:
        """Change labels: all of them without a mask, else those it names. Raises NotFound, InvalidArgument."""
        record = self.record(name)
        changed = masked_labels(record.info.labels, labels, mask)
        check_labels(changed)
        now = time.time_ns()
        self._sql.execute("UPDATE snapshots SET updated_ns = ? WHERE id = ?", (now, record.id))
        self._set_labels(record.id, changed)
        return replace(record.info, updated_ns=now, labels={key: value for key, value in changed.items() if value})

    # How

    def _find(self, name: SnapshotKey) -> Record | None:
        return next(self._records("s.name = ?", (name,)), None)

    def _records(self, where: str, values: Sequence[str]) -> Iterator[Record]:
        rows = self._sql.execute(
            f"""SELECT s.*, p.name AS parent_name FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent
                WHERE {where} ORDER BY s.name""",
            values,
        ).fetchall()
        for row in rows:
            yield _record(row, self._labels(row["id"]))

    def _labels(self, snapshot: int) -> dict[str, str]:
        rows = self._sql.execute("SELECT key, value FROM labels WHERE snapshot = ? ORDER BY key", (snapshot,))
        return {row["key"]: row["value"] for row in rows}

    def _set_labels(self, snapshot: int, labels: Mapping[str, str]) -> None:
        self._sql.execute("DELETE FROM labels WHERE snapshot = ?", (snapshot,))
        self._sql.executemany(
            "INSERT INTO labels (snapshot, key, value) VALUES (?, ?, ?)",
            [(snapshot, key, value) for key, value in labels.items() if value],
        )

    def _insert(
        self,
        name: SnapshotKey,
        parents: Sequence[Member],
        kind: Kind,
        now: int,
        labels: Mapping[str, str],
        layer: Digest | None = None,
    ) -> int:
        check_labels(labels)
        self._check_free(name)
        cursor = self._sql.execute(
            "INSERT INTO snapshots (name, parent, kind, created_ns, updated_ns, layer) VALUES (?, ?, ?, ?, ?, ?)",
            (name, parents[0].id if parents else None, kind, now, now, layer),
        )
        assert cursor.lastrowid is not None
        self._set_labels(cursor.lastrowid, labels)
        return cursor.lastrowid

    def _check_free(self, name: SnapshotKey) -> None:
        if not name:
            raise InvalidArgument("a snapshot needs a key or a name that is not empty")
        if self._sql.execute("SELECT 1 FROM snapshots WHERE name = ?", (name,)).fetchone() is not None:
            raise AlreadyExists(f"snapshot {name}: already exists")

    def _parent_id(self, parent: SnapshotKey) -> int:
        row = self._sql.execute("SELECT id, kind FROM snapshots WHERE name = ?", (parent,)).fetchone()
        if row is None:
            raise NotFound(f"parent snapshot {parent}: not found")
        if row["kind"] != Kind.COMMITTED:
            raise InvalidArgument(f"parent snapshot {parent} is not committed")
        return int(row["id"])

    def _commit_parent(self, record: Record, parent: SnapshotKey | None) -> int | None:
        own = record.info.parent
        if own is not None and parent is not None and parent != own:
            raise InvalidArgument(f"snapshot {record.info.name} lies on {own}, a commit can not move it to {parent}")
        final = own or parent
        try:
            return self._parent_id(final) if final is not None else None
        except InvalidArgument as exc:
            raise FailedPrecondition(str(exc)) from None


def masked_labels(old: Mapping[str, str], new: Mapping[str, str], mask: Sequence[str]) -> dict[str, str]:
    """The labels after an update; an empty value stands for a removed label. Raises InvalidArgument for others."""
    if not mask:
        return dict(new)
    result = dict(old)
    for path in mask:
        if path.startswith(LABEL_FIELD):
            key = path.removeprefix(LABEL_FIELD)
            result[key] = new.get(key, "")
        elif path == "labels":
            result = dict(new)
        else:
            raise InvalidArgument(f"field {path!r} of a snapshot can not be updated")
    return result


def info_field(info: Info, path: Sequence[str]) -> str | None:
    """The value a filter's field path names."""
    match path:
        case ["kind", *_]:
            return info.kind.name.lower()
        case ["name", *_]:
            return info.name
        case ["parent", *_]:
            return info.parent or ""
        case ["labels", *rest]:
            return info.labels.get(".".join(rest))
        case _:
            return None


def _record(row: sqlite3.Row, labels: Mapping[str, str]) -> Record:
    info = Info(
        name=SnapshotKey(row["name"]),
        parent=row["parent_name"],
        kind=Kind(row["kind"]),
        created_ns=row["created_ns"],
        updated_ns=row["updated_ns"],
        labels=labels,
    )
    usage = Usage(size=row["size"], inodes=row["inodes"])
    return Record(id=row["id"], info=info, usage=usage, layer=row["layer"])


def _narrow(wanted: Filter) -> tuple[str, tuple[str, ...]]:
    """A WHERE that keeps everything the filter could match, by an index if it can: containerd asks once per layer."""
    conditions: list[str] = []
    values: list[str] = []
    for alternative in wanted.alternatives:
        indexed = next((found for found in map(_indexed, alternative) if found is not None), None)
        if indexed is None:
            return "TRUE", ()
        conditions.append(indexed[0])
        values += indexed[1]
    return " OR ".join(conditions), tuple(values)


def _indexed(selector: Selector) -> tuple[str, tuple[str, ...]] | None:
    if selector.operator is not Operator.EQUAL or not selector.value:
        return None
    match selector.path:
        case ("name",):
            return "s.name = ?", (selector.value,)
        case ("labels", *rest):
            return "s.id IN (SELECT snapshot FROM labels WHERE key = ? AND value = ?)", (".".join(rest), selector.value)
        case _:
            return None
