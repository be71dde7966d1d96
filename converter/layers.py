"""What becomes of each layer of an image: kept, taken over, reused from an earlier conversion, or converted."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from converter.compress import FrameCompressor
from converter.copying import BlobCopier
from converter.destinations import ImageDestination
from converter.errors import DestinationError, MalformedInput, MalformedLayer
from converter.lower import LayerFiles, directories_below, loaded
from converter.media import LAYER_ZSTD, is_tar_layer
from converter.options import ConvertOptions, LayerResult
from converter.pipeline import LayerPipeline, WrittenLayer
from converter.progress import ConvertProgress, size_change
from converter.sources import ImageSource
from converter.threads import Threads
from fetcher.registry import Descriptor, NotFound, UploadLost
from layerformat.annotations import PREFIX as OURS
from layerformat.annotations import LayerRef
from layerformat.digest import ChainID, DiffID, Digest, sha256_digest
from layerformat.entries import Entry
from layerformat.erofs_read import read_metadata
from layerformat.errors import FormatError
from layerformat.index import open_index

SOURCE_KEY: Final = "dev.fastpull.source"
PARAMETERS_KEY: Final = "dev.fastpull.parameters"
#: Chain of the source layers below, on a layer that took over attributes of theirs: it is reused only on top of the
#: same.
BASE_KEY: Final = "dev.fastpull.base"
#: Annotations of other lazy formats: they describe bytes that are gone.
_STALE: Final = (
    "containerd.io/snapshot/",
    "containerd.io/uncompressed",
    "io.containers.estargz.",
    "io.containers.zstd-chunked.",
    "io.github.containers.zstd-chunked.",
)


ReadRange = Callable[[Descriptor, int, int], Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLayer:
    """One layer of the source image; `base` is the chain id of what is below (empty for the lowest)."""

    number: int
    descriptor: Descriptor
    diff_id: DiffID
    base: ChainID | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The layer in the new manifest, its diff id, how it came about, and its files for layers above that ask."""

    descriptor: Descriptor
    diff_id: DiffID
    result: LayerResult
    files: LayerFiles


def chain_id(below: ChainID | None, diff_id: DiffID) -> ChainID:
    """OCI image specification, "Layer ChainID"."""
    return ChainID(diff_id) if below is None else ChainID(sha256_digest(f"{below} {diff_id}".encode()))


