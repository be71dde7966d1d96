"""An image of two layers in a registry, nodes that pull it, and a start that reads a part of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fetcher.model import FetcherConfig, GovernorConfig, ImageHint, ProfilesConfig
from fetcher.node import Fetcher
from fetcher.planes.teardown import teardown
from fetcher.profiles.profile import Profile, Read, wanted_frames
from fetcher.registry import OCI_MANIFEST, Origin, RegistryConfig, encode_json
from layerformat.digest import Digest
from tests.harness.fake_registry import FakeRegistry
from tests.harness.layers import TestLayer

REPOSITORY = "team/app"
FRAME = 64 << 10
NAMES = ("upper:dir/17", "lower:dir/150", "upper:big", "lower:dir/3")
"""What a start reads: layer and file, in order."""


@dataclass(frozen=True)
class Image:
    """Two layers, and their manifest in a registry."""

    layers: dict[str, TestLayer]
    manifest: Digest
    registry: FakeRegistry

    @property
    def origin(self) -> Origin:
        return Origin(host=self.registry.host, repository=REPOSITORY)

    @property
    def hint(self) -> ImageHint:
        refs = tuple(layer.ref for layer in self.layers.values())
        return ImageHint(name="app", manifest_digest=self.manifest, layers=refs, origins=(self.origin,))

    def frames(self, profile: Profile) -> list[tuple[str, int]]:
        """Layer digest and frame number of what a profile names, in order."""
        tables = {layer.ref.diff_id: layer.index.frames for layer in self.layers.values()}
        digests = {layer.ref.diff_id: layer.ref.digest for layer in self.layers.values()}
        return [(digests[diff_id], number) for diff_id, number in wanted_frames(profile, tables)]

    def compressed_bytes(self, profile: Profile) -> int:
        tables = {layer.ref.digest: layer.index.frames for layer in self.layers.values()}
        return sum(tables[Digest(digest)][number].size for digest, number in self.frames(profile))

    def requests(self) -> list[tuple[str, int]]:
        """Layer digest and first frame of every request for data so far, in order."""
        found = []
        for layer in self.layers.values():
            starts = {frame.offset: frame.number for frame in layer.index.frames}
            for position, seen in enumerate(self.registry.requests):
                first = int((seen.range or "bytes=-1-").removeprefix("bytes=").split("-")[0] or -1)
                if seen.method == "GET" and seen.path.endswith(layer.ref.digest) and first in starts:
                    found.append((position, (layer.ref.digest, starts[first])))
        return [what for _, what in sorted(found)]


def served(registry: FakeRegistry, layers: dict[str, TestLayer]) -> Image:
    for layer in layers.values():
        registry.add_blob(REPOSITORY, layer.blob)
    rows = [{"mediaType": "x/y", "digest": layer.ref.digest, "size": layer.ref.size} for layer in layers.values()]
    manifest = registry.add_manifest(
        REPOSITORY, encode_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": rows})
    )
    return Image(layers, Digest(manifest), registry)


def node_config(top: Path, plane: str) -> FetcherConfig:
    top.mkdir()
    return FetcherConfig(
        root=top / "root",
        run=top / "run",
        registry=RegistryConfig(),
        data_plane=plane,
        background_fill=False,
        governor=GovernorConfig(fault_deadline_s=3, retry_interval_s=0.1, streams=1, prefetch_streams=1),
        profiles=ProfilesConfig(lookup_timeout_s=2),
    )


def another(config: FetcherConfig) -> FetcherConfig:
    """Another node."""
    return node_config(config.root.parent.with_name("b"), config.data_plane)


@asynccontextmanager
async def node(config: FetcherConfig) -> AsyncIterator[Fetcher]:
    """A fetcher; all that outlives it is taken away at the end."""
    try:
        async with Fetcher(config) as fetcher:
            yield fetcher
    finally:
        await asyncio.to_thread(teardown, config.root, config.run)


async def pulled(fetcher: Fetcher, image: Image) -> None:
    """What the snapshotter does for each layer of a pull."""
    for layer in image.layers.values():
        fetcher.announce(image.hint)
        await fetcher.admit(layer.ref, [image.origin])
        await fetcher.retain(layer.ref.digest)


async def start(fetcher: Fetcher, image: Image) -> None:
    """A container that reads NAMES."""
    paths = {name: await fetcher.mount(layer.ref.digest) for name, layer in image.layers.items()}
    for name in NAMES:
        which, _, file = name.partition(":")
        assert await asyncio.to_thread((paths[which] / file).read_bytes) == image.layers[which].files[file]


async def recorded(config: FetcherConfig, image: Image) -> Profile:
    async with node(config) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        profile = await fetcher.profiles.stop(image.manifest)
        assert profile is not None
        return profile


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def prefetched(fetcher: Fetcher) -> int:
    return fetcher.status().fetched_bytes["prefetch"]


def tar_range(image: Image, name: str) -> tuple[int, int]:
    which, _, file = name.partition(":")
    data = image.layers[which].files[file]
    at = image.layers[which].tar.index(data)
    return at, at + len(data)


def any_profile(image: Image) -> Profile:
    layers = tuple(layer.ref.diff_id for layer in image.layers.values())
    reads = (Read(0, 0, FRAME), Read(1, 0, 10))
    return Profile(layers=layers, reads=reads, recorded_at=datetime.now(UTC), duration_ms=1)
