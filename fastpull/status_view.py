"""`fastpull status` as data: images and their layers, each lazy or not and why not. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastpull.daemon_client import Daemon, Layer
from fastpull.local_images import LocalImage
from fetcher.registry import Descriptor
from layerformat.annotations import LayerRef
from layerformat.errors import FormatError

_EAGER = "not lazy: this machine serves only whole layers (fastpull doctor says why)"
_TWICE = re.compile(r"(\S+): \1@\S+: ")
_DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")


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
    rate_bytes_per_s: float | None = None
    last_error: str | None = None
    problem: str | None = None
    """What holds it up now; an error that was got over is only the last one."""
    loading: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLines:
    """One image that fastpull's snapshotter holds. Rates are known only where one looked before."""

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
    def waiting(self) -> int:
        """Reads that wait now."""
        return sum(layer.waiting for layer in self.layers)

    @property
    def loading(self) -> bool:
        """Whether some of it is still being fetched."""
        return any(layer.loading for layer in self.layers)

    @property
    def rate_bytes_per_s(self) -> float | None:
        """Compressed bytes received for it."""
        rates = [layer.rate_bytes_per_s for layer in self.layers if layer.rate_bytes_per_s is not None]
        return sum(rates) if rates else None

    @property
    def problem(self) -> str | None:
        """What went wrong last with one of its layers."""
        return next((layer.problem for layer in self.layers if layer.problem), None)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The registries it can be had from, in the order they are tried."""
        found = dict.fromkeys(source.partition("/")[0] for layer in self.layers for source in layer.sources)
        # containerd's own note of where an image came from leaves the port out.
        with_port = {host.rpartition(":")[0] for host in found if ":" in host}
        return tuple(host for host in found if host not in with_port)

    @property
    def local(self) -> float | None:
        """How much of the lazy layers is local, 0 to 1; None without lazy layers."""
        total = sum(layer.total_bytes for layer in self.layers)
        return sum(layer.local_bytes for layer in self.layers) / total if total else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "lazy_layers": self.lazy, "local": self.local, "waiting": self.waiting}


def image_lines(
    image: LocalImage,
    daemon: Daemon,
    snapshotter: str,
    profiles: Mapping[str, str] | None = None,
    rates: Mapping[str, float] | None = None,
) -> ImageLines:
    """What can be said of an image; `profiles` by manifest digest, in words; `rates` by layer digest, in bytes/s."""
    unpacked = snapshotter in image.unpacked
    layers = tuple(_line(layer, daemon, unpacked, (rates or {}).get(layer.digest)) for layer in image.layers)
    profile = (profiles or {}).get(image.digest, "none")
    return ImageLines(name=image.name, namespace=image.namespace, digest=image.digest, layers=layers, profile=profile)


def profile_words(row: Mapping[str, Any]) -> str:
    """What became of an image's start profile, from its row of `GET /v1/profiles`."""
    if row["recording"]:
        return f"recording this start, {row['reads']} reads"
    if row["frames_prefetched"]:
        packed = ", from a pack" if row["frames_packed"] else ""
        return f"replayed from {'this node' if row['source'] == 'local' else 'the registry'}{packed}"
    if row["problem"]:
        return f"unusable: {row['problem']}"
    return "recorded, for the next start here" if row["stored"] else "none"


def unlisted(images: Sequence[LocalImage], daemon: Daemon) -> list[Layer]:
    """The daemon's layers that belong to none of these images: of one being pulled, or of another namespace."""
    listed = {layer.digest for image in images for layer in image.layers}
    return [layer for digest, layer in daemon.layers.items() if digest not in listed]


def seconds_left(daemon: Daemon) -> float | None:
    """Until everything is local at the present rate; None where nothing is missing, or nothing comes."""
    missing = sum(layer.blob_bytes * (1 - layer.share) for layer in daemon.layers.values() if layer.state == "filling")
    return missing / daemon.rate_bytes_per_s if missing >= 1 and daemon.rate_bytes_per_s else None


def _line(layer: Descriptor, daemon: Daemon, unpacked: bool, rate: float | None) -> LayerLine:
    known = daemon.layers.get(layer.digest)
    if known is not None:
        return _known(layer, known, _problem(known, daemon, rate), rate)
    return LayerLine(
        digest=layer.digest, size=layer.size, lazy=False, why=_why_not(layer, daemon, unpacked), local=None
    )


def _known(layer: Descriptor, known: Layer, problem: str | None, rate: float | None) -> LayerLine:
    return LayerLine(
        digest=layer.digest,
        size=layer.size,
        lazy=known.plane != "eager",
        why=f"{_state(known)}; {problem}" if problem else _state(known),
        local=known.share,
        local_bytes=known.present_bytes,
        total_bytes=known.tar_bytes,
        fetched_bytes=sum(known.fetched.values()),
        waiting=known.waiting,
        sources=known.origins,
        rate_bytes_per_s=rate,
        last_error=known.last_error,
        problem=problem,
        loading=known.state == "filling",
    )


def _state(known: Layer) -> str:
    words = {
        "idle": "stored; nothing uses it",
        "filling": "loading" if known.share < 1 else "all here, being checked",
        "complete": "complete and verified",
        "corrupt": "corrupt",
    }
    said = words.get(known.state, known.state)
    return f"{said}; {_EAGER}" if known.plane == "eager" else said


def _problem(known: Layer, daemon: Daemon, rate: float | None) -> str | None:
    """The daemon keeps a layer's last error; while bytes arrive it has been got over."""
    if known.state == "corrupt":
        said = _shortened(known.last_error or "its digest is another")
        return f"what was fetched is not the layer: {said}; fastpull verify IMAGE checks the registry's copy"
    if known.last_error is None or known.state == "complete":
        return None
    held_up = daemon.rate_bytes_per_s == 0 or (known.waiting > 0 and rate == 0)
    return f"last error: {_shortened(known.last_error)}" if held_up else None


def _shortened(error: str) -> str:
    """Without the repository's second mention and most of each digest: a terminal's line is short."""
    return _DIGEST.sub(r"\1", _TWICE.sub(r"\1: ", error))


def _why_not(layer: Descriptor, daemon: Daemon, unpacked: bool) -> str:
    try:
        ref = LayerRef.from_annotations(layer.annotations)
    except FormatError as problem:
        return f"its annotations cannot be used: {problem}"
    if ref is None:
        return "not converted, so it was downloaded whole"
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
