"""The images containerd has: their layers, as their manifests name them, and which snapshotters hold them unpacked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fetcher.registry import Descriptor, InvalidReference, ProtocolViolation, Reference, descriptors
from snapshotter.containerd import Blob, Containerd, ContainerdUnavailable

_UNREACHED = "is containerd running, and is this root?"
_UNPACKED = "containerd.io/gc.ref.snapshot."


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalImage:
    """One image of one namespace, the platform that is present. `unpacked` names snapshotters."""

    name: str
    namespace: str
    digest: str
    layers: tuple[Descriptor, ...]
    unpacked: frozenset[str]


async def local_images(address: str, namespace: str) -> list[LocalImage]:
    """Every image of a namespace whose manifest and config are here.

    Raises:
        Failure: containerd cannot be reached.
    """
    async with Containerd(address) as containerd:
        try:
            names = await containerd.image_names(namespace)
            found = [await _image(containerd, namespace, name, digest) for name, digest in names]
        except ContainerdUnavailable as problem:
            raise Failure(str(problem), hint=_UNREACHED, code=ExitCode.UNAVAILABLE) from None
    return [image for image in found if image is not None]


async def image_present(address: str, namespace: str, image: str) -> bool:
    """Whether containerd has an image of that name. Raises Failure where containerd cannot be reached."""
    async with Containerd(address) as containerd:
        try:
            names = [name for name, _ in await containerd.image_names(namespace)]
        except ContainerdUnavailable as problem:
            raise Failure(str(problem), hint=_UNREACHED, code=ExitCode.UNAVAILABLE) from None
    return canonical(image) in names


def canonical(image: str) -> str:
    """An image's name as containerd stores it; what is no reference stays as it is."""
    try:
        return str(Reference.parse(image))
    except InvalidReference:
        return image


async def _image(containerd: Containerd, namespace: str, name: str, digest: str) -> LocalImage | None:
    manifest = await _manifest(containerd, namespace, digest)
    if manifest is None:
        return None
    document, found = manifest
    try:
        layers = descriptors(document, "layers")
        config = await containerd.blob(namespace, Descriptor.from_json(document.get("config")).digest)
    except ProtocolViolation:
        return None
    unpacked = [key.removeprefix(_UNPACKED) for key in (config.labels if config else {}) if key.startswith(_UNPACKED)]
    return LocalImage(name=name, namespace=namespace, digest=found, layers=layers, unpacked=frozenset(unpacked))


async def _manifest(containerd: Containerd, namespace: str, digest: str) -> tuple[Mapping[str, Any], str] | None:
    """The image manifest at `digest`, or the first one an index there names whose blob is here."""
    blob = await containerd.blob(namespace, digest)
    document = await _document(containerd, namespace, blob)
    if document is None or "manifests" not in document:
        return None if document is None else (document, digest)
    for child in _children(document):
        inner = await _document(containerd, namespace, await containerd.blob(namespace, child))
        if inner is not None and "layers" in inner and await _has_config(containerd, namespace, inner):
            return inner, child
    return None


async def _has_config(containerd: Containerd, namespace: str, manifest: Mapping[str, Any]) -> bool:
    config = manifest.get("config")
    digest = config.get("digest") if isinstance(config, Mapping) else None
    return isinstance(digest, str) and await containerd.blob(namespace, digest) is not None


def _children(index: Mapping[str, Any]) -> Sequence[str]:
    try:
        return [str(child.digest) for child in descriptors(index, "manifests")]
    except ProtocolViolation:
        return []


async def _document(containerd: Containerd, namespace: str, blob: Blob | None) -> Mapping[str, Any] | None:
    if blob is None:
        return None
    try:
        document = json.loads(await containerd.read(namespace, blob))
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
