"""Snapshots that are layers of ours: answered without unpacking, mounted when something is put on them.

The remote protocol of containerd: a Prepare that names the chain id it is about to build (`containerd.io/snapshot.ref`)
may be answered ALREADY_EXISTS, if a committed snapshot with that label and exactly that parent is there by then.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog

from fetcher.model import LayerUnavailable
from layerformat.annotations import LayerRef
from layerformat.digest import Digest
from layerformat.errors import FormatError
from snapshotter.database import Database
from snapshotter.errors import AlreadyExists, NotFound, Unavailable
from snapshotter.model import SNAPSHOT_REF, Member, SnapshotKey, Usage
from snapshotter.provider import LayerProvider, Request, Resolved, Resolver
from snapshotter.store import Transaction

log = structlog.get_logger(__name__)

PARENT_CHAIN = "containerd.io/snapshot/parent-chain-id"
"""Set by containerd >= 2.3 on every layer but the first. Without a parent, layers are being unpacked in parallel."""


class Layers:
    """Which layers are held for which snapshots. A layer is retained while a row names it, and not a moment longer.

    The row and the retention change together under a lock per layer, so that a release never overtakes a new use.
    """

    def __init__(self, database: Database, provider: LayerProvider, resolver: Resolver) -> None:
        self._database = database
        self._provider = provider
        self._resolver = resolver
        self._locks: defaultdict[Digest, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._retained: set[Digest] = set()
        self._held: set[Digest] = set()  # retained, or mounted without it: what a release has to undo

    @property
    def held(self) -> frozenset[Digest]:
        return frozenset(self._held)

    async def restore(self, mounted: Iterable[Digest]) -> None:
        """After a start: retain what the snapshots use. A layer that cannot be had is logged, the others go on."""
        self._held.update(mounted)
        for layer in sorted(await self._database.read(Transaction.layers)):
            self._held.add(layer)
            try:
                await self._provider.retain(layer)
                self._retained.add(layer)
            except (LayerUnavailable, FormatError, OSError) as exc:
                log.error("layer_not_restored", layer=layer, error=str(exc))

    async def offer(self, parent: SnapshotKey | None, labels: Mapping[str, str], namespace: str | None) -> None:
        """Raises AlreadyExists if the layer is ours and now there; returns if it has to be unpacked."""
        members = await self._database.read(lambda tx: tx.parent_chain(parent))
        request = Request(
            target=labels[SNAPSHOT_REF], parent=parent, labels=labels, namespace=namespace, depth=len(members)
        )
        try:
            name = await self._take(request)
        except (LayerUnavailable, FormatError, NotLazy) as exc:
            log.warning("layer_not_lazy", target=request.target, reason=str(exc))
            return
        if name is not None:
            raise AlreadyExists(f"target snapshot {request.target}: layer is there as {name}")

    async def _take(self, request: Request) -> SnapshotKey | None:
        """The committed snapshot that answers the request; None if it is not for a layer of ours."""
        known = LayerRef.from_annotations(request.labels)
        # Only if the node really has the layer: a new pull mends a snapshot whose layer was lost.
        if known is not None and known.digest in self._retained:
            name = await self._database.read(lambda tx: find(tx, request, known.digest))
            if name is not None:
                return name
        resolved = await self._resolver.resolve(request)
        if resolved is None:
            return None
        if request.parent is None and PARENT_CHAIN in request.labels:
            raise NotLazy("layers are unpacked in parallel; the capability rebase must not be set for this snapshotter")
        await self._database.read(lambda tx: check_chain(tx, request, resolved.ref))
        await self._admit(resolved)
        return await self._commit(request, resolved.ref)

    async def _admit(self, resolved: Resolved) -> None:
        if resolved.image is not None:
            self._provider.announce(resolved.image)
        try:
            await self._provider.admit(resolved.ref, resolved.origins)
        except OSError as exc:
            raise NotLazy(f"layer {resolved.ref.digest} can not be kept: {exc}") from exc

    async def _commit(self, request: Request, ref: LayerRef) -> SnapshotKey:
        try:
            async with self._locks[ref.digest]:
                await self._retain(ref.digest)
                name = await self._database.write(lambda tx: find(tx, request, ref.digest) or create(tx, request, ref))
        except BaseException:
            await self.release_unused([ref.digest])
            raise
        log.info("layer_lazy", target=request.target, layer=ref.digest, name=name)
        return name

    async def _retain(self, layer: Digest) -> None:
        if layer in self._retained:
            return
        self._held.add(layer)
        try:
            await self._provider.retain(layer)
        except OSError as exc:
            raise NotLazy(f"layer {layer} can not be kept: {exc}") from exc
        self._retained.add(layer)

    async def mount_all(self, members: Iterable[Member]) -> dict[Digest, Path]:
        """Mount the layers of a chain, all at once; gives their directories. Raises Unavailable, naming the layer."""
        wanted = sorted({member.layer for member in members if member.layer is not None})
        paths = await asyncio.gather(*map(self._mount, wanted))
        return dict(zip(wanted, paths, strict=True))

    async def _mount(self, layer: Digest) -> Path:
        self._held.add(layer)  # so that a cleanup lets go of it, should its last snapshot vanish meanwhile
        try:
            return await self._provider.mount(layer)
        except LayerUnavailable as exc:
            raise Unavailable(f"layer {layer} can not be mounted: {exc}") from exc

    async def release_unused(self, layers: Iterable[Digest]) -> None:
        for layer in layers:
            async with self._locks[layer]:
                if layer in self._held and not await self._database.read(lambda tx, it=layer: tx.uses(it)):  # type: ignore[misc]
                    self._held.discard(layer)
                    self._retained.discard(layer)
                    await self._provider.release(layer)

    def usage(self, layer: Digest) -> Usage:
        """Nothing for a layer the node has lost."""
        try:
            found = self._provider.usage(layer)
        except LayerUnavailable:
            return Usage()
        return Usage(size=found.size, inodes=found.inodes)


class NotLazy(Exception):
    """Why a layer of ours has to be unpacked the ordinary way."""


def find(tx: Transaction, request: Request, layer: Digest) -> SnapshotKey | None:
    """The snapshot that containerd would find for the request, if its files are `layer`'s.

    Another layer in that place is refused: the same chain id with other bytes can come from an image that lies about
    its diff ids, and an ordinary pull is verified by containerd.
    """
    found = tx.layers_of(request.target, request.parent)
    if not found:
        return None
    name, present = found[0]
    if present != layer:
        raise NotLazy(f"another layer, {present}, answers for this chain id already")
    return name


def create(tx: Transaction, request: Request, ref: LayerRef) -> SnapshotKey:
    """Commit the layer under its chain id; beside one on another parent, under a name that also names the parent.

    Chain ids are shared by all of containerd's namespaces, an ordinary parent is not: it is called
    `<namespace>/<number>/<chain id>`. containerd finds the snapshot by label and parent, whatever it is called.
    """
    name = SnapshotKey(request.target)
    try:
        tx.record(name)
        name = SnapshotKey(f"{request.target}@{request.parent}")
    except NotFound:
        pass
    tx.create_layer(name, request.parent, request.labels, ref.digest)
    return name


def check_chain(tx: Transaction, request: Request, ref: LayerRef) -> None:
    """The chain id must follow from the parent's and the layer's diff id, else a snapshot would pass for another's.

    Raises NotLazy. Nothing is checked on a parent that does not know its own chain id.
    """
    below: str | None = None
    if request.parent is not None:
        below = tx.record(request.parent).info.labels.get(SNAPSHOT_REF)
        if below is None:
            return
    expected = ref.diff_id if below is None else _sha256(f"{below} {ref.diff_id}")
    if expected != request.target:
        raise NotLazy(f"diff id {ref.diff_id} on {below or 'nothing'} gives chain id {expected}")


def _sha256(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
