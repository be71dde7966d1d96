"""A provider whose layers are plain directories: everything the core may ask of one, without a network or mounts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from fetcher.model import ImageHint, LayerUnavailable, Usage
from fetcher.registry.reference import Origin
from layerformat.annotations import LayerRef
from layerformat.digest import DiffID, Digest, sha256_digest


class DirectoryLayers:
    """`mounted` says which layers show their files now; `released` and `admitted` count calls."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.mounted: set[Digest] = set()
        self.retained: set[Digest] = set()
        self.admitted: list[Digest] = []
        self.announced: list[ImageHint] = []
        self.unavailable: dict[Digest, Exception] = {}
        self.mounts_at_once = 0
        self._mounting = 0

    async def admit(self, ref: LayerRef, origins: Sequence[Origin]) -> None:
        self.admitted.append(ref.digest)
        await asyncio.sleep(0)
        if ref.digest in self.unavailable:
            raise self.unavailable[ref.digest]
        (self._root / ref.digest[7:23] / "fs").mkdir(parents=True, exist_ok=True)

    def announce(self, image: ImageHint) -> None:
        self.announced.append(image)

    async def retain(self, digest: Digest) -> None:
        if not (self._root / digest[7:23]).exists():
            raise LayerUnavailable(f"layer {digest} was never admitted")
        self.retained.add(digest)

    async def mount(self, digest: Digest) -> Path:
        self._mounting += 1
        self.mounts_at_once = max(self.mounts_at_once, self._mounting)
        await asyncio.sleep(0.001)
        self._mounting -= 1
        if not (self._root / digest[7:23]).exists():
            raise LayerUnavailable(f"layer {digest} is not on this node")
        self.mounted.add(digest)
        return self._root / digest[7:23] / "fs"

    async def release(self, digest: Digest) -> None:
        await asyncio.sleep(0.001)
        self.mounted.discard(digest)
        self.retained.discard(digest)

    def usage(self, digest: Digest) -> Usage:
        return Usage(size=4096, inodes=1)


def layer_ref(name: str) -> LayerRef:
    """A layer that exists in name only."""
    return LayerRef(
        version=1,
        digest=sha256_digest(name.encode()),
        size=1000,
        index_offset=500,
        index_size=100,
        index_digest=sha256_digest(b"index of " + name.encode()),
        diff_id=DiffID(sha256_digest(b"tar of " + name.encode())),
    )


def chain_ids(refs: Sequence[LayerRef]) -> list[str]:
    chain: list[str] = []
    for ref in refs:
        chain.append(sha256_digest(f"{chain[-1]} {ref.diff_id}".encode()) if chain else ref.diff_id)
    return chain
