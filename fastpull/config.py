"""The daemon's configuration: one TOML file and the command line, parsed once into frozen dataclasses.

    root = "/var/lib/fastpull"    # also: run_dir, address, containerd_address, log_level, remap_ids, registry_hosts

    [fetcher]                     # fields of fetcher.FetcherConfig: data_plane, background_fill, ...
    [fetcher.governor]            # fields of fetcher.GovernorConfig: streams, fault_streams, ...
    [profiles]                    # fields of fetcher.ProfilesConfig: record, push, window_s, ...
    [registry]                    # fields of fetcher.registry.RegistryConfig: plain_http, certs_dirs, ...

What is not in the file has its default; what is in it and unknown, or of another type, is an error that names it.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from fetcher.model import FetcherConfig
from fetcher.registry import RegistryConfig

T = TypeVar("T")

DEFAULT_FILE: Final = Path("/etc/fastpull/config.toml")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
DATA_PLANES: Final = ("auto", "fanotify", "fuse", "eager", "none")
"""`none`: no lazy layers, every image is pulled in full."""

MAX_SOCKET_BYTES: Final = 107
"""unix(7): 108 with the terminating zero."""

RECORD_MODES: Final = ("auto", "off")

_IN_MOUNT_OPTIONS: Final = ":,\\"
"""Characters that mean something in overlayfs' options, so the root must not have them."""

_NOT_IN_FILES: Final = frozenset({"environment", "credentials", "root", "run", "registry", "profiles"})
"""Fields of the nested dataclasses that are derived, or must not lie in a file."""


class ConfigError(Exception):
    """The configuration is wrong; one line that says where and what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """Everything `fastpull-snapshotter` is told."""

    root: Path = Path("/var/lib/fastpull")
    run_dir: Path = Path("/run/fastpull")
    address: Path | None = None
    """The gRPC socket; by default `fastpull.sock` in `run_dir`."""
    containerd_address: Path = Path("/run/containerd/containerd.sock")
    log_level: str = "info"
    remap_ids: bool = False
    """Give id-mapped mounts; has to agree with the capability `remap-ids` in containerd's configuration."""
    registry_hosts: tuple[str, ...] = ()
    """Registries not on the default port, as `host:port`: containerd notes where an image is from without it."""
    fetcher: FetcherConfig = field(default_factory=lambda: FetcherConfig(registry=RegistryConfig()))

    @property
    def socket(self) -> Path:
        return self.address or self.run_dir / "fastpull.sock"

    @property
    def admin_socket(self) -> Path:
        return self.run_dir / "admin.sock"


def load(path: Path | None, environment: Mapping[str, str], overrides: Mapping[str, Any]) -> DaemonConfig:
    """The file (`path`, or the default one if it exists), with `overrides` that are not None put over it.

    Overrides are fields of `DaemonConfig`, and `data_plane`. Raises ConfigError.
    """
    document = _read(path if path is not None else DEFAULT_FILE, needed=path is not None)
    registry = _build(RegistryConfig.from_environment(environment), document.pop("registry", {}), "registry")
    fetcher_table = document.pop("fetcher", {})
    profiles_table = document.pop("profiles", {})
    config = _build(DaemonConfig(), document, "")
    given = {name: value for name, value in overrides.items() if value is not None}
    plane = given.pop("data_plane", None)
    config = replace(config, **given)
    fetcher = FetcherConfig(registry=registry, root=config.root, run=config.run_dir)
    fetcher = _build(fetcher, fetcher_table, "fetcher")
    fetcher = replace(fetcher, profiles=_build(fetcher.profiles, profiles_table, "profiles"))
    if plane is not None:
        fetcher = replace(fetcher, data_plane=plane)
    return _checked(replace(config, fetcher=fetcher))


def _read(path: Path, *, needed: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        if needed:
            raise ConfigError(f"{path}: no such file") from None
        return {}
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def _checked(config: DaemonConfig) -> DaemonConfig:
    if not config.root.is_absolute() or any(character in str(config.root) for character in _IN_MOUNT_OPTIONS):
        raise ConfigError(f"root: {config.root} must be absolute and without any of {_IN_MOUNT_OPTIONS}")
    for socket in (config.socket, config.admin_socket):
        if len(os.fsencode(socket)) > MAX_SOCKET_BYTES:
            raise ConfigError(f"{socket}: a unix socket's path has at most {MAX_SOCKET_BYTES} bytes")
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(f"log_level: {config.log_level!r} is none of {', '.join(LOG_LEVELS)}")
    if config.fetcher.data_plane not in DATA_PLANES:
        raise ConfigError(f"fetcher.data_plane: {config.fetcher.data_plane!r} is none of {', '.join(DATA_PLANES)}")
    if config.fetcher.profiles.record not in RECORD_MODES:
        raise ConfigError(f"profiles.record: {config.fetcher.profiles.record!r} is none of {', '.join(RECORD_MODES)}")
    return config


def _build(base: T, table: Any, where: str) -> T:
    """`base` with what the table says."""
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: is not a table")
    hints = typing.get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in table.items():
        place = f"{where}.{key}" if where else key
        if key not in hints or (where and key in _NOT_IN_FILES):
            raise ConfigError(f"{place}: unknown setting")
        changes[key] = _convert(hints[key], value, getattr(base, key), place)
    return replace(base, **changes)  # type: ignore[type-var]


def _convert(hint: Any, value: Any, old: Any, place: str) -> Any:
    """A TOML value as the field's type: scalars, paths, sequences of either, and nested dataclasses."""
    if dataclasses.is_dataclass(hint):
        return _build(old, value, place)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert(next(each for each in arguments if each is not type(None)), value, old, place)
    if origin in (tuple, frozenset) and isinstance(value, list):
        return origin(_convert(arguments[0], each, None, f"{place}[{number}]") for number, each in enumerate(value))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if hint in (str, int, float, bool) and type(value) is hint:
        return value
    raise ConfigError(f"{place}: {value!r} is not {getattr(hint, '__name__', hint)}")