class LayerConverter:
    """All layers of one conversion: the same source layer is read once, however many images have it."""

    def __init__(
        self,
        source: ImageSource,
        destination: ImageDestination,
        options: ConvertOptions,
        existing: Mapping[Digest, Descriptor],
        copier: BlobCopier,
        threads: Threads,
        progress: ConvertProgress,
    ) -> None:
        self._source = source
        self._destination = destination
        self._options = options
        self._compress = FrameCompressor(options.level)
        self._by_digest = existing
        self._copier = copier
        self._by_source = by_source(existing)
        self._threads = threads
        self._progress = progress
        self._slots = asyncio.Semaphore(threads.layers)
        self._locks: dict[Digest, asyncio.Lock] = {}
        self._converted: dict[Digest, list[tuple[ChainID | None, Outcome]]] = {}

    async def convert(self, layer: SourceLayer, below: "list[asyncio.Future[Outcome]]") -> Outcome:
        """One layer; `below` are the outcomes to be of the layers under it, lowest first.

        Layers must be started lowest first: one may wait for those below it, while it holds one of the slots.
        """
        if not is_tar_layer(layer.descriptor.media_type):
            return await self._keep(layer)
        async with self._slots, self._locks.setdefault(layer.descriptor.digest, asyncio.Lock()):
            for base, outcome in self._converted.get(layer.descriptor.digest, []):
                if base in (None, layer.base):
                    return outcome
            found = await self._take_over(layer) or await self._reuse(layer) or await self._convert(layer, below)
            base = layer.base if BASE_KEY in found.descriptor.annotations else None
            self._converted.setdefault(layer.descriptor.digest, []).append((base, found))
            return found

    async def _keep(self, layer: SourceLayer) -> Outcome:
        """Not ours to change: foreign layers are not even copied."""
        action = await self._copier.copy(layer.descriptor)
        return self._outcome(layer, layer.descriptor, layer.diff_id, action, loaded(()))

    async def _take_over(self, layer: SourceLayer) -> Outcome | None:
        """The source's layer is one of ours already."""
        ref = self._own_ref(layer)
        if ref is None or self._options.plan(ref.diff_id).hot:
            return None
        if ref.digest not in self._by_digest and not await self._verifies(layer.descriptor, ref):
            return None
        action = await self._copier.copy(layer.descriptor)
        files = LayerFiles(lambda: self._files_in(self._source.blob_range, layer.descriptor, ref))
        return self._outcome(layer, layer.descriptor, layer.diff_id, action, files)

    def _own_ref(self, layer: SourceLayer) -> LayerRef | None:
        try:
            ref = LayerRef.from_annotations(layer.descriptor.annotations)
        except FormatError:
            return None  # a later version, or damaged: it is still a good tar+zstd layer
        if ref is None or (ref.digest, ref.diff_id) != (layer.descriptor.digest, layer.diff_id):
            return None
        return ref if layer.descriptor.media_type == LAYER_ZSTD else None

    async def _verifies(self, descriptor: Descriptor, ref: LayerRef) -> bool:
        try:
            await _entries(self._source.blob_range, descriptor, ref)
        except FormatError:
            return False
        return True

    async def _files_in(self, read: ReadRange, descriptor: Descriptor, ref: LayerRef) -> tuple[Entry, ...]:
        try:
            return await _entries(read, descriptor, ref)
        except FormatError as exc:
            raise MalformedInput(str(exc)) from exc

    async def _reuse(self, layer: SourceLayer) -> Outcome | None:
        """An earlier conversion left this layer at the destination, made with the same parameters."""
        for old in self._by_source.get(layer.descriptor.digest, []):
            ref = LayerRef.from_annotations(old.annotations)
            if ref is None or old.annotations.get(BASE_KEY, layer.base) != layer.base:
                continue
            plan = self._options.plan(ref.diff_id)
            if old.annotations.get(PARAMETERS_KEY) != self._options.parameters(plan):
                continue
            if await self._destination.keeps(ref.digest):
                descriptor = replace(old, annotations={**_kept_annotations(layer.descriptor), **_made(old.annotations)})
                files = LayerFiles(partial(self._files_in, self._destination.blob_range, descriptor, ref))
                return self._outcome(layer, descriptor, ref.diff_id, "reused", files)
        return None

    def _known_diff_id(self, layer: SourceLayer) -> DiffID | None:
        """Diff id of the layer once converted, where an earlier conversion or the layer itself tells: profiles go by
        it.
        """
        if (own := self._own_ref(layer)) is not None:
            return own.diff_id
        for old in self._by_source.get(layer.descriptor.digest, []):
            if (ref := LayerRef.from_annotations(old.annotations)) is not None:
                return ref.diff_id
        return None

    async def _convert(self, layer: SourceLayer, below: "list[asyncio.Future[Outcome]]") -> Outcome:
        key = f"{layer.number}:{layer.descriptor.digest}"
        self._progress.started(key, f"layer {layer.number + 1} {layer.descriptor.digest[7:19]}", layer.descriptor.size)
        try:
            written = await self._write(layer, below, key)
        except BaseException:
            self._progress.finished(key, "failed")
            raise
        self._progress.finished(key, f"converted, {size_change(layer.descriptor.size, written.ref.size)}")
        plan = self._options.plan(self._known_diff_id(layer))
        descriptor = _descriptor(layer, written, self._options.parameters(plan))
        outcome = self._outcome(layer, descriptor, written.ref.diff_id, "converted", loaded(written.entries))
        missed = bool(self._options.plan(written.ref.diff_id).hot) and not plan.hot
        return replace(outcome, result=replace(outcome.result, missed_profile=missed))

    async def _write(self, layer: SourceLayer, below: "list[asyncio.Future[Outcome]]", key: str) -> WrittenLayer:
        for attempt in (1, 2):
            pipeline = LayerPipeline(
                chunks=self._source.blob(layer.descriptor),
                # A plain layer's digest is its diff id, and the source verifies the digest.
                diff_id=layer.diff_id if str(layer.descriptor.digest) != layer.diff_id else None,
                plan=self._options.plan(self._known_diff_id(layer)),
                compress=self._compress,
                threads=self._threads,
                inherit=lambda paths: directories_below(paths, [partial(_files, outcome) for outcome in below]),
                on_chunk=lambda count: self._progress.advanced(key, count),
            )
            try:
                return await pipeline.run(self._destination.push_blob)
            except DestinationError as exc:
                # The registry forgot the upload: only reading the layer again can produce the bytes again.
                if attempt == 2 or not isinstance(exc.__cause__, UploadLost | NotFound):
                    raise
            except MalformedLayer as exc:
                raise MalformedLayer(
                    f"layer {layer.number + 1} ({layer.descriptor.digest}): {exc}", hint=exc.hint
                ) from exc
        raise AssertionError("unreachable")

    def _outcome(
        self, layer: SourceLayer, descriptor: Descriptor, diff_id: DiffID, action: str, files: LayerFiles
    ) -> Outcome:
        result = LayerResult(
            source=layer.descriptor.digest,
            digest=descriptor.digest,
            action=action,
            source_size=layer.descriptor.size,
            size=descriptor.size,
        )
        return Outcome(descriptor=descriptor, diff_id=diff_id, result=result, files=files)


