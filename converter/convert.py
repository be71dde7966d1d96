"""A whole image: what to convert, in which order to store it, and the one moment when it becomes visible."""

import asyncio
import platform as host
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from converter.copying import BlobCopier
from converter.destinations import ImageDestination
from converter.errors import MalformedInput, SourceNotFound
from converter.layers import LayerConverter, Outcome, SourceLayer, chain_id
from converter.locations import parse_location
from converter.media import CONFIG_TYPES, OCI_CONFIG
from converter.options import ConvertOptions, ConvertResult, ImageResult
from converter.pipeline import raise_first
from converter.progress import ConvertProgress, SilentProgress
from converter.sources import ImageSource, read_small_blob
from converter.threads import Threads
from converter.transports import open_destination, open_source
from fetcher.registry import (
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    Platform,
    RegistryClient,
    RegistryError,
    encode_json,
)
from fetcher.registry.descriptor import parse_json_object
from layerformat.digest import ChainID, DiffID, Digest, parse_digest, sha256_digest
from layerformat.errors import FormatError

#: What Go, and so every image, calls the machines that Python names otherwise.
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
_ATTESTATION: Final = "vnd.docker.reference.type"
_IMAGE_TYPES: Final = frozenset((OCI_MANIFEST, DOCKER_MANIFEST))


async def convert_image(
    source: str,
    destination: str,
    options: ConvertOptions,
    *,
    client: RegistryClient,
    progress: ConvertProgress | None = None,
) -> ConvertResult:
    """Convert the image `source` and store it as `destination`; both as on the command line.

    Raises ConvertError (and nothing else for what a user, a registry or a damaged image can cause); `destination` then
    stands for what it stood for before.
    """
    begun = time.monotonic()
    from_where, to_where = parse_location(source), parse_location(destination)
    reader = await open_source(from_where, client)
    writer = await open_destination(to_where, client)
    with Threads(options.jobs) as threads:
        conversion = await _Conversion.begin(reader, writer, options, threads, progress or SilentProgress())
        digest, images = await conversion.run()
    return ConvertResult(
        source=str(from_where),
        destination=str(to_where),
        digest=digest,
        changed=digest != conversion.existing_digest,
        images=images,
        seconds=time.monotonic() - begun,
    )


class _Conversion:
    def __init__(
        self,
        source: ImageSource,
        destination: ImageDestination,
        options: ConvertOptions,
        threads: Threads,
        progress: ConvertProgress,
        existing: "_Existing",
    ) -> None:
        self._source = source
        self._destination = destination
        self._options = options
        self._existing = existing
        self._copier = BlobCopier(source, destination, existing.blobs)
        self._layers = LayerConverter(source, destination, options, existing.layers, self._copier, threads, progress)

    @classmethod
    async def begin(
        cls,
        source: ImageSource,
        destination: ImageDestination,
        options: ConvertOptions,
        threads: Threads,
        progress: ConvertProgress,
    ) -> "_Conversion":
        return cls(source, destination, options, threads, progress, await _Existing.read(destination))

    @property
    def existing_digest(self) -> Digest | None:
        """What the name stood for before."""
        return self._existing.root

    async def run(self) -> tuple[Digest, tuple[ImageResult, ...]]:
        try:
            root = await self._source.root()
            return await (self._index(root) if root.is_index else self._single(root))
        except (
            RegistryError,
            FormatError,
        ) as exc:  # reads and writes map theirs; this is a document that makes no sense
            raise MalformedInput(str(exc)) from exc

    async def _single(self, root: Manifest) -> tuple[Digest, tuple[ImageResult, ...]]:
        body, result = await self._image(root, None)
        await self._publish(body, OCI_MANIFEST)
        return result.digest, (result,)

    async def _publish(self, body: bytes, media_type: str) -> None:
        if sha256_digest(body) != self._existing.root:
            await self._destination.publish(body, media_type)

    async def _index(self, root: Manifest) -> tuple[Digest, tuple[ImageResult, ...]]:
        rows = root.manifests
        chosen = _choose(rows, self._options)
        converted: list[Descriptor] = []
        images: list[ImageResult] = []
        for number, row in enumerate(rows):
            if number not in chosen:
                if row.digest not in self._existing.manifests:
                    await self._copier.copy_manifest(row)
                converted.append(row)
                continue
            new, result = await self._platform(row)
            converted.append(new)
            images.append(result)
        document = {**root.document, "mediaType": OCI_INDEX, "manifests": [row.to_json() for row in converted]}
        body = encode_json(document)
        await self._publish(body, OCI_INDEX)
        return sha256_digest(body), tuple(images)

    async def _platform(self, row: Descriptor) -> tuple[Descriptor, ImageResult]:
        """One platform's image of an index, and its new row there."""
        body, result = await self._image(await self._source.manifest(row), row.platform)
        if result.digest not in self._existing.manifests:
            await self._destination.push_manifest(body, OCI_MANIFEST)
        new = Descriptor(
            media_type=OCI_MANIFEST,
            digest=result.digest,
            size=len(body),
            annotations=row.annotations,
            platform=row.platform,
            artifact_type=row.artifact_type,
            extra=row.extra,
        )
        return new, result

    async def _image(self, manifest: Manifest, platform: Platform | None) -> tuple[bytes, ImageResult]:
        """Convert one image and store all but its manifest; the manifest's body."""
        if manifest.config.media_type not in CONFIG_TYPES:
            kind = manifest.config.media_type or manifest.descriptor.media_type
            raise MalformedInput(f"not a container image but {kind}", hint="only images with layers can be converted")
        body = await read_small_blob(self._source, manifest.config)
        config = parse_json_object(body, "the image's config")
        _check_platform(config, platform, self._options)
        outcomes = await self._convert_layers(manifest, _diff_ids(config, len(manifest.layers)))
        new_config = _new_config(body, config, [outcome.diff_id for outcome in outcomes])
        new_manifest = _new_manifest(manifest, new_config, outcomes)
        if sha256_digest(new_manifest) not in self._existing.manifests:
            await self._destination.push_bytes(new_config)
        shown = platform or Platform.from_json(config)
        layers = tuple(outcome.result for outcome in outcomes)
        return new_manifest, ImageResult(platform=str(shown), digest=sha256_digest(new_manifest), layers=layers)

    async def _convert_layers(self, manifest: Manifest, diff_ids: Sequence[DiffID]) -> list[Outcome]:
        tasks: list[asyncio.Future[Outcome]] = []
        base: ChainID | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for number, (descriptor, diff_id) in enumerate(zip(manifest.layers, diff_ids, strict=True)):
                    layer = SourceLayer(number=number, descriptor=descriptor, diff_id=diff_id, base=base)
                    tasks.append(group.create_task(self._layers.convert(layer, tasks[:number])))
                    base = chain_id(base, diff_id)
        except BaseExceptionGroup as failures:
            raise_first(failures)
        return [task.result() for task in tasks]


