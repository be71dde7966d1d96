"""The rules of the metadata store, table by table."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerformat.digest import Digest
from snapshotter.database import VERSION, Database, DatabaseUnusable, connect
from snapshotter.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, SnapshotError
from snapshotter.filters import parse_filters
from snapshotter.model import Kind, Member, SnapshotKey, Usage
from snapshotter.store import Transaction, masked_labels

K = SnapshotKey
LAYER = Digest("sha256:" + "a" * 64)


@pytest.fixture
def tx(tmp_path: Path) -> Iterator[Transaction]:
    connection = connect(tmp_path / "metadata.db")
    yield Transaction(connection)
    connection.close()


def committed(tx: Transaction, name: str, parent: str | None = None) -> None:
    tx.create(Kind.ACTIVE, K(f"key of {name}"), None if parent is None else K(parent), {})
    tx.commit(K(f"key of {name}"), K(name), None, {}, Usage())


def test_keys_and_names_are_one_namespace(tx: Transaction) -> None:
    committed(tx, "base")
    tx.create(Kind.VIEW, K("view"), K("base"), {})
    for taken in ("base", "view"):
        for kind in (Kind.ACTIVE, Kind.VIEW):
            with pytest.raises(AlreadyExists, match=taken):
                tx.create(kind, K(taken), None, {})
    tx.create(Kind.ACTIVE, K("active"), None, {})
    with pytest.raises(AlreadyExists, match="base"):
        tx.commit(K("active"), K("base"), None, {}, Usage())
    with pytest.raises(AlreadyExists):
        tx.commit(K("active"), K("active"), None, {}, Usage())


@pytest.mark.parametrize(
    ("parent", "error"), [("nobody", NotFound), ("active", InvalidArgument), ("view", InvalidArgument)]
)
def test_only_committed_snapshots_are_parents(tx: Transaction, parent: str, error: type[SnapshotError]) -> None:
    tx.create(Kind.ACTIVE, K("active"), None, {})
    tx.create(Kind.VIEW, K("view"), None, {})
    with pytest.raises(error, match=parent):
        tx.create(Kind.ACTIVE, K("new"), K(parent), {})


@pytest.mark.parametrize(
    ("key", "parent", "error"),
    [
        ("on base", "other", InvalidArgument),
        ("on base", "base", None),
        ("on base", None, None),
        ("free", "base", None),
        ("free", None, None),
        ("free", "nobody", NotFound),
        ("free", "on base", FailedPrecondition),
        ("view", None, FailedPrecondition),
        ("base", None, FailedPrecondition),
        ("nobody", None, NotFound),
    ],
)
def test_commit_may_give_a_parent_but_not_change_it(
    tx: Transaction, key: str, parent: str | None, error: type[SnapshotError] | None
) -> None:
    committed(tx, "base")
    committed(tx, "other")
    tx.create(Kind.ACTIVE, K("on base"), K("base"), {})
    tx.create(Kind.ACTIVE, K("free"), None, {})
    tx.create(Kind.VIEW, K("view"), None, {})
    given = None if parent is None else K(parent)
    if error is not None:
        with pytest.raises(error):
            tx.commit(K(key), K("new"), given, {}, Usage())
        return
    tx.commit(K(key), K("new"), given, {}, Usage(size=1, inodes=2))
    record = tx.record(K("new"))
    assert record.info.parent == ("base" if key == "on base" else parent)
    assert (record.info.kind, record.usage) == (Kind.COMMITTED, Usage(size=1, inodes=2))


def test_commit_replaces_labels_and_times(tx: Transaction) -> None:
    tx.create(Kind.ACTIVE, K("key"), None, {"old": "1"})
    before = tx.record(K("key"))
    assert before.info.created_ns == before.info.updated_ns
    tx.commit(K("key"), K("name"), None, {"new": "2", "empty": ""}, Usage())
    after = tx.record(K("name"))
    assert after.info.labels == {"new": "2"}
    assert after.id == before.id
    assert after.info.created_ns == after.info.updated_ns > before.info.created_ns
    with pytest.raises(NotFound):
        tx.record(K("key"))


def test_a_parent_stays_while_it_has_children(tx: Transaction) -> None:
    committed(tx, "base")
    committed(tx, "top", "base")
    with pytest.raises(FailedPrecondition, match="remove"):
        tx.remove(K("base"))
    tx.remove(K("top"))
    tx.remove(K("base"))
    with pytest.raises(NotFound):
        tx.remove(K("base"))


def test_ids_are_never_used_twice(tx: Transaction) -> None:
    first = tx.create(Kind.ACTIVE, K("key"), None, {}).id
    tx.remove(K("key"))
    assert tx.create(Kind.ACTIVE, K("key"), None, {}).id > first


def test_chain_and_layers(tx: Transaction) -> None:
    committed(tx, "base")
    tx.create_layer(K("layer"), K("base"), {"containerd.io/snapshot.ref": "ref"}, LAYER)
    chain = tx.create(Kind.ACTIVE, K("top"), K("layer"), {})
    ids = {name: tx.record(K(name)).id for name in ("base", "layer", "top")}
    assert chain.parents == (Member(id=ids["layer"], layer=LAYER), Member(id=ids["base"]))
    assert tx.chain(K("top")) == chain
    assert chain.layers == {LAYER} == tx.layers()
    assert tx.uses(LAYER)
    assert tx.layers_of("ref", K("base")) == [("layer", LAYER)]
    assert tx.layers_of("ref", None) == [] == tx.layers_of("other", K("base"))
    with pytest.raises(FailedPrecondition):
        tx.chain(K("layer"))
    tx.remove(K("top"))
    tx.remove(K("layer"))
    assert not tx.uses(LAYER)


MASKS: list[tuple[list[str], dict[str, str]]] = [
    ([], {"l1": "new", "l3": "3"}),
    (["labels"], {"l1": "new", "l3": "3"}),
    (["labels.l1"], {"l1": "new", "l2": "2"}),
    (["labels.l2"], {"l1": "1"}),
    (["labels.l1", "labels.l2", "labels.l3"], {"l1": "new", "l3": "3"}),
    (["labels.none"], {"l1": "1", "l2": "2"}),
]


@pytest.mark.parametrize(("mask", "expected"), MASKS)
def test_update_masks(tx: Transaction, mask: list[str], expected: dict[str, str]) -> None:
    tx.create(Kind.ACTIVE, K("key"), None, {"l1": "1", "l2": "2"})
    before = tx.record(K("key")).info
    returned = tx.update(K("key"), {"l1": "new", "l3": "3"}, mask)
    stored = tx.record(K("key")).info
    assert stored == returned
    assert stored.labels == expected
    assert stored.created_ns == before.created_ns
    assert stored.updated_ns > before.updated_ns


@pytest.mark.parametrize("field", ["parent", "name", "kind", "created", "labels_", ""])
def test_other_fields_are_fixed(field: str) -> None:
    with pytest.raises(InvalidArgument, match=repr(field)):
        masked_labels({}, {}, ["labels.x", field])


def test_labels_of_4096_bytes_and_no_more(tx: Transaction) -> None:
    tx.create(Kind.ACTIVE, K("fits"), None, {"kéy": "x" * 4092})
    with pytest.raises(InvalidArgument, match="4097"):
        tx.create(Kind.ACTIVE, K("new"), None, {"kéy": "x" * 4093})
    with pytest.raises(InvalidArgument):
        tx.update(K("fits"), {"k": "x" * 4096}, [])
    with pytest.raises(InvalidArgument):
        tx.commit(K("fits"), K("name"), None, {"k": "x" * 4096}, Usage())


def test_no_snapshot_is_without_a_name(tx: Transaction) -> None:
    with pytest.raises(InvalidArgument):
        tx.create(Kind.ACTIVE, K(""), None, {})


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], ["a", "b", "c"]),
        (["labels.l==1"], ["a", "b"]),
        (['labels."l"==1,name==b'], ["b"]),
        (["name==a", "name==c"], ["a", "c"]),
        (["name==a", "kind==committed"], ["a", "c"]),
        (["labels.l==3", "labels.m==x"], ["b"]),
        (['labels.l==1,labels.m!="x"'], ["a"]),
        (['labels.l==""'], []),
        (["parent==c"], ["b"]),
    ],
)
def test_walk_narrows_without_losing(tx: Transaction, filters: list[str], expected: list[str]) -> None:
    committed(tx, "c")
    tx.create(Kind.ACTIVE, K("a"), None, {"l": "1"})
    tx.create(Kind.ACTIVE, K("b"), K("c"), {"l": "1", "m": "x"})
    assert [info.name for info in tx.walk(parse_filters(filters))] == expected


def test_the_schema_itself_refuses_what_must_not_be(tmp_path: Path) -> None:
    connection = connect(tmp_path / "metadata.db")
    tx = Transaction(connection)
    committed(tx, "base")
    committed(tx, "top", "base")
    for statement in (
        "DELETE FROM snapshots WHERE name = 'base'",
        "UPDATE snapshots SET kind = 4",
        "UPDATE snapshots SET name = 'top'",
        "UPDATE snapshots SET parent = 999",
        "UPDATE snapshots SET layer = 'x', kind = 2",
        "INSERT INTO labels VALUES (1, 'key', '')",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(statement)
    connection.close()


async def test_a_write_that_raises_changes_nothing(tmp_path: Path) -> None:
    def work(tx: Transaction) -> None:
        tx.create(Kind.ACTIVE, K("key"), None, {})
        raise NotFound("on purpose")

    async with Database(tmp_path / "metadata.db") as database:
        with pytest.raises(NotFound):
            await database.write(work)
        assert await database.read(lambda tx: tx.ids()) == frozenset()


def test_a_database_of_a_newer_release_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    connection = connect(path)
    connection.execute(f"PRAGMA user_version={VERSION + 1}")
    connection.close()
    with pytest.raises(DatabaseUnusable, match=r"metadata\.db: written by a newer release"):
        connect(path)


def test_what_is_no_database_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "metadata.db").write_bytes(b"precious" * 1000)
    with pytest.raises(DatabaseUnusable, match=r"metadata\.db: file is not a database"):
        connect(tmp_path / "metadata.db")
    assert (tmp_path / "metadata.db").read_bytes() == b"precious" * 1000
