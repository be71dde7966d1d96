"""The life of snapshots: ordinary ones, layers, both on each other, many at once."""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from fetcher.model import LayerUnavailable
from layerformat.annotations import LayerRef
from layerformat.errors import FormatError
from snapshotter.core import Snapshotter
from snapshotter.database import Database
from snapshotter.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from snapshotter.model import GID_MAPPING, SNAPSHOT_REF, UID_MAPPING, Kind, Layout, Mount, SnapshotKey
from snapshotter.mounts import MountOptions
from snapshotter.provider import LabelResolver
from tests.unit.snapshotter.layer_directories import DirectoryLayers, chain_ids, layer_ref

K = SnapshotKey
A, B, C = layer_ref("a"), layer_ref("b"), layer_ref("c")


def labels(ref: LayerRef, target: str) -> dict[str, str]:
    return {SNAPSHOT_REF: target, **ref.to_annotations()}


async def put_layer(
    core: Snapshotter, ref: LayerRef, target: str, parent: str | None = None, key: str = "extract"
) -> str:
    """A Prepare that is answered with a layer; gives the name containerd would find."""
    with pytest.raises(AlreadyExists, match=target):
        await core.prepare(K(key), None if parent is None else K(parent), labels(ref, target))
    quoted = f'labels."{SNAPSHOT_REF}"=={target},parent=="{parent or ""}"'
    [found] = await core.walk([quoted])
    assert found.kind is Kind.COMMITTED
    return found.name


async def commit_on(core: Snapshotter, name: str, parent: str | None = None) -> None:
    await core.prepare(K(f"key of {name}"), None if parent is None else K(parent), {})
    await core.commit(K(f"key of {name}"), K(name), None, {SNAPSHOT_REF: name})


def lowerdirs(mounts: tuple[Mount, ...]) -> list[str]:
    [mount] = mounts
    [found] = [option for option in mount.options if option.startswith("lowerdir=")]
    return found.removeprefix("lowerdir=").split(":")


def directories(layout: Layout) -> list[str]:
    return sorted(path.name for path in layout.snapshots.iterdir())


# Ordinary snapshots


async def test_an_ordinary_life(core: Snapshotter, layout: Layout) -> None:
    [mount] = await core.prepare(K("key"), None, {"l": "1"})
    assert mount == Mount(type="bind", source=str(layout.upper(1)), options=("rw", "rbind"))
    (layout.upper(1) / "file").write_bytes(b"x" * 10_000)
    await core.commit(K("key"), K("name"), None, {})
    usage = await core.usage(K("name"))
    assert usage.inodes == 2
    assert 10_000 <= usage.size < 40_000
    (layout.upper(1) / "later").write_bytes(b"x" * 10_000)
    assert await core.usage(K("name")) == usage
    mounts = await core.prepare(K("top"), K("name"), {})
    assert lowerdirs(mounts) == [str(layout.upper(1))]
    assert await core.mounts(K("top")) == mounts
    with pytest.raises(FailedPrecondition, match="remove"):
        await core.remove(K("name"))
    await core.remove(K("top"))
    await core.remove(K("name"))
    assert directories(layout) == []
    with pytest.raises(NotFound):
        await core.mounts(K("top"))


async def test_usage_of_an_active_snapshot_is_measured(core: Snapshotter, layout: Layout) -> None:
    await core.prepare(K("key"), None, {})
    before = await core.usage(K("key"))
    (layout.upper(1) / "file").write_bytes(b"x" * 100_000)
    assert (await core.usage(K("key"))).size - before.size >= 100_000


async def test_a_failed_prepare_leaves_nothing(core: Snapshotter, layout: Layout) -> None:
    await core.prepare(K("key"), None, {})
    with pytest.raises(AlreadyExists):
        await core.prepare(K("key"), None, {})
    with pytest.raises(NotFound):
        await core.view(K("other"), K("nobody"), {})
    assert directories(layout) == ["1"]


