"""What containerd's configuration must say for lazy loading, and the edits that make it say so. Pure.

Sources: containerd's docs/PLUGINS.md (proxy plugins), docs/transfer.md (unpack_config: naming any replaces the
default, so overlayfs has to be named too), docs/cri/config.md for each version of the format.
"""

import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fastpull.doctor.config import CRI_V1, CRI_V2, TRANSFER, table
from fastpull.setup.toml_edit import AppendTable, CannotEdit, Edit, Path, SetKey

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}
_RUNTIME_V3 = "io.containerd.cri.v1.runtime"
_IMAGES_V3 = "io.containerd.cri.v1.images"
HANDLER = "fastpull"


class Cri(StrEnum):
    """What Kubernetes' pods get: nothing, a runtime class of their own, or lazy loading for all."""

    NONE = "none"
    RUNTIME_CLASS = "runtimeclass"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The installation, as containerd has to know it. `release` is containerd's major and minor version."""

    release: tuple[int, int]
    snapshotter: str
    socket: str
    root: str
    cri: Cri


def edits(text: str, wanted: Wanted) -> list[Edit]:
    """The edits for a configuration file with this text (empty for none).

    Raises:
        CannotEdit: no TOML, or a version of the format that does not exist.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise CannotEdit(f"not valid TOML: {problem}") from None
    version = _version(document, wanted.release)
    head: list[Edit] = [] if document else [SetKey(path=(), key="version", value=version)]
    return [*head, *_proxy(wanted), *_unpack(document, wanted), *_cri(version, document, wanted)]


def _version(document: Mapping[str, Any], release: tuple[int, int]) -> int:
    if not document:
        return 4 if release >= (2, 3) else 3 if release >= (2, 0) else 2
    version = document.get("version", 1)
    if version not in (1, 2, 3, 4):
        raise CannotEdit(f"version = {version!r}: only 1 to 4 are known")
    if version == 1 and release >= (2, 0):
        raise CannotEdit("version 1 of the format is not read by containerd 2; run `containerd config migrate` first")
    return int(version)


def _proxy(wanted: Wanted) -> list[Edit]:
    path: Path = ("proxy_plugins", wanted.snapshotter)
    exports = (*path, "exports")
    return [
        SetKey(path=path, key="type", value="snapshot"),
        SetKey(path=path, key="address", value=wanted.socket),
        SetKey(path=exports, key="root", value=wanted.root),
        SetKey(path=exports, key="enable_remote_snapshot_annotations", value="true"),
    ]


def _unpack(document: Mapping[str, Any], wanted: Wanted) -> list[Edit]:
    """The transfer service (1.7 and later) unpacks only for snapshotters it has been told of."""
    if wanted.release < (1, 7):
        return []
    given = table(document, "plugins", TRANSFER).get("unpack_config")
    rows = [row for row in given if isinstance(row, Mapping)] if isinstance(given, list) else []
    listed = {row.get("snapshotter") for row in rows}
    names = [] if rows else ["overlayfs"]
    names += [] if wanted.snapshotter in listed else [wanted.snapshotter]
    path = ("plugins", TRANSFER, "unpack_config")
    return [AppendTable(path=path, values={"platform": _platform(), "snapshotter": name}) for name in names]


def _platform() -> str:
    machine = platform.machine()
    return f"linux/{_MACHINES.get(machine, machine)}"


def _cri(version: int, document: Mapping[str, Any], wanted: Wanted) -> list[Edit]:
    if wanted.cri is Cri.NONE:
        return []
    if wanted.cri is Cri.ALL:
        return _cri_for_all(version, wanted)
    return _cri_handler(version, document, wanted)


def _cri_for_all(version: int, wanted: Wanted) -> list[Edit]:
    path: Path = {
        1: ("plugins", CRI_V1, "containerd"),
        2: ("plugins", CRI_V2, "containerd"),
        3: ("plugins", _IMAGES_V3),
        4: ("plugins", _IMAGES_V3),  # 4 moved the servers' settings only
    }[version]
    chosen: list[Edit] = [SetKey(path=path, key="snapshotter", value=wanted.snapshotter)]
    if wanted.release < (2, 1):
        # Later versions would give up the transfer service for it, and need it no more.
        chosen.append(SetKey(path=path, key="disable_snapshot_annotations", value=False))
    return chosen


def _cri_handler(version: int, document: Mapping[str, Any], wanted: Wanted) -> list[Edit]:
    """A runtime handler beside the others; pods choose it by a RuntimeClass, every other pod stays as it is."""
    if wanted.release < (1, 7) or version == 1:
        raise CannotEdit(
            "a runtime class with its own snapshotter needs containerd 1.7 or later; use --cri none or all"
        )
    base: Path = ("plugins", CRI_V2, "containerd") if version == 2 else ("plugins", _RUNTIME_V3, "containerd")
    handler = (*base, "runtimes", HANDLER)
    made: list[Edit] = [
        SetKey(path=handler, key="runtime_type", value="io.containerd.runc.v2"),
        SetKey(path=handler, key="snapshotter", value=wanted.snapshotter),
    ]
    systemd = table(document, *base, "runtimes", "runc", "options").get("SystemdCgroup")
    if isinstance(systemd, bool):
        made.append(SetKey(path=(*handler, "options"), key="SystemdCgroup", value=systemd))
    if version >= 3:
        # The image service has to unpack for the handler too (experimental in containerd 2.0, used since 2.3).
        images = ("plugins", _IMAGES_V3, "runtime_platforms", HANDLER)
        made.append(SetKey(path=images, key="platform", value=_platform()))
        made.append(SetKey(path=images, key="snapshotter", value=wanted.snapshotter))
    return made
