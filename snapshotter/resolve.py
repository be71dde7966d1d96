"""Which layer a Prepare is for, where it can be had, and which image it belongs to.

What a client sends differs: CRI, Docker and the transfer service give the image's reference and the layer's digest as
labels, nerdctl and others only what the manifest's annotations hold. The rest containerd knows (see `containerd`).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from fetcher.model import ImageHint
from fetcher.registry.errors import InvalidReference
from fetcher.registry.reference import Origin, Reference
from layerformat.annotations import LayerRef
from layerformat.digest import Digest
from layerformat.errors import FormatError
from snapshotter.containerd import LAYER_REFERENCE, SOURCE, Blob, Containerd, ContainerdUnavailable
from snapshotter.provider import Request, Resolved

log = structlog.get_logger(__name__)

CRI_IMAGE: Final = "containerd.io/snapshot/cri.image-ref"
CRI_LAYER: Final = "containerd.io/snapshot/cri.layer-digest"
CRI_MANIFEST: Final = "containerd.io/snapshot/cri.manifest-digest"

MAX_LAYERS: Final = 256
"""Manifests are looked for by the number of the layer in them; more layers than these are not tried."""
MAX_MANIFESTS: Final = 16
"""Images that are looked at for one layer."""
REMEMBERED: Final = 1024
REMEMBERED_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What is known of the image that is being pulled."""

    layers: Mapping[Digest, LayerRef | None]
    """Every layer from the bottom up; None for one that is not ours."""
    hint: ImageHint


class ImageResolver:
    """Asks the request's labels first and containerd for the rest; remembers an image while its layers are prepared.

    `known_hosts` gives registry hosts with their ports. containerd notes the sources of a blob without the port, so
    `registry.corp:5000` is found again only among these and the images that are there already.
    """

    def __init__(self, containerd: Containerd, known_hosts: Callable[[], Iterable[str]] = tuple) -> None:
        self._containerd = containerd
        self._known_hosts = known_hosts
        self._images: OrderedDict[tuple[str, Digest], tuple[float, Image]] = OrderedDict()
        self._lock = asyncio.Lock()

    async def resolve(self, request: Request) -> Resolved | None:
        labels = request.labels
        ref = LayerRef.from_annotations(labels)
        digest = labels.get(CRI_LAYER)
        if ref is not None and digest is not None and digest != ref.digest:
            raise FormatError(f"the annotations describe layer {ref.digest}, the manifest has {digest}: stale")
        if ref is None and digest is None:
            return None
        wanted = Digest(digest or "") if ref is None else ref.digest
        image = await self._image(request, wanted)
        ref = ref or (image.layers.get(wanted) if image is not None else None)
        if ref is None:
            return None
        origins = (*_label_origins(labels), *(image.hint.origins if image is not None else ()))
        return Resolved(ref=ref, origins=tuple(dict.fromkeys(origins)), image=image.hint if image is not None else None)

    async def _image(self, request: Request, layer: Digest) -> Image | None:
        """None, with a log line, if containerd can not be asked or does not know."""
        if request.namespace is None:
            log.debug("request_without_namespace", target=request.target)
            return None
        async with self._lock:
            if (known := self._recall(request.namespace, layer)) is not None:
                return known
            try:
                image = await self._look_up(request, request.namespace, layer)
            except ContainerdUnavailable as exc:
                log.warning("containerd_not_asked", layer=layer, error=str(exc))
                return None
            if image is None:
                log.debug("image_not_found", layer=layer, namespace=request.namespace, depth=request.depth)
            else:
                self._remember(request.namespace, image)
            return image

    def _recall(self, namespace: str, layer: Digest) -> Image | None:
        since, image = self._images.get((namespace, layer), (0.0, None))
        return image if time.monotonic() - since < REMEMBERED_S else None

    def _remember(self, namespace: str, image: Image) -> None:
        for layer in image.layers:
            self._images[namespace, layer] = (time.monotonic(), image)
            self._images.move_to_end((namespace, layer))
        while len(self._images) > REMEMBERED:
            self._images.popitem(last=False)

    async def _look_up(self, request: Request, namespace: str, layer: Digest) -> Image | None:
        manifests = await self._manifests(request, namespace, layer)
        if not manifests:
            return None
        # Latest first already; and the one being pulled has the layer in the right place.
        manifests.sort(key=lambda found: _position(found[1], layer) != request.depth)
        blob, document = manifests[0]
        layers = _layers(document)
        origins = (*_label_origins(request.labels), *await self._origins(namespace, [each for each, _ in manifests]))
        hint = ImageHint(
            name=request.labels.get(CRI_IMAGE),
            manifest_digest=Digest(blob.digest),
            layers=tuple(ref for ref in layers.values() if ref is not None),
            origins=tuple(dict.fromkeys(origins)),
        )
        return Image(layers=layers, hint=hint)

    async def _manifests(self, request: Request, namespace: str, layer: Digest) -> list[tuple[Blob, dict[str, Any]]]:
        named = request.labels.get(CRI_MANIFEST)
        blobs = [blob] if named is not None and (blob := await self._containerd.blob(namespace, named)) else []
        blobs = blobs or await self._containerd.blobs(namespace, _filters([request.depth], layer))
        blobs = blobs or await self._containerd.blobs(namespace, _filters(range(MAX_LAYERS), layer))
        # Images share layers, a common base is in hundreds: the one being pulled was touched last.
        blobs = sorted(blobs, key=lambda blob: blob.updated_ns, reverse=True)[:MAX_MANIFESTS]
        found = [(blob, _manifest(await self._containerd.read(namespace, blob))) for blob in blobs]
        return [(blob, document) for blob, document in found if _position(document, layer) is not None]

    async def _origins(self, namespace: str, manifests: Iterable[Blob]) -> list[Origin]:
        """Where the manifests were seen. Of several hosts that could be meant, those with a port come first."""
        hosts = [*self._known_hosts(), *await self._image_hosts(namespace)]
        origins: list[Origin] = []
        for key, value in (label for blob in manifests for label in sorted(blob.labels.items())):
            if key.startswith(SOURCE):
                bare = key.removeprefix(SOURCE)
                candidates = [host for host in hosts if _without_port(host) == bare]
                candidates.append(f"[{bare}]" if ":" in bare else bare)
                origins += [Origin(host=host, repository=name) for host in candidates for name in value.split(",")]
        return origins

    async def _image_hosts(self, namespace: str) -> list[str]:
        names = await self._containerd.image_names(namespace)
        references = (_reference(name) for name, _ in names)
        return [reference.host for reference in references if reference is not None]