async def test_cleanup_sweeps_what_has_no_row(core: Snapshotter, layout: Layout) -> None:
    await core.prepare(K("key"), None, {})
    for name in ("new-1234", "77"):
        (layout.snapshots / name / "fs").mkdir(parents=True)
    await core.cleanup()
    assert directories(layout) == ["1"]


@pytest.mark.root
async def test_the_owner_of_the_parent_is_kept(core: Snapshotter, layout: Layout) -> None:
    await core.prepare(K("key"), None, {})
    os.chown(layout.upper(1), 1234, 5678)
    await core.commit(K("key"), K("name"), None, {})
    await core.prepare(K("top"), K("name"), {})
    await core.prepare(K("mapped"), K("name"), {UID_MAPPING: "0:9:1", GID_MAPPING: "0:8:1"})
    owners = [(layout.upper(number).stat().st_uid, layout.upper(number).stat().st_gid) for number in (2, 3)]
    assert owners == [(1234, 5678), (9, 8)]


async def test_a_malformed_mapping_is_refused_before_anything_is_made(core: Snapshotter, layout: Layout) -> None:
    with pytest.raises(InvalidArgument, match="uidmapping"):
        await core.prepare(K("key"), None, {UID_MAPPING: "0:x:1"})
    assert directories(layout) == []


async def test_a_chain_of_128(core: Snapshotter) -> None:
    parent = None
    for number in range(128):
        await commit_on(core, f"n{number}", parent)
        parent = f"n{number}"
    assert len(lowerdirs(await core.prepare(K("top"), K("n127"), {}))) == 128


# Layers


async def test_a_chain_of_layers(core: Snapshotter, provider: DirectoryLayers, layout: Layout) -> None:
    chain = chain_ids([A, B, C])
    name = None
    for ref, target in zip((A, B, C), chain, strict=True):
        name = await put_layer(core, ref, target, name)
        assert name == target
    assert provider.retained == {A.digest, B.digest, C.digest}
    assert provider.mounted == set()
    assert directories(layout) == []
    mounts = await core.prepare(K("container"), K(chain[2]), {})
    expected = [str(await provider.mount(ref.digest)) for ref in (C, B, A)]
    assert lowerdirs(mounts) == expected
    assert provider.mounts_at_once == 3
    info = await core.stat(K(chain[0]))
    assert info.labels == labels(A, chain[0])
    assert (await core.usage(K(chain[0]))).size == 4096


async def test_a_layer_without_snapshot_ref_is_an_ordinary_snapshot(
    core: Snapshotter, provider: DirectoryLayers
) -> None:
    [mount] = await core.prepare(K("key"), None, A.to_annotations())
    assert mount.type == "bind"
    assert provider.admitted == []


async def test_a_view_is_never_answered_with_a_layer(core: Snapshotter, provider: DirectoryLayers) -> None:
    await core.view(K("key"), None, labels(A, A.diff_id))
    assert (await core.stat(K("key"))).kind is Kind.VIEW


@pytest.mark.parametrize("exc", [LayerUnavailable("no origin"), FormatError("index"), OSError(5, "broken disk")])
async def test_what_can_not_be_lazy_is_ordinary(core: Snapshotter, provider: DirectoryLayers, exc: Exception) -> None:
    provider.unavailable[A.digest] = exc
    [mount] = await core.prepare(K("extract"), None, labels(A, A.diff_id))
    assert mount.options == ("rw", "rbind")
    await core.commit(K("extract"), K("ns/1/a"), None, {SNAPSHOT_REF: A.diff_id})
    # Ours on an ordinary parent, and an ordinary one on ours.
    chain = chain_ids([A, B])
    name = await put_layer(core, B, chain[1], "ns/1/a")
    await commit_on(core, "ordinary", name)
    mounts = await core.prepare(K("container"), K("ordinary"), {})
    assert [path.rpartition("/root/")[2].split("/")[0] for path in lowerdirs(mounts)] == [
        "snapshots",
        "layers",
        "snapshots",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"containerd.io/snapshot/fastpull.version": "2"},
        {"containerd.io/snapshot/fastpull.size": "many"},
        {SNAPSHOT_REF: B.diff_id},
    ],
)
async def test_labels_that_do_not_fit_give_an_ordinary_snapshot(
    core: Snapshotter, provider: DirectoryLayers, change: Mapping[str, str]
) -> None:
    [mount] = await core.prepare(K("extract"), None, {**labels(A, A.diff_id), **change})
    assert mount.type == "bind"
    assert provider.admitted == []


