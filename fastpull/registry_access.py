"""How commands reach registries: the options they share, and the client made from them."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import structlog

from fetcher.registry import Descriptor, Manifest, Origin, Platform, Reference, RegistryClient, RegistryConfig

F = TypeVar("F", bound=Callable[..., Any])


def registry_options(command: F) -> F:
    """`--plain-http HOST`; credentials come from Docker's configuration."""
    return click.option(
        "--plain-http",
        multiple=True,
        metavar="HOST",
        help="Speak plain HTTP to HOST[:PORT] or a network such as 10.0.0.0/8 (loopback: always).",
    )(command)


def open_client(plain_http: Sequence[str]) -> RegistryClient:
    """A client for a command that a person runs. To be entered by the caller."""
    _log_to_stderr()
    return RegistryClient(RegistryConfig.from_environment(os.environ, plain_http=frozenset(plain_http)))


def _log_to_stderr() -> None:
    """Standard output is for the result alone; what the registry client retries is of interest only when it fails."""
    level = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=level, logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


async def image_manifests(
    client: RegistryClient, reference: Reference, platform: Platform | None
) -> list[tuple[Platform | None, Manifest]]:
    """The image manifests at a reference, of all platforms or of one; what is not an image (attestations) is left out.

    Raises:
        RegistryError: not found, denied, unreachable...
    """
    top = await client.manifest(reference.origin, reference.target)
    if not top.is_index:
        return [(None, top)]
    wanted = [entry for entry in top.manifests if _is_image(entry) and (platform in (None, entry.platform))]
    return [(entry.platform, await _child(client, reference.origin, entry)) for entry in wanted]


def _is_image(entry: Descriptor) -> bool:
    return entry.platform is None or entry.platform.os != "unknown"


async def _child(client: RegistryClient, origin: Origin, entry: Descriptor) -> Manifest:
    return await client.manifest(origin, entry.digest)
