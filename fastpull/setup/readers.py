"""Who reads from fastpull's layers, asked of the kernel's mount tables: whatever containerd and the daemon can tell.

An overlay keeps what lies below it alive when the layers' own mount points are gone. So neither an unmount that worked
nor a stopped daemon says that nobody reads any more.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fetcher import kernel

_LAYER = re.compile(r"(?:^|(?P<root>.*)/)layers/(?P<layer>[0-9a-f]{16})/fs$")
# containerd's shim mounts a container's root at <state>/<namespace>/<id>/rootfs.
_BUNDLE = re.compile(r"/([^/]+)/([^/]+)/rootfs$")
_SHORT_ID = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """One overlay mount of one mount namespace. `device` is the superblock's; `root_of` a process that lives on it."""

    device: str
    point: str
    lowers: tuple[str, ...]
    upper: str | None
    root_of: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A container (or whatever else mounted its layers). `unfinished`: its reads may still need the daemon."""

    name: str
    running: bool
    unfinished: bool

    def __str__(self) -> str:
        return f"{self.name} ({'running' if self.running else 'stopped, not removed'})"


def readers(root: Path, run: Path) -> list[Reader]:
    """Everything on this machine that stands on layers or snapshots below the daemon's `root`."""
    top = os.path.realpath(root)
    by_device: dict[str, list[Overlay]] = {}
    for overlay in overlays():
        if layers_of(overlay, top) or (overlay.upper or "").startswith(f"{top}/snapshots/"):
            by_device.setdefault(overlay.device, []).append(overlay)
    served = through_fuse(run)
    mounted = {str(point) for point, _ in kernel.mounts_below(Path(top, "layers"))}
    return sorted((_reader(group, top, mounted, served=served) for group in by_device.values()), key=str)


def _reader(group: list[Overlay], top: str, mounted: set[str], *, served: bool) -> Reader:
    """`group`: where one overlay is mounted."""
    bundles = [match for one in group if (match := _BUNDLE.search(one.point))]
    pids = [one.root_of for one in group if one.root_of is not None]
    if bundles:
        name = f"{bundles[0][1]}/{bundles[0][2][:_SHORT_ID]}"
    else:
        name = f"process {pids[0]}" if pids else group[0].point
    layers = {layer for one in group for layer in layers_of(one, top)}
    unfinished = any(is_unfinished(Path(top, "layers", layer), mounted, served=served) for layer in layers)
    return Reader(name=name, running=bool(pids), unfinished=unfinished)


def is_unfinished(layer: Path, mounted: Iterable[str], *, served: bool) -> bool:
    """Whether reads of a layer that is in use may need the daemon and the keeper.

    Nothing below a mount point of the layer is touched: with the daemon gone that could wait for ever. `served`: there
    is a FUSE session, and what was mounted through it goes through it for good, complete or not.
    """
    plain = str(layer / "fs") not in mounted and _has_entries(layer / "fs")  # unpacked by the eager plane
    return not plain and (served or not (layer / "verified").exists())


def _has_entries(directory: Path) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def through_fuse(run: Path) -> bool:
    """Whether the node's FUSE session is mounted."""
    return (Path(os.path.realpath(run)) / "fuse", "fuse") in kernel.mounts_below(run)


def layers_of(overlay: Overlay, top: str) -> list[str]:
    """Names of the layers below `top` that an overlay lies on.

    containerd shortens the paths of a long chain to relative ones; those count if there is such a layer.
    """
    found = []
    for lower in overlay.lowers:
        match = _LAYER.search(lower)
        if match is None:
            continue
        short = not lower.startswith("/") and Path(top, "layers", match["layer"]).exists()
        if short or match["root"] == top:
            found.append(match["layer"])
    return found


def overlays() -> Iterator[Overlay]:
    """Every overlay of every mount namespace."""
    seen: set[str] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # A process may end while it is looked at.
        with suppress(OSError):
            namespace = str((entry / "ns/mnt").readlink())
            if namespace not in seen:
                text = (entry / "mountinfo").read_text(errors="surrogateescape")
                seen.add(namespace)
                yield from parse(text, int(entry.name))


def parse(text: str, pid: int) -> Iterator[Overlay]:
    """The overlays of one mountinfo(5). Pure."""
    for line in text.splitlines():
        fields = line.split(" ")
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        if kind == "overlay":
            pairs = [_unescaped(option).partition("=")[::2] for option in options.split(",")]
            # From Linux 6.8 on lowers that were given one by one are shown so: lowerdir+=A,lowerdir+=B.
            lowers = [path for key, value in pairs if key in ("lowerdir", "lowerdir+") for path in value.split(":")]
            yield Overlay(
                device=fields[2],
                point=_unescaped(fields[4]),
                lowers=tuple(lowers),
                upper=next((value for key, value in pairs if key == "upperdir"), None),
                root_of=pid if fields[4] == "/" else None,
            )


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