class _Existing:
    """What is at the destination's name now."""

    def __init__(self, root: Manifest | None, images: Sequence[Manifest]) -> None:
        self.root = root.descriptor.digest if root is not None else None
        self.manifests = {image.descriptor.digest for image in images}
        if root is not None:
            self.manifests.add(root.descriptor.digest)
            self.manifests.update(row.digest for row in (root.manifests if root.is_index else ()))
        layers = [layer for image in images for layer in image.layers]
        self.layers: Mapping[Digest, Descriptor] = {layer.digest: layer for layer in layers}
        self.blobs = self.layers.keys() | {image.config.digest for image in images}

    @classmethod
    async def read(cls, destination: ImageDestination) -> "_Existing":
        """What cannot be understood there counts as nothing: it is about to be replaced."""
        root = await destination.existing_root()
        if root is None:
            return cls(None, ())
        try:
            if not root.is_index:
                return cls(root, (root,))
            rows = [row for row in root.manifests if _is_image(row)]
            return cls(root, [await destination.existing_manifest(row) for row in rows])
        except (RegistryError, SourceNotFound, MalformedInput):
            return cls(None, ())


def _is_image(row: Descriptor) -> bool:
    unknown = row.platform is not None and row.platform.os == "unknown"
    return not unknown and _ATTESTATION not in row.annotations and row.media_type in _IMAGE_TYPES


def host_platform() -> Platform:
    """Of this machine, as images name it."""
    machine = host.machine()
    return Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine))


def matches(row: Platform | None, wanted: Platform) -> bool:
    """Whether an index's row is for a wanted platform; without a variant, any will do; arm64 is v8."""
    if row is None or (row.os, row.architecture) != (wanted.os, wanted.architecture):
        return False
    implied = "v8" if wanted.architecture == "arm64" else None
    return wanted.variant is None or (row.variant or implied) == wanted.variant


def _choose(rows: Sequence[Descriptor], options: ConvertOptions) -> set[int]:
    """Numbers of the rows to convert; SourceNotFound where a wanted platform is not there."""
    images = [number for number, row in enumerate(rows) if _is_image(row)]
    there = ", ".join(sorted({str(rows[number].platform) for number in images if rows[number].platform})) or "none"
    if options.all_platforms:
        return set(images)
    chosen: set[int] = set()
    for wanted in options.platforms or (host_platform(),):
        found = {number for number in images if matches(rows[number].platform, wanted)}
        if not found:
            raise SourceNotFound(f"no image for {wanted}", hint=f"--platform or --all-platforms; there: {there}")
        chosen |= found
    return chosen


def _check_platform(config: Mapping[str, Any], platform: Platform | None, options: ConvertOptions) -> None:
    """A single image must be of the platform that was asked for."""
    if platform is not None or not options.platforms:
        return
    own = Platform.from_json(config)
    if not any(matches(own, wanted) for wanted in options.platforms):
        raise SourceNotFound(f"the image is for {own}", hint="leave --platform out to convert it")


def _diff_ids(config: Mapping[str, Any], layers: int) -> list[DiffID]:
    rootfs = config.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, Mapping) else None
    if not isinstance(found, list) or len(found) != layers:
        count = len(found) if isinstance(found, list) else "no"
        raise MalformedInput(f"the image has {layers} layers, but its config {count} diff ids")
    return [DiffID(parse_digest(str(item))) for item in found]


def _new_config(body: bytes, config: Mapping[str, Any], diff_ids: Sequence[DiffID]) -> bytes:
    """The config with other diff ids; byte for byte the old one where they are the same."""
    if list(config["rootfs"]["diff_ids"]) == list(diff_ids):
        return body
    return encode_json({**config, "rootfs": {**config["rootfs"], "diff_ids": list(diff_ids)}})


def _new_manifest(manifest: Manifest, config: bytes, outcomes: Sequence[Outcome]) -> bytes:
    """An OCI manifest with everything else that the old one says."""
    old = manifest.config
    descriptor = Descriptor(
        media_type=OCI_CONFIG,
        digest=sha256_digest(config),
        size=len(config),
        annotations=old.annotations,
        platform=old.platform,
        artifact_type=old.artifact_type,
        extra={key: value for key, value in old.extra.items() if key != "data"},  # an inlined copy of the old config
    )
    layers = [outcome.descriptor.to_json() for outcome in outcomes]
    return encode_json(
        {**manifest.document, "mediaType": OCI_MANIFEST, "config": descriptor.to_json(), "layers": layers}
    )
