"""The terms of the domain: an active snapshot or a view has a *key*, a committed one a *name*, in one namespace."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NewType

from layerformat.digest import Digest

SnapshotKey = NewType("SnapshotKey", str)
"""The key of an active snapshot or the name of a committed one. Opaque, often `<namespace>/<number>/<client's key>`."""

SNAPSHOT_REF = "containerd.io/snapshot.ref"
"""On a Prepare: the chain id that the client is about to build, and permission to answer that it exists already."""

UID_MAPPING = "containerd.io/snapshot/uidmapping"
GID_MAPPING = "containerd.io/snapshot/gidmapping"

MAX_LABEL_BYTES = 4096
"""Limit on the key and the value of one label together, as containerd has it."""


class Kind(enum.IntEnum):
    """The numbers are those of the wire (`containerd.services.snapshots.v1.Kind`) and of the database."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    size: int = 0
    """Bytes on disk."""
    inodes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    name: SnapshotKey
    parent: SnapshotKey | None
    kind: Kind
    created_ns: int
    """Nanoseconds since the epoch."""
    updated_ns: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One snapshot of a chain, as far as its files are concerned."""

    id: int
    layer: Digest | None = None
    """The layer that holds the files; None when they are in the snapshot's own directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A snapshot that can be mounted, and what lies below it."""

    id: int
    kind: Kind
    parents: tuple[Member, ...]
    """The nearest first."""
    labels: Mapping[str, str]

    @property
    def layers(self) -> frozenset[Digest]:
        return frozenset(member.layer for member in self.parents if member.layer is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One entry for mount(2), as containerd wants it."""

    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the snapshots lie under the root. Paths are short: a chain of them has to fit one page of mount options."""

    root: Path

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def database(self) -> Path:
        return self.root / "metadata.db"

    def upper(self, snapshot: int) -> Path:
        return self.snapshots / str(snapshot) / "fs"

    def work(self, snapshot: int) -> Path:
        return self.snapshots / str(snapshot) / "work"
