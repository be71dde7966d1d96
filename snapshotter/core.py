"""The life of snapshots: what containerd's overlay snapshotter does, plus snapshots whose files are a layer's.

Every public method but the reading ones runs to its end once it has begun, whether or not the client still waits: a
cancelled call must not leave a committed row without what belongs to it. See docs/snapshotter.md for the crash order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog

from layerformat.digest import Digest
from snapshotter import directories
from snapshotter.database import Database
from snapshotter.errors import Unavailable
from snapshotter.filters import parse_filters
from snapshotter.layers import Layers
from snapshotter.model import SNAPSHOT_REF, Chain, Info, Kind, Layout, Member, Mount, Owner, SnapshotKey, Usage
from snapshotter.mounts import MountOptions, lower_path, mapped_root, mounts
from snapshotter.provider import LayerProvider, Resolver
from snapshotter.store import Record, Transaction

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Snapshotter:
    """Built on an entered `Database`; `start` before the first call, `stop` after the last."""

    def __init__(
        self,
        *,
        layout: Layout,
        database: Database,
        provider: LayerProvider,
        resolver: Resolver,
        options: MountOptions,
    ) -> None:
        self._layout = layout
        self._database = database
        self._layers = Layers(database, provider, resolver)
        self._options = options
        self._running: set[asyncio.Task[Any]] = set()
        self._discarding: dict[Path, asyncio.Task[None]] = {}

    async def start(self, mounted: Iterable[Digest] = ()) -> None:
        """Take up the layers in use and sweep what a crash left behind. Needs neither the network nor containerd.

        `mounted` are the layers that are mounted already; those no snapshot uses are let go. Sweeping takes as long as
        it takes, in the background.
        """
        await self._layers.restore(mounted)
        self._spawn(self.cleanup())

    async def stop(self) -> None:
        """Wait for what is under way. Mounts stay: containers go on without us."""
        while self._running:
            await asyncio.wait(set(self._running))

    # Calls that change something

    async def prepare(
        self, key: SnapshotKey, parent: SnapshotKey | None, labels: Mapping[str, str], namespace: str | None = None
    ) -> tuple[Mount, ...]:
        """A new active snapshot's mounts. AlreadyExists with `containerd.io/snapshot.ref`: nothing needs unpacking."""

        async def run() -> tuple[Mount, ...]:
            if SNAPSHOT_REF in labels:
                await self._layers.offer(parent, labels, namespace)
            return await self._create(Kind.ACTIVE, key, parent, labels)

        return await self._to_the_end(run())

    async def view(self, key: SnapshotKey, parent: SnapshotKey | None, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        return await self._to_the_end(self._create(Kind.VIEW, key, parent, labels))

    async def commit(
        self, key: SnapshotKey, name: SnapshotKey, parent: SnapshotKey | None, labels: Mapping[str, str]
    ) -> None:
        """The snapshot's usage is measured here, once; see `usage`."""

        async def run() -> None:
            record = await self._database.read(lambda tx: tx.record(key))
            usage = await self._own_usage(record)
            await self._database.write(lambda tx: tx.commit(key, name, parent, labels, usage))

        await self._to_the_end(run())

    async def remove(self, name: SnapshotKey) -> None:
        """The row goes first, the files after it is gone; what is left when that fails, `cleanup` takes."""

        async def run() -> None:
            record = await self._database.write(lambda tx: tx.remove(name))
            if record.layer is None:
                await self._discard([self._layout.snapshots / str(record.id)])
            else:
                await self._layers.release_unused([record.layer])

        await self._to_the_end(run())

    async def update(self, name: SnapshotKey, labels: Mapping[str, str], mask: Sequence[str]) -> Info:
        return await self._to_the_end(self._database.write(lambda tx: tx.update(name, labels, mask)))

    async def cleanup(self) -> None:
        """Remove directories no snapshot owns, and let go of layers no snapshot uses."""

        async def run() -> None:
            # A write transaction: no snapshot is in the making while the directory is read.
            garbage = await self._database.write(lambda tx: directories.orphans(self._layout, tx.ids()))
            await self._discard(garbage)
            await self._layers.release_unused(self._layers.held)

        await self._to_the_end(run())

    # Calls that read

    async def mounts(self, key: SnapshotKey) -> tuple[Mount, ...]:
        chain = await self._database.read(lambda tx: tx.chain(key))
        return await self._mounts(chain)

    async def stat(self, name: SnapshotKey) -> Info:
        return (await self._database.read(lambda tx: tx.record(name))).info

    async def walk(self, filters: Iterable[str] = ()) -> list[Info]:
        wanted = parse_filters(filters)
        return await self._database.read(lambda tx: tx.walk(wanted))

    async def usage(self, name: SnapshotKey) -> Usage:
        """Active: what its directory takes now. Committed: what it took then. A layer: what the provider says."""
        record = await self._database.read(lambda tx: tx.record(name))
        if record.layer is not None:
            return self._layers.usage(record.layer)
        return record.usage if record.info.kind is Kind.COMMITTED else await self._own_usage(record)

    # How

    async def _create(
        self, kind: Kind, key: SnapshotKey, parent: SnapshotKey | None, labels: Mapping[str, str]
    ) -> tuple[Mount, ...]:
        owner = mapped_root(labels)
        members = await self._database.read(lambda tx: tx.parent_chain(parent))
        lowers = await self._layers.mount_all(members)
        try:
            chain = await self._database.write(lambda tx: self._create_in(tx, kind, key, parent, labels, owner, lowers))
        except BaseException:
            await self._layers.release_unused(lowers)
            raise
        return mounts(chain, layout=self._layout, lowers=lowers, options=self._options)

    def _create_in(
        self,
        tx: Transaction,
        kind: Kind,
        key: SnapshotKey,
        parent: SnapshotKey | None,
        labels: Mapping[str, str],
        owner: Owner | None,
        lowers: Mapping[Digest, Path],
    ) -> Chain:
        """On the database's thread: row, then directory under a temporary name, then rename, all before the commit."""
        chain = tx.create(kind, key, parent, labels)
        if not chain.layers <= lowers.keys():
            raise Unavailable(f"snapshot {parent} was replaced while {key} was prepared on it")
        if owner is None and chain.parents:
            owner = self._owner_of(chain.parents[0], lowers)
        made = directories.make_directory(self._layout, kind, owner)
        try:
            made.rename(self._layout.snapshots / str(chain.id))
        except BaseException:
            directories.remove_tree(made)
            raise
        return chain

    def _owner_of(self, parent: Member, lowers: Mapping[Digest, Path]) -> Owner:
        return directories.owner_of(lower_path(parent, layout=self._layout, lowers=lowers))

    async def _mounts(self, chain: Chain) -> tuple[Mount, ...]:
        lowers = await self._layers.mount_all(chain.parents)
        return mounts(chain, layout=self._layout, lowers=lowers, options=self._options)

    async def _own_usage(self, record: Record) -> Usage:
        return await asyncio.to_thread(directories.disk_usage, self._layout.upper(record.id))

    async def _discard(self, paths: Iterable[Path]) -> None:
        """Remove directories that have no row any more; two calls that meet at one share the work."""
        for path in paths:
            if path not in self._discarding:
                self._discarding[path] = self._spawn(self._remove_tree(path))
            await self._discarding[path]

    async def _remove_tree(self, path: Path) -> None:
        try:
            await asyncio.to_thread(directories.remove_tree, path)
        except OSError as exc:
            log.warning("directory_not_removed", path=str(path), error=str(exc))
        finally:
            del self._discarding[path]

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """Whoever waited was told of an error; one nobody waits for is at least written down."""
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("operation_failed", error=str(error))
