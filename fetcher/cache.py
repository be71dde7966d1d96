"""Which released layers to give up when the cache is too large or the disk too full: a pure decision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Limits on what layers take on disk. Layers that a snapshot uses count, but are never given up."""

    max_bytes: int | None = None  # high watermark of all layers together; None: only free space counts
    low_ratio: float = 0.9  # once over the high watermark, go down to this part of it
    min_free_bytes: int = 1 << 30  # below this much free space released layers go, whatever max_bytes says


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A layer as the decision sees it; ``last_used`` in seconds of any one clock."""

    digest: str
    size: int
    last_used: float
    releasable: bool


def choose_evictions(layers: Iterable[Candidate], config: CacheConfig, free_bytes: int) -> list[str]:
    """The layers to evict, the longest unused first; none while neither limit is exceeded."""
    layers = list(layers)
    total = sum(layer.size for layer in layers)
    over_quota = config.max_bytes is not None and total > config.max_bytes
    excess = total - int(config.max_bytes * config.low_ratio) if over_quota and config.max_bytes is not None else 0
    excess = max(excess, config.min_free_bytes - free_bytes)
    chosen = []
    for layer in sorted((layer for layer in layers if layer.releasable), key=lambda layer: layer.last_used):
        if excess <= 0:
            break
        chosen.append(layer.digest)
        excess -= layer.size
    return chosen
