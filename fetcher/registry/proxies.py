"""Which proxy a URL goes through, by the environment variables everybody knows. Pure: the environment is given.

Lower-case names win over upper-case ones, as in curl. Loopback never goes through a proxy.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from fetcher.registry.config import is_loopback


def proxy_for(url: str, environment: Mapping[str, str]) -> str | None:
    """The proxy's URL, None for a direct connection."""
    parts = urlsplit(url)
    proxy = _variable(environment, f"{parts.scheme}_proxy") or _variable(environment, "all_proxy")
    if not proxy or is_loopback(parts.netloc) or _excluded(parts.hostname or "", parts.port, environment):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.upper()) or ""


def _excluded(host: str, port: int | None, environment: Mapping[str, str]) -> bool:
    rules = (rule.strip().lower() for rule in _variable(environment, "no_proxy").split(","))
    return any(_matches(rule, host, port) for rule in rules if rule)


def _matches(rule: str, host: str, port: int | None) -> bool:
    """``*``, an address, a network, or a domain that stands for itself and all below it; with a port or without."""
    if rule == "*":
        return True
    if "/" in rule:
        return _in_network(host, rule)
    name, colon, wanted = rule.rpartition(":")
    if colon and wanted.isdigit() and ":" not in name:
        if str(port) != wanted:
            return False
        rule = name
    rule = rule.removeprefix("*").removeprefix(".")
    return host == rule or host.endswith(f".{rule}")


def _in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
