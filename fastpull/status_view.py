"""`fastpull status` as data: images and their layers, each lazy or not and why not. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastpull.daemon_client import Daemon, Layer
from fastpull.local_images import LocalImage
from fetcher.registry import Descriptor
from layerformat.annotations import LayerRef
from layerformat.errors import FormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLine:
    """One layer. `lazy` tells whether reads are served before it is complete; `why` explains it in words."""

    digest: str
    size: int
    lazy: bool
    why: str
    local: float | None
    local_bytes: int = 0
    total_bytes: int = 0
    fetched_bytes: int = 0
    waiting: int = 0
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLines:
    """One image that fastpull's snapshotter holds."""

    name: str
    namespace: str
    digest: str
    layers: tuple[LayerLine, ...]
    profile: str = "none"

    @property
    def lazy(self) -> int:
        """How many layers are lazy."""
        return sum(layer.lazy for layer in self.layers)

    @property
    def local(self) -> float | None:
        """How much of the lazy layers is local, 0 to 1; None without lazy layers."""
        total = sum(layer.total_bytes for layer in self.layers)
        return sum(layer.local_bytes for layer in self.layers) / total if total else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "lazy_layers": self.lazy, "local": self.local}


def image_lines(
    image: LocalImage, daemon: Daemon, snapshotter: str, profiles: Mapping[str, str] | None = None
) -> ImageLines:
    """What can be said of an image; `profiles` by manifest digest, in words."""
    unpacked = snapshotter in image.unpacked
    layers = tuple(_line(layer, daemon, unpacked) for layer in image.layers)
    profile = (profiles or {}).get(image.digest, "none")
    return ImageLines(name=image.name, namespace=image.namespace, digest=image.digest, layers=layers, profile=profile)


def profile_words(row: Mapping[str, Any]) -> str:
    """What became of an image's start profile, from its row of `GET /v1/profiles`."""
    if row["recording"]:
        return f"recording, {row['reads']} reads"
    if row["frames_prefetched"]:
        return f"replayed from {'this node' if row['source'] == 'local' else 'the registry'}"
    if row["problem"]:
        return f"unusable: {row['problem']}"
    return "recorded here" if row["stored"] else "none"


def _line(layer: Descriptor, daemon: Daemon, unpacked: bool) -> LayerLine:
    known = daemon.layers.get(layer.digest)
    if known is not None:
        return _lazy(layer, known)
    return LayerLine(
        digest=layer.digest, size=layer.size, lazy=False, why=_why_not(layer, daemon, unpacked), local=None
    )


def _lazy(layer: Descriptor, known: Layer) -> LayerLine:
    return LayerLine(
        digest=layer.digest,
        size=layer.size,
        lazy=True,
        why=_state(known),
        local=known.share,
        local_bytes=known.present_bytes,
        total_bytes=known.tar_bytes,
        fetched_bytes=sum(known.fetched.values()),
        waiting=known.waiting,
        sources=known.origins,
    )


def _state(known: Layer) -> str:
    words = {
        "idle": "known; nothing uses it",
        "filling": "loading; what is read comes first",
        "complete": "complete and verified",
        "corrupt": "what was fetched does not add up to the layer",
    }
    said = words.get(known.state, known.state)
    return f"{said}; last error: {known.last_error}" if known.last_error and known.state != "complete" else said


def _why_not(layer: Descriptor, daemon: Daemon, unpacked: bool) -> str:
    try:
        ref = LayerRef.from_annotations(layer.annotations)
    except FormatError as problem:
        return f"its annotations cannot be used: {problem}"
    if ref is None:
        return "not converted: was downloaded whole"
    if not unpacked:
        return "not pulled with this snapshotter"
    if daemon.plane == "none":
        return "the daemon runs without lazy loading"
    return "converted, but fell back to a whole download; the daemon's log says why"


def relevant(images: Sequence[LocalImage], snapshotter: str, wanted: str | None) -> list[LocalImage]:
    """The images to show: the one that was named (with or without its registry), or all this snapshotter holds."""
    if wanted is None:
        return [image for image in images if snapshotter in image.unpacked]
    return [image for image in images if image.name == wanted or image.name.endswith("/" + wanted)]