async def test_layers_unpacked_in_parallel_are_ordinary(core: Snapshotter, provider: DirectoryLayers) -> None:
    given = {**labels(B, B.diff_id), "containerd.io/snapshot/parent-chain-id": A.diff_id}
    [mount] = await core.prepare(K("extract"), None, given)
    assert mount.type == "bind"


async def test_the_second_time_nothing_is_fetched(core: Snapshotter, provider: DirectoryLayers) -> None:
    assert await put_layer(core, A, A.diff_id) == await put_layer(core, A, A.diff_id, key="again")
    assert provider.admitted == [A.digest]


async def test_another_layer_with_the_same_chain_id_is_not_trusted(core: Snapshotter) -> None:
    await put_layer(core, A, A.diff_id)
    impostor = LayerRef.from_annotations({**A.to_annotations(), "containerd.io/snapshot/fastpull.digest": B.digest})
    assert impostor is not None
    [mount] = await core.prepare(K("extract"), None, labels(impostor, A.diff_id))
    assert mount.type == "bind"


async def test_the_same_chain_on_two_parents(core: Snapshotter) -> None:
    """Two namespaces unpacked the base the ordinary way, each under its own name."""
    chain = chain_ids([A, B])
    for name in ("one/1/base", "two/5/base"):
        await core.prepare(K("key"), None, {})
        await core.commit(K("key"), K(name), None, {SNAPSHOT_REF: chain[0]})
    first = await put_layer(core, B, chain[1], "one/1/base")
    second = await put_layer(core, B, chain[1], "two/5/base")
    assert first == chain[1] != second
    assert (await core.stat(K(second))).parent == "two/5/base"


async def test_a_layer_is_held_until_its_last_snapshot_goes(core: Snapshotter, provider: DirectoryLayers) -> None:
    chain = chain_ids([A, B])
    await commit_on(core, "base")
    first = await put_layer(core, A, A.diff_id)
    # The parent knows no chain id to check against, so the same layer goes on top of it.
    await core.update(K("base"), {}, ["labels"])
    second = await put_layer(core, A, "sha256:" + "1" * 64, "base")
    await core.prepare(K("container"), K(first), {})
    assert provider.mounted == {A.digest}
    await core.remove(K("container"))
    await core.remove(K(first))
    assert provider.mounted == provider.retained == {A.digest}
    await core.remove(K(second))
    assert provider.mounted == provider.retained == set()
    assert await put_layer(core, A, chain[0]) == chain[0]


async def test_a_layer_that_is_gone_is_named(core: Snapshotter, provider: DirectoryLayers, layout: Layout) -> None:
    await put_layer(core, A, A.diff_id)
    (layout.root / "layers" / A.digest[7:23] / "fs").rmdir()
    (layout.root / "layers" / A.digest[7:23]).rmdir()
    with pytest.raises(Unavailable, match=A.digest):
        await core.prepare(K("container"), K(A.diff_id), {})
    assert directories(layout) == []


# Many at once


