"""What a :class:`~fetcher.registry.client.RegistryClient` is told.

Parsed at the edge; nothing deeper reads the environment.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fetcher.registry.credentials import Credentials
from fetcher.registry.retry import RetryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait. ``finish_s`` is for a registry that moves a large blob into place after its upload."""

    connect_s: float = 10.0
    first_byte_s: float = 30.0
    between_bytes_s: float = 20.0
    finish_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    """Everything a client may be told; the defaults suit a node with containerd."""

    certs_dirs: tuple[Path, ...] = (Path("/etc/containerd/certs.d"),)
    plain_http: frozenset[str] = frozenset()
    """Hosts spoken to without TLS besides loopback: ``host``, ``host:port``, or a network such as ``10.0.0.0/8``."""
    loopback_https: bool = False
    """Try HTTPS first on loopback, and plain HTTP only if that fails."""
    credentials: Mapping[str, Credentials] = field(default_factory=dict)
    """By registry host; asked before any file."""
    docker_config: Path | None = None
    """``config.json`` of Docker; re-read when it changes."""
    kubelet_plugins: Path | None = None
    """A CredentialProviderConfig (JSON) of kubelet."""
    kubelet_plugin_dir: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What helper processes get to see; PATH is also where they are looked for."""
    environment_proxies: bool = False
    """Whether HTTP_PROXY and its like, in ``environment``, apply."""
    connections_per_host: int = 64
    read_buffer_bytes: int = 1 << 20
    upload_chunk_bytes: int = 16 << 20
    unchunked_hosts: tuple[str, ...] = ("gcr.io", "*.gcr.io", "*.pkg.dev", "ghcr.io")
    """Registries that get a blob in one request (shell patterns). Google documents that its own take no chunks, GitHub
    takes them up to 4 MiB. Others that refuse are noticed at the first chunk."""
    user_agent: str = "fastpull"
    timeouts: Timeouts = Timeouts()
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], *, plain_http: frozenset[str] = frozenset()
    ) -> "RegistryConfig":
        """What a command run by a person should use: DOCKER_CONFIG or HOME tell where Docker keeps credentials."""
        return cls(
            plain_http=plain_http,
            docker_config=docker_config_path(environment),
            environment=dict(environment),
            environment_proxies=True,
        )


def docker_config_path(environment: Mapping[str, str]) -> Path | None:
    """Docker's rule: $DOCKER_CONFIG/config.json, else $HOME/.docker/config.json."""
    if directory := environment.get("DOCKER_CONFIG"):
        return Path(directory) / "config.json"
    if home := environment.get("HOME"):
        return Path(home) / ".docker" / "config.json"
    return None


def split_port(authority: str) -> str:
    """The host of ``host[:port]``; brackets of an IPv6 address are removed."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def is_loopback(authority: str) -> bool:
    """127.0.0.0/8, ::1 and localhost."""
    host = split_port(authority)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_plain(authority: str, plain_http: frozenset[str]) -> bool:
    """Whether ``host[:port]`` is spoken to without TLS."""
    host = split_port(authority)
    return is_loopback(authority) or authority in plain_http or host in plain_http or _in_networks(host, plain_http)


def _in_networks(host: str, networks: frozenset[str]) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any("/" in network and address in ipaddress.ip_network(network, strict=False) for network in networks)
