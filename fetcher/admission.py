"""Layers on their way in: the index is fetched, the frame table read, the metadata checked, in that order.

The frame table is quickly read, and bound to the index's digest, which the manifest names; the check takes 5 us a
file. So a layer is a draft from the moment its index is here: what a profile names of it can be fetched. Nobody else
sees it before its metadata has passed the check and its directory has its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from fetcher.layer import Layer
from fetcher.model import FetcherConfig, LayerUnavailable
from fetcher.registry import Origin, RegistryClient, RegistryError
from layerformat.annotations import LayerRef
from layerformat.digest import Digest
from layerformat.errors import FormatError
from layerformat.index import decode_index

log = structlog.get_logger(__name__)


class Admissions:
    """The admissions under way on a node, one for each layer however many ask for it. Used on the event loop only."""

    def __init__(
        self,
        client: RegistryClient,
        config: FetcherConfig,
        *,
        admitted: Callable[[Layer], None],
        withdraw: Callable[[Layer], Awaitable[None]],
    ) -> None:
        """``admitted`` takes over a layer that is whole; ``withdraw`` ends all work on a draft and removes it."""
        self._client = client
        self._timeout_s = config.index_timeout_s
        self._layers_dir = config.root / "layers"
        self._admitted = admitted
        self._withdraw = withdraw
        self._tasks: dict[Digest, asyncio.Task[Layer]] = {}
        self._drafts: dict[Digest, asyncio.Future[Layer]] = {}
        self.checking = asyncio.Lock()

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._tasks

    async def close(self) -> None:
        """End all of them; drafts are withdrawn."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def layer(self, ref: LayerRef, origins: Sequence[Origin]) -> Layer:
        """The layer, admitted. Raises LayerUnavailable or OSError."""
        # A caller that goes away must not take the others' download with it.
        return await asyncio.shield(self._begin(ref, origins))

    async def draft(self, ref: LayerRef, origins: Sequence[Origin]) -> Layer:
        """The layer as soon as frames can be written to it; closed if it is not admitted. Raises like :meth:`layer`."""
        task = self._begin(ref, origins)
        draft = self._drafts[ref.digest]
        await asyncio.wait([task, draft], return_when=asyncio.FIRST_COMPLETED)
        return draft.result() if draft.done() else await asyncio.shield(task)

    def drafted(self, digest: Digest) -> Layer | None:
        """The draft of a layer whose metadata is being checked."""
        draft = self._drafts.get(digest)
        return draft.result() if draft is not None and draft.done() else None

    async def ended(self, digests: Iterable[Digest]) -> None:
        """Wait until none of these layers is under way."""
        if tasks := [task for digest in digests if (task := self._tasks.get(digest)) is not None]:
            await asyncio.wait(tasks)

    def _begin(self, ref: LayerRef, origins: Sequence[Origin]) -> asyncio.Task[Layer]:
        task = self._tasks.get(ref.digest)
        if task is None:
            self._drafts[ref.digest] = asyncio.get_running_loop().create_future()
            task = self._tasks[ref.digest] = asyncio.ensure_future(self._admit(ref, list(origins)))
            task.add_done_callback(lambda done: self._has_ended(ref.digest, done))
        return task

    def _has_ended(self, digest: Digest, task: asyncio.Task[Layer]) -> None:
        del self._tasks[digest], self._drafts[digest]
        if not task.cancelled():
            task.exception()  # it was told to whoever asked

    async def _admit(self, ref: LayerRef, origins: Sequence[Origin]) -> Layer:
        problems = []
        for origin in origins:
            try:
                async with asyncio.timeout(self._timeout_s):
                    index = await self._read_index(ref, origin)
                layer = await asyncio.to_thread(Layer.draft, self._layers_dir, ref, origins, index)
                await self._check(layer, index)
            except (RegistryError, FormatError, TimeoutError) as error:
                problems.append(f"{origin.host}/{origin.repository}: {error or 'timed out'}")
                continue
            log.info("layer_admitted", layer=ref.digest, frames=len(layer.frames), source=str(origin))
            return layer
        raise LayerUnavailable(f"layer {ref.digest}: " + ("; ".join(problems) or "no origin known"))

    async def _read_index(self, ref: LayerRef, origin: Origin) -> bytes:
        request = self._client.read_blob(origin, ref.digest, offset=ref.index_offset, length=ref.index_size)
        async with request as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def _check(self, draft: Layer, index: bytes) -> None:
        """Let frames be written, and make the layer whole if its metadata is good. Raises FormatError or OSError."""
        self._drafts[draft.digest].set_result(draft)
        try:
            await asyncio.to_thread(draft.sync_draft)
            # Threads that compute take turns anyway: one after another, the first is done while the last has not begun.
            async with self.checking:
                checked = await asyncio.to_thread(decode_index, index)
            await asyncio.to_thread(draft.write_metadata, checked)
            # No await between these: who asks finds the layer admitted, or its admission.
            draft.publish()
            self._admitted(draft)
        except BaseException:
            self._drafts[draft.digest] = asyncio.get_running_loop().create_future()
            await self._withdraw(draft)
            raise
