"""containerd's effective configuration (`containerd config dump`), checked against what lazy loading needs. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpull.doctor.check import Check, fail, note, ok

AREA = "containerd config"
_SETUP = "sudo fastpull setup (--dry-run shows what it would change)"
TRANSFER = "io.containerd.transfer.v1.local"
CRI_V1 = "cri"
CRI_V2 = "io.containerd.grpc.v1.cri"
CRI_V3 = "io.containerd.cri.v1.images"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the configuration should say."""

    snapshotter: str
    socket: Path
    root: Path


def config_checks(config: Mapping[str, Any], release: tuple[int, int], expected: Expected) -> list[Check]:
    """Findings of an effective configuration.

    Args:
        config: the parsed TOML.
        release: containerd's major and minor version.
    """
    plugin = table(config, "proxy_plugins", expected.snapshotter)
    if not plugin:
        return [fail(AREA, "proxy plugin", f"proxy_plugins.{expected.snapshotter} is missing", _SETUP)]
    checks = [_proxy(plugin, expected)]
    if release >= (1, 7):  # 1.6 knows neither exports nor the transfer service
        checks += [_root_export(plugin, expected), _unpack(config, expected)]
    if release >= (2, 1):
        checks.append(_annotations(plugin, expected))
    return [*checks, *_rebase(plugin), *_cri(config, expected)]


def table(config: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The table at a path, empty where there is none."""
    found: Any = config
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _proxy(plugin: Mapping[str, Any], expected: Expected) -> Check:
    name = "proxy plugin"
    if plugin.get("type") != "snapshot":
        return fail(AREA, name, f"its type is {plugin.get('type')!r}, not 'snapshot'", _SETUP)
    if plugin.get("address") != str(expected.socket):
        return fail(
            AREA, name, f"it points at {plugin.get('address')}, the daemon listens on {expected.socket}", _SETUP
        )
    return ok(AREA, name, f"{expected.snapshotter} at {expected.socket}")


def _root_export(plugin: Mapping[str, Any], expected: Expected) -> Check:
    name = "exports.root"
    found = table(plugin, "exports").get("root")
    if found == str(expected.root):
        return ok(AREA, name, str(found))
    why = f"is {found}, not {expected.root}: kubelet and CRI then account disk space of the wrong file system"
    return note(AREA, name, why, _SETUP)


def _annotations(plugin: Mapping[str, Any], expected: Expected) -> Check:
    name = "remote snapshot annotations"
    if str(table(plugin, "exports").get("enable_remote_snapshot_annotations")).lower() == "true":
        return ok(AREA, name, "on")
    return note(AREA, name, "off: the image's name is then looked up in containerd, which takes longer", _SETUP)


def _unpack(config: Mapping[str, Any], expected: Expected) -> Check:
    name = "transfer service"
    entries = table(config, "plugins", TRANSFER).get("unpack_config") or []
    listed = [entry.get("snapshotter") for entry in entries if isinstance(entry, Mapping)]
    if expected.snapshotter not in listed:
        names = ", ".join(map(str, listed)) or "nothing"
        why = f"unpack_config lists {names}: pulls for {expected.snapshotter} will fail"
        return fail(AREA, name, why, _SETUP)
    if "overlayfs" not in listed:
        return fail(AREA, name, "unpack_config does not list overlayfs any more: ordinary pulls will fail", _SETUP)
    return ok(AREA, name, f"unpack_config lists {', '.join(map(str, listed))}")


def _rebase(plugin: Mapping[str, Any]) -> Sequence[Check]:
    if "rebase" not in (plugin.get("capabilities") or []):
        return []
    why = "'rebase' is among the capabilities: parallel unpacking then loses the layers' parents"
    return [fail(AREA, "capabilities", why, "remove 'rebase' from the plugin's capabilities")]


def _cri(config: Mapping[str, Any], expected: Expected) -> Sequence[Check]:
    """Kubernetes' side: nothing has to be set, but what is set has to fit together."""
    images = table(config, "plugins", CRI_V3) or table(config, "plugins", CRI_V2, "containerd")
    images = images or table(config, "plugins", CRI_V1, "containerd")
    if not images:
        return []
    checks = []
    if images.get("snapshotter") == expected.snapshotter and images.get("discard_unpacked_layers") is True:
        why = "discard_unpacked_layers is on: another snapshotter can then not use the images"
        checks.append(note(AREA, "CRI", why, "set discard_unpacked_layers = false"))
    chosen = images.get("snapshotter")
    checks.append(ok(AREA, "CRI", f"pods use {chosen} unless their runtime class says otherwise"))
    return checks
