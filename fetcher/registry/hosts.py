"""From a registry's name to the endpoints that serve it: containerd's ``certs.d/HOST/hosts.toml``, else the registry
itself.

Source: containerd docs/hosts.md. Mirrors come in the order of the file, the upstream server last.
"""

import re
import ssl
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fetcher.registry.config import RegistryConfig, is_loopback, is_plain
from fetcher.registry.errors import InvalidConfig
from fetcher.registry.reference import DOCKER_HUB

HUB_SERVER = "registry-1.docker.io"
CAPABILITIES = frozenset({"pull", "resolve", "push"})
# Editing hosts.toml needs no restart, and costs a few stat calls a minute.
LIFETIME_S = 30.0
_PORT = re.compile(r"^(.*):([0-9]+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How an HTTPS endpoint is verified and, with client certificates, how we are."""

    ca: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path | None], ...] = ()
    skip_verify: bool = False
    stamp: tuple[int, ...] = ()  # when the files were last changed: renewed certificates make another context


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One server that answers for a registry. ``base`` is a URL without trailing slash, usually ending in ``/v2``."""

    base: str
    namespace: str
    upstream: bool = True  # the registry itself, not a mirror: its word is final
    capabilities: frozenset[str] = CAPABILITIES
    tls: Tls = Tls()
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def authority(self) -> str:
        """``host[:port]``."""
        return urlsplit(self.base).netloc

    @property
    def credential_host(self) -> str:
        """The host credentials are filed under."""
        return DOCKER_HUB if self.authority == HUB_SERVER else self.authority

    @property
    def is_proxy(self) -> bool:
        """Whether it answers for a registry of another name, which it is then told as ``ns``."""
        return self.credential_host != self.namespace

    def url(self, path: str, query: str = "") -> str:
        """``base/path``; ``path`` must be safe already, ``query`` encoded."""
        if self.is_proxy:
            query = "&".join(filter(None, (query, f"ns={quote(self.namespace, safe='')}")))
        return f"{self.base}/{path}" + (f"?{query}" if query else "")


class HostTable:
    """Endpoints per registry host. Files are read on the calling thread, and again when what is known is old."""

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._known: dict[str, tuple[float, tuple[Endpoint, ...]]] = {}  # until (monotonic), endpoints

    def endpoints(self, host: str) -> tuple[Endpoint, ...]:
        """In the order to try them. Raises :class:`InvalidConfig`."""
        if (known := self.known(host)) is not None:
            return known
        found = self._find(host)
        self._known[host] = (time.monotonic() + LIFETIME_S, found)
        return found

    def known(self, host: str) -> tuple[Endpoint, ...] | None:
        """The same without touching a file: None if it was not asked for lately."""
        until, endpoints = self._known.get(host, (0.0, ()))
        return endpoints if time.monotonic() < until else None

    def _find(self, host: str) -> tuple[Endpoint, ...]:
        for root in self._config.certs_dirs:
            for name in _directory_names(host):
                directory = root / name
                if (file := directory / "hosts.toml").is_file():
                    return parse_hosts(_read_toml(file), host, directory, self.default(host))
                if tls := _docker_style_tls(directory):
                    return self.default(host, tls)
        return self.default(host)

    def default(self, host: str, tls: Tls | None = None) -> tuple[Endpoint, ...]:
        """The registry itself: HTTPS, or plain HTTP for loopback and where told."""
        authority = HUB_SERVER if host == DOCKER_HUB else host
        plain = is_plain(authority, self._config.plain_http)
        schemes: tuple[str, ...] = ("http",) if plain else ("https",)
        if plain and self._config.loopback_https and is_loopback(authority):
            schemes = ("https", "http")
        return tuple(Endpoint(base=f"{s}://{authority}/v2", namespace=host, tls=tls or Tls()) for s in schemes)


@lru_cache(maxsize=64)
def tls_context(tls: Tls) -> ssl.SSLContext:
    """The context for ``tls``; raises :class:`InvalidConfig` for files that cannot be used. Cached: loading CAs costs
    milliseconds.
    """
    context = ssl.create_default_context()
    try:
        for path in tls.ca:
            context.load_verify_locations(cafile=path)
        for certificate, key in tls.client:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as exc:
        files = ", ".join(str(path) for path in (*tls.ca, *(pair[0] for pair in tls.client)))
        raise InvalidConfig(f"cannot use TLS files {files}: {exc.strerror or exc}") from exc
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def parse_hosts(
    document: Mapping[str, Any], host: str, directory: Path, default: tuple[Endpoint, ...]
) -> tuple[Endpoint, ...]:
    """The endpoints a hosts.toml stands for; ``default`` is used for the upstream when the file names no ``server``."""
    where = f"{directory / 'hosts.toml'}"
    tables = document.get("host", {})
    if not isinstance(tables, Mapping):
        raise InvalidConfig(f"{where}: host is not a table")
    mirrors = [replace(_endpoint(url, table, host, directory), upstream=False) for url, table in tables.items()]
    server = document.get("server")
    if server:
        return (*mirrors, _endpoint(server, document, host, directory))
    # Settings at the top of the file are the upstream's, named or not.
    upstream = [_endpoint(endpoint.base, document, host, directory) for endpoint in default]
    return (*mirrors, *upstream)


def _endpoint(url: object, table: object, namespace: str, directory: Path) -> Endpoint:
    where = f"{directory / 'hosts.toml'}"
    if not isinstance(url, str) or not isinstance(table, Mapping):
        raise InvalidConfig(f"{where}: {url!r} is no host table")
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise InvalidConfig(f"{where}: a server must be http:// or https:// and a host")
    path = parts.path.rstrip("/")
    if not table.get("override_path") and not path.endswith("/v2"):
        path += "/v2"
    return Endpoint(
        base=f"{parts.scheme}://{parts.netloc}{path}",
        namespace=namespace,
        capabilities=_capabilities(table, where),
        tls=_tls(
            tuple(directory / name for name in _names(table.get("ca"), where)),
            _client_pairs(table.get("client"), directory, where),
            skip_verify=table.get("skip_verify") is True,
        ),
        headers=_headers(table.get("header"), where),
    )


def _capabilities(table: Mapping[str, Any], where: str) -> frozenset[str]:
    named = table.get("capabilities")
    if named is None:
        return CAPABILITIES
    if not isinstance(named, list) or not CAPABILITIES.issuperset(named):
        raise InvalidConfig(f"{where}: capabilities must be a list of pull, resolve, push")
    return frozenset(named)


def _names(value: object, where: str) -> list[str]:
    names = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidConfig(f"{where}: ca must be a file name or a list of them")
    return names


def _client_pairs(value: object, directory: Path, where: str) -> tuple[tuple[Path, Path | None], ...]:
    # "cert", ["cert", ...] or [["cert", "key"], ...]
    rows = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(rows, list):
        raise InvalidConfig(f"{where}: client must be a file name or a list")
    pairs: list[tuple[Path, Path | None]] = []
    for row in rows:
        names = [row] if isinstance(row, str) else row
        if not isinstance(names, list) or len(names) not in (1, 2) or not all(isinstance(name, str) for name in names):
            raise InvalidConfig(f"{where}: client must name a certificate and, at most, a key")
        key = directory / names[1] if len(names) == 2 and names[1] else None
        pairs.append((directory / names[0], key))
    return tuple(pairs)


def _headers(value: object, where: str) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise InvalidConfig(f"{where}: header is not a table")
    return tuple(
        (str(name), str(item))
        for name, items in value.items()
        for item in (items if isinstance(items, list) else [items])
    )


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise InvalidConfig(f"{path}: {exc}") from exc


def _directory_names(host: str) -> tuple[str, ...]:
    # containerd also takes host_port_, for file systems that forbid colons.
    if match := _PORT.match(host):
        return (f"{match[1]}_{match[2]}_", host, "_default")
    return (host, "_default")


def _docker_style_tls(directory: Path) -> Tls | None:
    """Docker's layout: every ``*.crt`` is a CA, every ``*.cert`` with its ``*.key`` a client certificate."""
    ca = tuple(sorted(directory.glob("*.crt")))
    client = tuple((path, path.with_suffix(".key")) for path in sorted(directory.glob("*.cert")))
    return _tls(ca, client) if ca or client else None


def _tls(ca: tuple[Path, ...], client: tuple[tuple[Path, Path | None], ...], *, skip_verify: bool = False) -> Tls:
    files = (*ca, *(path for pair in client for path in pair if path is not None))
    stamp = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in files)
    return Tls(ca=ca, client=client, skip_verify=skip_verify, stamp=stamp)
