"""How a layer comes to be known: its index is fetched, its frame table read, its metadata checked; then it has a name.

Between the last two its frames can be fetched already: a draft is a layer that nobody can see. The check takes a
quarter of a second for 40,000 files, in which a link brings what the start will read first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from fetcher.layers.checking import IndexCheck
from fetcher.layers.layer import Layer, directory_name
from fetcher.model import LayerUnavailable
from fetcher.registry import Origin, RegistryClient, RegistryError
from layerformat.annotations import LayerRef
from layerformat.digest import Digest, sha256_digest
from layerformat.errors import FormatError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Admission:
    """One layer on its way. ``draft`` fails as the task does, or is cancelled where nobody can have it."""

    task: asyncio.Task[Layer]
    draft: asyncio.Future[Layer]


class Admissions:
    """The layers on their way into a node. For one event loop."""

    def __init__(
        self,
        client: RegistryClient,
        layers_dir: Path,
        *,
        index_timeout_s: float,
        admitted: Callable[[Layer], None],
        withdraw: Callable[[Layer], Awaitable[None]],
    ) -> None:
        """``admitted`` is told of a layer in the step in which it is named; ``withdraw`` ends all use of a draft."""
        self._client = client
        self._layers_dir = layers_dir
        self._index_timeout_s = index_timeout_s
        self._admitted = admitted
        self._withdraw = withdraw
        self._turn = asyncio.Lock()
        self._under_way: dict[Digest, _Admission] = {}

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._under_way

    async def layer(self, ref: LayerRef, origins: Sequence[Origin]) -> Layer:
        """The layer with its metadata checked. Concurrent calls share one download.

        Raises LayerUnavailable when no origin has a good index (FormatError is its cause where it is malformed), or
        OSError when the disk refuses.
        """
        # A caller that goes away must not take the others' download with it.
        return await asyncio.shield(self._admission(ref, origins).task)

    async def draft(self, ref: LayerRef, origins: Sequence[Origin]) -> Layer:
        """The layer as soon as its frames are known; it is closed if its metadata turn out to be no good.

        Raises as `layer` does.
        """
        return await asyncio.shield(self._admission(ref, origins).draft)

    def _admission(self, ref: LayerRef, origins: Sequence[Origin]) -> _Admission:
        admission = self._under_way.get(ref.digest)
        if admission is None:
            draft: asyncio.Future[Layer] = asyncio.get_running_loop().create_future()
            task = asyncio.ensure_future(self._admit(ref, list(origins), draft))
            admission = self._under_way[ref.digest] = _Admission(task, draft)
            task.add_done_callback(lambda _: self._ended(ref.digest))
        return admission

    def _ended(self, digest: Digest) -> None:
        admission = self._under_way.pop(digest)
        task, draft = admission.task, admission.draft
        if task.cancelled():
            draft.cancel()
        elif (error := task.exception()) is not None and not draft.done():
            draft.set_exception(error)
            draft.exception()  # it was told to whoever asked

    async def _admit(self, ref: LayerRef, origins: list[Origin], drafted: asyncio.Future[Layer]) -> Layer:
        async with IndexCheck(ref, self._turn) as check:
            index, source = await self._fetch_index(ref, origins)
            try:
                draft = await asyncio.to_thread(Layer.draft, self._layers_dir, ref, origins, index)
                drafted.set_result(draft)
                await self._settle(draft, check)
            except FormatError as error:
                raise LayerUnavailable(f"layer {ref.digest}: {error}") from error
        log.info("layer_admitted", layer=ref.digest, frames=len(draft.frames), source=str(source))
        return draft

    async def _settle(self, draft: Layer, check: IndexCheck) -> None:
        try:
            metadata_digest = await check.run(draft.directory)
            await asyncio.to_thread(draft.seal, metadata_digest)
            draft.take_name(self._layers_dir / directory_name(draft.digest))
        except BaseException:
            await self._withdraw(draft)
            await asyncio.to_thread(draft.discard)
            raise
        # Here and not when the task has ended: who asks between the two must find one or the other.
        self._admitted(draft)

    async def _fetch_index(self, ref: LayerRef, origins: Sequence[Origin]) -> tuple[bytes, Origin]:
        """The index from the first origin that has it, and which one that is."""
        problems = []
        for origin in origins:
            try:
                async with asyncio.timeout(self._index_timeout_s):
                    index = await self._read_index(ref, origin)
            except (RegistryError, TimeoutError) as error:
                problems.append(f"{origin.host}/{origin.repository}: {error or 'timed out'}")
                continue
            if await asyncio.to_thread(sha256_digest, index) == ref.index_digest:
                return index, origin
            problems.append(f"{origin.host}/{origin.repository}: index is not {ref.index_digest}")
        raise LayerUnavailable(f"layer {ref.digest}: " + ("; ".join(problems) or "no origin known"))

    async def _read_index(self, ref: LayerRef, origin: Origin) -> bytes:
        parts = []
        request = self._client.read_blob(origin, ref.digest, offset=ref.index_offset, length=ref.index_size)
        async with request as chunks:
            async for chunk in chunks:
                parts.append(chunk)
        return b"".join(parts)

    async def close(self) -> None:
        """End what is under way."""
        tasks = [admission.task for admission in self._under_way.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
