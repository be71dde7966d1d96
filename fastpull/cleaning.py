"""What `fastpull clean` may remove: decided here, from what there is, without touching anything. Pure but for `survey`.

fastpull made a container if its root is one of fastpull's snapshots, and an image if fastpull's snapshotter holds it
unpacked and no other does.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastpull.local_images import LocalImage
from fastpull.nerdctl import Nerdctl

_STOPPED = frozenset({"created", "stopped", "exited", "dead", "unknown", ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container of nerdctl's."""

    id: str
    name: str
    image: str
    snapshotter: str
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What was asked for. `snapshotters` None means all; `force` includes what runs."""

    containers: bool
    images: bool
    snapshotters: frozenset[str] | None
    force: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Something that stays although it is in the scope, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be removed, in this order: containers, images."""

    containers: tuple[Container, ...]
    images: tuple[LocalImage, ...]
    kept: tuple[Kept, ...]

    @property
    def empty(self) -> bool:
        return not self.containers and not self.images


def make_plan(containers: Iterable[Container], images: Iterable[LocalImage], scope: Scope) -> Plan:
    """Decide about every container and image."""
    every = list(containers)
    ours = [one for one in every if _in_scope({one.snapshotter}, scope)] if scope.containers else []
    going = [one for one in ours if scope.force or not one.running]
    kept = [Kept(name=one.name, why="is running; --force removes it") for one in ours if one not in going]
    used = {one.image: one.name for one in every if one not in going}
    removed: list[LocalImage] = []
    for image in images if scope.images else []:
        why = _why_kept(image, used, scope)
        if why is None:
            removed.append(image)
        elif why:
            kept.append(Kept(name=image.name, why=why))
    return Plan(containers=tuple(going), images=tuple(removed), kept=tuple(kept))


def _in_scope(snapshotters: Iterable[str], scope: Scope) -> bool:
    return scope.snapshotters is None or any(name in scope.snapshotters for name in snapshotters)


def _why_kept(image: LocalImage, used: dict[str, str], scope: Scope) -> str | None:
    """None: it goes. Empty: it is none of our business. Else: why it stays."""
    if not _in_scope(image.unpacked, scope):
        return ""
    if image.name in used:
        return f"is used by container {used[image.name]}"
    others = image.unpacked - (scope.snapshotters or image.unpacked)
    return f"is also unpacked for {', '.join(sorted(others))}; --snapshotter all removes it" if others else None


def survey(nerdctl: Nerdctl) -> list[Container]:
    """Every container of the namespace, with its snapshotter."""
    ids = nerdctl.output("ps", "-a", "-q", "--no-trunc").split()
    if not ids:
        return []
    native = json.loads(nerdctl.output("container", "inspect", "--mode", "native", *ids))
    return [_container(row) for row in native]


def _container(row: dict[str, Any]) -> Container:
    labels = row.get("Labels") or {}
    process = row.get("Process") or {}
    status = process.get("Status") or {}
    word = str(status.get("Status", "")) if isinstance(status, dict) else str(status)
    return Container(
        id=str(row["ID"]),
        name=str(labels.get("nerdctl/name") or row["ID"][:12]),
        image=str(row.get("Image", "")),
        snapshotter=str(row.get("Snapshotter", "")),
        running=word not in _STOPPED,
    )


def remove(nerdctl: Nerdctl, plan: Plan) -> Sequence[str]:
    """Carry the plan out; what could not be removed, one line each."""
    failed = []
    for container in plan.containers:
        # Without -f a container that was started since the plan was made stays.
        words = ["rm", "-v", *(["-f"] if container.running else []), container.id]
        done = nerdctl.call(*words)
        failed += [f"{container.name}: {nerdctl.failure('rm', done).message}"] if done.returncode else []
    for image in plan.images:
        done = nerdctl.call("rmi", image.name)
        failed += [f"{image.name}: {nerdctl.failure('rmi', done).message}"] if done.returncode else []
    return failed
