"""What a conversion is told, and what it answers."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from converter.cuts import DEFAULT_FRAME_SIZE, CutPlan, Range, hot_ranges
from converter.errors import UsageError
from fetcher.registry import Platform
from layerformat.digest import DiffID, Digest

#: Where more effort stops paying. A layer of 970 MB of libraries and a Go tree, 256 KiB frames: level 1 gives 6 % more
#: bytes for 18 % less CPU in all, level 6 gives 3.6 % fewer bytes for 70 % more CPU.
DEFAULT_LEVEL: Final = 3
#: Hot ranges closer than this are fetched as one: a request takes processor time, here and in the registry, in which
#: the link would have brought as much. Of the 3,731 ranges of a PyTorch start 48 KiB leave 1,800 for 4.6 % more bytes,
#: 64 KiB 1,622 for 6.6 %.
_PROFILE_GAP: Final = 48 << 10
_CUTS_VERSION: Final = 2  # counted up whenever the same options would cut or pad differently


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Hot tar ranges of converted layers, by diff id of the padded tar: the common reads of a start profile."""

    ranges: Mapping[DiffID, tuple[Range, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """`platforms`: which ones to convert of an index; empty means the machine's own, unless `all_platforms`."""

    level: int = DEFAULT_LEVEL
    frame_size: int = DEFAULT_FRAME_SIZE
    jobs: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    profile: Profile | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.level <= 22:
            raise UsageError(f"level {self.level} is not from 1 to 22")
        if not 1 <= self.jobs <= 256:
            raise UsageError(f"jobs {self.jobs} is not from 1 to 256")
        if self.platforms and self.all_platforms:
            raise UsageError("a platform and all platforms exclude each other")
        try:
            CutPlan(frame_size=self.frame_size)
        except ValueError as exc:
            raise UsageError(str(exc)) from exc

    def plan(self, diff_id: DiffID | None) -> CutPlan:
        """How to cut the layer whose padded tar has `diff_id`, where that is known."""
        hot = self.profile.ranges.get(diff_id, ()) if self.profile is not None and diff_id is not None else ()
        return CutPlan(frame_size=self.frame_size, hot=hot_ranges(hot, gap=_PROFILE_GAP))

    def parameters(self, plan: CutPlan) -> str:
        """Everything that decides a converted layer's bytes but its source: equal text, equal blob."""
        text = f"v{_CUTS_VERSION};level={self.level};frame={plan.frame_size}"
        if plan.hot:
            text += f";cold={plan.cold_size};hot={hashlib.sha256(repr(plan.hot).encode()).hexdigest()[:16]}"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerResult:
    """What became of one layer. Sizes are bytes of the blobs; `action`: converted, reused, copied, mounted, kept."""

    source: Digest
    digest: Digest
    action: str
    source_size: int
    size: int
    missed_profile: bool = False  # its diff id, and so its part of the profile, was not known before it was cut

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "source": self.source,
            "digest": self.digest,
            "action": self.action,
            "sourceSize": self.source_size,
            "size": self.size,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """One platform's image. `digest` is of its manifest."""

    platform: str | None
    digest: Digest
    layers: tuple[LayerResult, ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        layers = [layer.to_json() for layer in self.layers]
        return {"platform": self.platform, "digest": self.digest, "layers": layers}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertResult:
    """What `destination` now stands for. `changed` is False when it did so before."""

    source: str
    destination: str
    digest: Digest
    changed: bool
    images: tuple[ImageResult, ...]
    seconds: float

    @property
    def missed_profile(self) -> bool:
        """Whether the same conversion once more would cut a layer along the profile that it could not this time."""
        return any(layer.missed_profile for image in self.images for layer in image.layers)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "source": self.source,
            "destination": self.destination,
            "digest": self.digest,
            "changed": self.changed,
            "images": [image.to_json() for image in self.images],
            "seconds": round(self.seconds, 3),
        }