def _label_origins(labels: Mapping[str, str]) -> tuple[Origin, ...]:
    reference = _reference(labels.get(CRI_IMAGE, ""))
    return () if reference is None else (reference.origin,)


def _reference(name: str) -> Reference | None:
    """None for what is no reference: images can be called anything."""
    try:
        return Reference.parse(name)
    except InvalidReference:
        return None


def _without_port(host: str) -> str:
    """As Go's `url.Hostname`: also without an IPv6 address's brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _filters(numbers: Iterable[int], layer: Digest) -> list[str]:
    return [f'labels."{LAYER_REFERENCE}{number}"=={layer}' for number in numbers]


def _manifest(body: bytes) -> dict[str, Any]:
    """The document, or an empty one if the blob is no manifest."""
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _descriptors(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    layers = document.get("layers")
    return [each for each in layers if isinstance(each, dict)] if isinstance(layers, list) else []


def _position(document: Mapping[str, Any], layer: Digest) -> int | None:
    found = (number for number, each in enumerate(_descriptors(document)) if each.get("digest") == layer)
    return next(found, None)


def _layers(document: Mapping[str, Any]) -> dict[Digest, LayerRef | None]:
    return {Digest(str(each.get("digest"))): _layer(each) for each in _descriptors(document)}


def _layer(descriptor: Mapping[str, Any]) -> LayerRef | None:
    """None unless the annotations are sound and speak of this very blob: a tool that recompresses may keep them."""
    annotations = descriptor.get("annotations")
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        return None
    try:
        ref = LayerRef.from_annotations(annotations)
    except FormatError:
        return None
    return ref if ref is not None and ref.digest == descriptor.get("digest") else None
