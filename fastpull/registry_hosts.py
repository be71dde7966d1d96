"""Registry hosts with ports that this node has heard of: by its configuration, Docker's logins, and `certs.d`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fastpull.config import DaemonConfig

_DIRECTORY_PORT: Final = re.compile(r"_([0-9]+)_$")
"""containerd also takes `certs.d/host_5000_` for `host:5000`."""


class RegistryHosts:
    """Looks anew each time it is asked, once per image: the files are small and change while the daemon runs."""

    def __init__(self, config: DaemonConfig) -> None:
        self._config = config

    def names(self) -> tuple[str, ...]:
        """`host:port`, each once, what was configured first."""
        registry = self._config.fetcher.registry
        found = (
            *self._config.registry_hosts,
            *(host for host in sorted(registry.plain_http) if "/" not in host),
            *(name for directory in registry.certs_dirs for name in _directories(directory)),
            *_logins(registry.docker_config),
        )
        return tuple(dict.fromkeys(host for host in found if re.search(r":[0-9]+$", host)))


def _directories(certs: Path) -> Iterator[str]:
    if certs.is_dir():
        for path in sorted(certs.iterdir()):
            yield _DIRECTORY_PORT.sub(r":\1", path.name)


def _logins(path: Path | None) -> Iterator[str]:
    """The keys of `auths`, which are hosts or URLs. A file that can not be read has none: the fetcher reports it."""
    try:
        document = json.loads(path.read_text()) if path is not None else {}
    except (OSError, ValueError):
        return
    for key in ("auths", "credHelpers"):
        for name in document.get(key) or {} if isinstance(document, dict) else {}:
            yield re.sub(r"^https?://", "", name).partition("/")[0]
