"""What `docker save` writes: an archive with a `manifest.json`, a config, and layers that are usually plain tars."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final

from converter.compress import GZIP_MAGIC, ZSTD_MAGIC
from converter.errors import MalformedInput, SourceNotFound
from converter.files import Extent, Files, required
from converter.media import DOCKER_CONFIG, DOCKER_LAYER
from converter.sources import aclosing_if_possible, make_manifest, reading
from fetcher.registry import DOCKER_MANIFEST, Descriptor, Manifest, Origin, Reference, RegistryError, encode_json
from fetcher.registry.descriptor import parse_json_object
from layerformat.digest import Digest, parse_digest, sha256_digest

_HASH_BYTES: Final = 1 << 20


class DockerArchiveSource:
    """The archive has no manifest in a registry's sense: one is made, with digests of the files as they are."""

    origin: Origin | None = None

    def __init__(self, files: Files, name: str | None) -> None:
        self._files = files
        self._name = name
        self._blobs: dict[Digest, Extent] = {}

    async def root(self) -> Manifest:
        with reading(self._files.label):
            return await asyncio.to_thread(self._make_manifest)

    async def manifest(self, descriptor: Descriptor) -> Manifest:
        raise MalformedInput(f"{self._files.label}: an archive of docker save has no index")

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        with reading(self._files.label):
            async with aclosing_if_possible(self._blobs[descriptor.digest].verified(descriptor.digest)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def blob_range(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        with reading(self._files.label):
            return await asyncio.to_thread(self._blobs[descriptor.digest].read, offset, length)

    def _make_manifest(self) -> Manifest:
        row = self._choose()
        config = required(self._files, str(row.get("Config")))
        body = config.document()
        digest = sha256_digest(body)
        self._blobs[digest] = config
        paths, diff_ids = row.get("Layers") or [], _diff_ids(body, self._files.label)
        if len(paths) != len(diff_ids):
            raise MalformedInput(f"{self._files.label}: {len(paths)} layers but {len(diff_ids)} diff ids")
        layers = [self._layer(str(path), diff_id) for path, diff_id in zip(paths, diff_ids, strict=True)]
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": Descriptor(media_type=DOCKER_CONFIG, digest=digest, size=len(body)).to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        return make_manifest(encode_json(document), DOCKER_MANIFEST, self._files.label)

    def _choose(self) -> dict[str, Any]:
        if self._files.locate("manifest.json") is None:
            raise SourceNotFound(f"{self._files.label}: no manifest.json there", hint="is it an oci-archive?")
        try:
            rows = json.loads(required(self._files, "manifest.json").document())
        except ValueError as exc:
            raise MalformedInput(f"{self._files.label}: manifest.json is not JSON") from exc
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise MalformedInput(f"{self._files.label}: manifest.json is not a list of images")
        found = [row for row in rows if self._name is None or _is_named(row, self._name)]
        if len(found) != 1:
            names = ", ".join(sorted(tag for row in rows for tag in row.get("RepoTags") or [])) or "none"
            raise SourceNotFound(f"{self._files.label}: {len(found)} images match", hint=f"names there: {names}")
        row: dict[str, Any] = found[0]
        return row

    def _layer(self, path: str, diff_id: Digest) -> Descriptor:
        """A plain layer's digest is its diff id; only a compressed one has to be read for it."""
        extent = required(self._files, path)
        head = extent.read(0, 4)
        compression = "gzip" if head.startswith(GZIP_MAGIC) else "zstd" if head == ZSTD_MAGIC else ""
        digest = _hash(extent) if compression else diff_id
        self._blobs[digest] = extent
        media_type = DOCKER_LAYER + (f".{compression}" if compression else "")
        return Descriptor(media_type=media_type, digest=digest, size=extent.size)


def _hash(extent: Extent) -> Digest:
    hasher = hashlib.sha256()
    for position in range(0, extent.size, _HASH_BYTES):
        hasher.update(extent.read(position, _HASH_BYTES))
    return parse_digest(f"sha256:{hasher.hexdigest()}")


def _diff_ids(config: bytes, label: str) -> list[Digest]:
    rootfs = parse_json_object(config, f"{label}: config").get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    try:
        return [parse_digest(str(item)) for item in found or []]
    except ValueError as exc:
        raise MalformedInput(f"{label}: a diff id of the config is no digest") from exc


def _is_named(row: dict[str, Any], name: str) -> bool:
    """Names are compared in their full form: `debian` is `docker.io/library/debian:latest`."""
    return _canonical(name) in {_canonical(str(tag)) for tag in row.get("RepoTags") or []}


def _canonical(name: str) -> str:
    try:
        return str(Reference.parse(name))
    except RegistryError:
        return name