async def test_many_clients_prepare_one_chain(core: Snapshotter, provider: DirectoryLayers) -> None:
    chain = chain_ids([A, B, C])

    async def pull(client: int) -> None:
        parent = None
        for ref, target in zip((A, B, C), chain, strict=True):
            with pytest.raises(AlreadyExists):
                await core.prepare(K(f"{client}-{target}"), parent, labels(ref, target))
            parent = K(target)
        await core.prepare(K(f"container {client}"), parent, {})

    await asyncio.gather(*map(pull, range(20)))
    infos = await core.walk()
    assert sorted(info.name for info in infos if info.kind is Kind.COMMITTED) == sorted(chain)
    assert len(infos) == 23


async def test_one_key_has_one_winner(core: Snapshotter, layout: Layout) -> None:
    results = await asyncio.gather(*(core.prepare(K("key"), None, {}) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(each, tuple) for each in results) == 1
    assert sum(isinstance(each, AlreadyExists) for each in results) == 19
    assert len(directories(layout)) == 1


async def test_uses_and_releases_never_cross(core: Snapshotter, provider: DirectoryLayers) -> None:
    """Whatever the order, in the end a layer is held exactly if a snapshot names it."""

    async def churn(client: int) -> None:
        for turn in range(15):
            with contextlib.suppress(AlreadyExists):
                await core.prepare(K(f"e{client}-{turn}"), None, labels(A, A.diff_id))
            with contextlib.suppress(NotFound, FailedPrecondition):
                await core.prepare(K(f"c{client}-{turn}"), K(A.diff_id), {})
                assert A.digest in provider.mounted
                await core.remove(K(f"c{client}-{turn}"))
                await core.remove(K(A.diff_id))

    await asyncio.gather(*map(churn, range(6)))
    await core.cleanup()
    used = any(info.name == K(A.diff_id) for info in await core.walk())
    assert (A.digest in provider.retained) is used
    assert A.digest not in provider.mounted or used


async def test_a_client_that_goes_away_leaves_a_whole_snapshot_or_none(core: Snapshotter, layout: Layout) -> None:
    for number in range(20):
        task = asyncio.create_task(core.prepare(K(f"key{number}"), None, {}))
        await asyncio.sleep(0.0005 * (number % 4))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await core.stop()
    rows = [info.name for info in await core.walk()]
    assert len(rows) == len(directories(layout))
    for name in rows:
        await core.mounts(name)


# Starting again


async def test_a_start_takes_up_the_layers_in_use(
    core: Snapshotter, provider: DirectoryLayers, layout: Layout, tmp_path: Path
) -> None:
    chain = chain_ids([A, B])
    await put_layer(core, A, chain[0])
    await put_layer(core, B, chain[1], chain[0])
    mounts = await core.prepare(K("container"), K(chain[1]), {})
    again = DirectoryLayers(layout.root / "layers")
    again.mounted.add(C.digest)
    async with Database(layout.database) as database:
        second = Snapshotter(
            layout=layout, database=database, provider=again, resolver=LabelResolver(), options=MountOptions()
        )
        await second.start(mounted=[C.digest])
        await second.stop()
        assert again.retained == {A.digest, B.digest}
        assert again.mounted == set()
        assert await second.mounts(K("container")) == mounts
        assert again.mounted == {A.digest, B.digest}


async def test_a_start_survives_a_layer_that_is_lost(layout: Layout, core: Snapshotter) -> None:
    await put_layer(core, A, A.diff_id)
    empty = DirectoryLayers(layout.root / "elsewhere")
    async with Database(layout.database) as database:
        second = Snapshotter(
            layout=layout, database=database, provider=empty, resolver=LabelResolver(), options=MountOptions()
        )
        await second.start()
        assert [str(info.name) for info in await second.walk()] == [A.diff_id]
        with pytest.raises(Unavailable):
            await second.view(K("view"), K(A.diff_id), {})
        # Pulling again mends it.
        assert await put_layer(second, A, A.diff_id) == A.diff_id
        await second.view(K("view"), K(A.diff_id), {})
        assert empty.retained == empty.mounted == {A.digest}
        await second.stop()
