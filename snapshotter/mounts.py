"""From a chain of snapshots to what containerd has to mount. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from layerformat.digest import Digest
from snapshotter.errors import InvalidArgument
from snapshotter.model import GID_MAPPING, UID_MAPPING, Chain, Kind, Layout, Member, Mount, Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    overlay: tuple[str, ...] = ()
    """What every overlay gets (`index=off`, `userxattr`), as probed."""
    remap_ids: bool = False
    """Ask for id-mapped mounts where containerd gave mappings. Has to agree with the capability `remap-ids` in
    containerd's configuration: without it containerd has changed the owners of the files itself already."""


def mounts(
    chain: Chain,
    *,
    layout: Layout,
    lowers: Mapping[Digest, Path],
    options: MountOptions = MountOptions(),
) -> tuple[Mount, ...]:
    """The mounts, as containerd's overlay snapshotter gives them. `lowers`: a directory for each of the chain's layers.

    A snapshot without parents is its own directory, a view of one parent is that parent's: overlayfs needs two.
    """
    mapping = _id_mapping(chain.labels) if options.remap_ids else ()
    if not chain.parents:
        access = "ro" if chain.kind is Kind.VIEW else "rw"
        return (_bind(layout.upper(chain.id), access, mapping),)
    paths = [lower_path(member, layout=layout, lowers=lowers) for member in chain.parents]
    if chain.kind is Kind.VIEW and len(paths) == 1:
        return (_bind(paths[0], "ro", mapping),)
    own: tuple[str, ...] = ()
    if chain.kind is Kind.ACTIVE:
        own = (f"workdir={layout.work(chain.id)}", f"upperdir={layout.upper(chain.id)}")
    lowerdir = "lowerdir=" + ":".join(map(str, paths))
    return (Mount(type="overlay", source="overlay", options=(*mapping, *own, lowerdir, *options.overlay)),)


def lower_path(member: Member, *, layout: Layout, lowers: Mapping[Digest, Path]) -> Path:
    return layout.upper(member.id) if member.layer is None else lowers[member.layer]


def _bind(source: Path, access: str, mapping: tuple[str, ...]) -> Mount:
    return Mount(type="bind", source=str(source), options=(*mapping, access, "rbind"))


def _id_mapping(labels: Mapping[str, str]) -> tuple[str, ...]:
    found = (("uidmap", labels.get(UID_MAPPING)), ("gidmap", labels.get(GID_MAPPING)))
    return tuple(f"{option}={value}" for option, value in found if value is not None)


def mapped_root(labels: Mapping[str, str]) -> Owner | None:
    """Who owns the root directory of a snapshot with id mappings: the host's ids for the container's 0.

    A mapping is `container:host:size[,...]`. None where there are none; InvalidArgument for one missing or malformed.
    """
    uid_map, gid_map = labels.get(UID_MAPPING), labels.get(GID_MAPPING)
    if uid_map is None and gid_map is None:
        return None
    return Owner(uid=_host_root(UID_MAPPING, uid_map or ""), gid=_host_root(GID_MAPPING, gid_map or ""))


def _host_root(label: str, text: str) -> int:
    for entry in text.split(","):
        numbers = entry.split(":")
        if len(numbers) != 3 or not all(number.isascii() and number.isdigit() for number in numbers):
            raise InvalidArgument(f"label {label}: {text!r} is not container:host:size[,...]")
        container, host, size = map(int, numbers)
        if container == 0 and size > 0:
            return host
    raise InvalidArgument(f"label {label}: {text!r} maps no host id to 0")
