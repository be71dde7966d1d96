"""The fetcher's value types, shared with the snapshotter and the command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from fetcher.cache import CacheConfig
from fetcher.registry import Origin, RegistryConfig
from layerformat.annotations import LayerRef
from layerformat.digest import Digest


class LayerUnavailable(Exception):
    """No origin gave a good index of the layer; it can only be had by an ordinary pull."""


class LayerState(StrEnum):
    """How far a layer is: known (nothing wants it), filling, complete (diff id matched), or corrupt (it did not)."""

    IDLE = "idle"
    FILLING = "filling"
    COMPLETE = "complete"
    CORRUPT = "corrupt"


class Priority(StrEnum):
    """Why a frame is fetched: a reader waits for it, a profile names it, or the rest of the layer is being filled."""

    FAULT = "fault"
    PREFETCH = "prefetch"
    FILL = "fill"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHint:
    """An image that is about to be used: its layers from the bottom up, and where they can be had."""

    name: str | None
    manifest_digest: Digest | None
    layers: tuple[LayerRef, ...]
    origins: tuple[Origin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a layer takes: bytes on disk now, and inodes of ours (not those inside its file system)."""

    size: int
    inodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorConfig:
    """Limits of the node's one fetch scheduler."""

    streams: int = 4  # concurrent range requests of the fill
    most_streams: int = 16  # the same where more of them bring more
    run_bytes: int = 4 << 20  # compressed bytes of one of them; less where there are more
    hint_run_bytes: int = 1 << 20  # the same for what lies around a fault
    busy_streams: int = 1  # of the fill while readers wait: what is queued in the network delays their bytes
    busy_run_bytes: int = 512 << 10
    fault_streams: int = 16  # concurrent range requests for waiting readers, beside those
    prefetch_streams: int = 32  # concurrent range requests of a profile's replay, mostly short ones
    prefetch_bytes: int = 8 << 20  # compressed bytes they may ask for at a time
    busy_prefetch_bytes: int = 1 << 20  # while readers wait for what no profile named; more where the link holds more
    readahead_bytes: int = 8 << 20  # compressed bytes fed ahead of a sequential reader at most
    decode_workers: int = 0  # threads that decompress and verify; 0: one per processor
    fault_deadline_s: float = 120.0  # a reader waits this long for sources that fail before its read fails with EIO
    retry_interval_s: float = 1.0  # between attempts when every source failed
    reserve_bytes: int = 256 << 20  # filling pauses while the file system has less than this free
    dirty_share: float = 0.9  # and above this share of the dirty pages from which on the kernel slows writers


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilesConfig:
    """What a node does with start profiles; see ``docs/profiles.md``."""

    record: str = "auto"  # "auto": the first start here of an image that has none; "off": only when asked
    replay: bool = True  # fetch first what a profile names
    predictions: bool = True  # or, for an image without one, what is likely to be read
    packs: bool = True  # in few requests, where a pack of the frames is attached to the image
    warm: bool = True  # and have it in the page cache before the program reads it
    push: bool = False  # attach what was recorded to the image, in its registry
    window_s: float = 60.0  # a recording ends so long after its first read
    lookup_timeout_s: float = 5.0  # for finding a profile in the registry
    push_timeout_s: float = 60.0
    unused_timeout_s: float = 60.0  # an announced image of which nothing more is taken into use is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class FetcherConfig:
    """Everything the fetcher is told. ``root`` must be on a file system with pre-content events for that plane."""

    root: Path = Path("/var/lib/fastpull")
    run: Path = Path("/run/fastpull")
    registry: RegistryConfig
    governor: GovernorConfig = field(default_factory=GovernorConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    profiles: ProfilesConfig = field(default_factory=ProfilesConfig)
    data_plane: str = "auto"
    background_fill: bool = True
    index_timeout_s: float = 30.0
    sync_interval_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatus:
    """One layer on the node, for status, metrics and reports."""

    digest: Digest
    state: LayerState
    plane: str
    mounted: bool
    frames: int
    frames_present: int
    blob_bytes: int
    tar_bytes: int
    present_bytes: int  # uncompressed bytes of the frames that are present
    waiting: int  # reads that wait for this layer now
    origins: tuple[str, ...]
    fetched_bytes: Mapping[str, int]  # compressed bytes by priority, since the daemon started
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetcherStatus:
    """The fetcher as a whole."""

    plane: str
    layers: tuple[LayerStatus, ...]
    fetched_bytes: Mapping[str, int]
    reused_bytes: int  # compressed size of frames copied from other layers of the node instead
    faults: int  # reads that had to wait, since the daemon started
    fault_wait_s: float  # how long they waited, summed
    events: int  # pre-content events, since the daemon started
    rate_bytes_per_s: float  # compressed bytes received over the last seconds
    keeper_pid: int | None