async def _entries(read: ReadRange, descriptor: Descriptor, ref: LayerRef) -> tuple[Entry, ...]:
    """The files of a converted layer, from its index alone; FormatError unless that verifies."""
    payload = await read(descriptor, ref.index_offset, ref.index_size)
    return await asyncio.to_thread(lambda: tuple(read_metadata(open_index(payload, ref).metadata)))


async def _files(outcome: "asyncio.Future[Outcome]") -> LayerFiles:
    return (await asyncio.shield(outcome)).files


def by_source(existing: Mapping[Digest, Descriptor]) -> dict[str, list[Descriptor]]:
    """Layers at the destination that a conversion made, by the digest of what they were made from."""
    found: dict[str, list[Descriptor]] = {}
    for descriptor in existing.values():
        try:
            ref = LayerRef.from_annotations(descriptor.annotations)
        except FormatError:
            continue
        source = descriptor.annotations.get(SOURCE_KEY)
        if ref is not None and source is not None and ref.digest == descriptor.digest:
            found.setdefault(source, []).append(descriptor)
    return found


def _descriptor(layer: SourceLayer, written: WrittenLayer, parameters: str) -> Descriptor:
    made = {SOURCE_KEY: layer.descriptor.digest, PARAMETERS_KEY: parameters}
    if written.inherits and layer.base is not None:
        made[BASE_KEY] = layer.base
    return Descriptor(
        media_type=LAYER_ZSTD,
        digest=written.ref.digest,
        size=written.ref.size,
        annotations={**_kept_annotations(layer.descriptor), **written.ref.to_annotations(), **made},
    )


def _made(annotations: Mapping[str, str]) -> dict[str, str]:
    """The annotations that a conversion wrote."""
    keys = (SOURCE_KEY, PARAMETERS_KEY, BASE_KEY)
    return {key: value for key, value in annotations.items() if key.startswith(OURS) or key in keys}


def _kept_annotations(descriptor: Descriptor) -> dict[str, str]:
    """The source's annotations, without those that a conversion makes or makes untrue."""
    made = _made(descriptor.annotations)
    kept = {key: value for key, value in descriptor.annotations.items() if key not in made}
    return {key: value for key, value in kept.items() if not key.startswith(_STALE)}
