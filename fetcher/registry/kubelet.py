"""Credentials from kubelet's credential provider plugins: how nodes of the large clouds log in without keys on disk.

https://kubernetes.io/docs/reference/config-api/kubelet-config.v1 (CredentialProviderConfig, in JSON) and
https://kubernetes.io/docs/reference/config-api/kubelet-credentialprovider.v1 (what a plugin reads and prints).
Service account tokens are not offered to plugins: we pull for the node, not for a pod.
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fetcher.registry.credentials import Credentials
from fetcher.registry.errors import CredentialsUnavailable, InvalidConfig
from fetcher.registry.exec_helper import run_helper

_AUTHORITY = re.compile(r"(?P<host>[^:/]+|\[[^\]]*\])(?::(?P<port>[0-9]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One entry of the configuration."""

    name: str
    match_images: tuple[str, ...]
    api_version: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


class KubeletProvider:
    """The plugins of one CredentialProviderConfig, in its order. The file is read when it is first needed."""

    def __init__(self, path: Path, directory: Path, environment: Mapping[str, str]) -> None:
        self.name = f"{path} (kubelet plugins)"
        self._path = path
        self._directory = directory
        self._environment = environment
        self._plugins: tuple[Plugin, ...] | None = None

    async def lookup(self, host: str, repository: str) -> Credentials | None:
        if self._plugins is None:
            self._plugins = parse_plugins(await asyncio.to_thread(_read, self._path), self._path)
        image = f"{host}/{repository}"
        for plugin in self._plugins:
            ours = any(matches(pattern, image) for pattern in plugin.match_images)
            if ours and (credentials := await self._ask(plugin, image)):
                return credentials
        return None

    async def _ask(self, plugin: Plugin, image: str) -> Credentials | None:
        request = {"apiVersion": plugin.api_version, "kind": "CredentialProviderRequest", "image": image}
        program = str(self._directory / plugin.name)
        environment = {**self._environment, **dict(plugin.env)}
        code, output = await run_helper(program, plugin.args, json.dumps(request).encode(), environment)
        if code != 0:
            raise CredentialsUnavailable(f"{program}: exit status {code} for {image}")
        return parse_response(output, program, image)


def parse_plugins(body: bytes, path: Path) -> tuple[Plugin, ...]:
    """The plugins of a configuration; :class:`InvalidConfig` names what is wrong with it."""
    try:
        document = json.loads(body)
        rows = document["providers"]
        return tuple(_plugin(row) for row in rows)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidConfig(f"{path}: not a CredentialProviderConfig in JSON") from None


def _plugin(row: Mapping[str, Any]) -> Plugin:
    name = row["name"]
    # kubelet's own rule: the name is a file in the plugin directory and nothing else.
    if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
        raise ValueError(name)
    return Plugin(
        name=name,
        match_images=_strings(row["matchImages"]),
        api_version=str(row.get("apiVersion", "credentialprovider.kubelet.k8s.io/v1")),
        args=_strings(row.get("args") or ()),
        env=tuple((str(item["name"]), str(item["value"])) for item in row.get("env") or ()),
    )


def parse_response(output: bytes, program: str, image: str) -> Credentials | None:
    """The credentials of the most specific key that matches, None if the plugin has none for ``image``."""
    try:
        auth = json.loads(output).get("auth") or {}
        keys = sorted((key for key in auth if matches(key, image)), key=len, reverse=True)
        if not keys:
            return None
        entry = auth[keys[0]]
        return Credentials(username=entry.get("username", ""), password=entry.get("password", "")) or None
    except (ValueError, TypeError, AttributeError):
        raise CredentialsUnavailable(f"{program}: the answer is not a CredentialProviderResponse") from None


def matches(pattern: str, image: str) -> bool:
    """kubelet's rule: as many domain parts, each matched by its own glob; the same port; the path a prefix."""
    wanted_host, wanted_port, wanted_path = _split(pattern)
    host, port, path = _split(image)
    wanted, parts = wanted_host.split("."), host.split(".")
    return (
        len(wanted) == len(parts)
        and all(fnmatchcase(part, glob) for part, glob in zip(parts, wanted, strict=True))
        and (not wanted_port or wanted_port == port)
        and path.startswith(wanted_path)
    )


def _split(text: str) -> tuple[str, str, str]:
    authority, slash, path = text.removeprefix("https://").removeprefix("http://").partition("/")
    match = _AUTHORITY.fullmatch(authority)
    host, port = (match["host"], match["port"] or "") if match else (authority, "")
    return host, port, slash + path if path else ""


def _strings(value: Sequence[object]) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise TypeError("not a list of strings")
    return tuple(str(item) for item in value)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InvalidConfig(f"{path}: {exc.strerror}") from exc
