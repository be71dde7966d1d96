"""Image references, by the grammar of the distribution project and Docker's defaults.

https://github.com/distribution/reference (grammar and normalisation rules).
"""

import re
from dataclasses import dataclass, replace

from fetcher.registry.errors import InvalidReference
from layerformat.digest import Digest, parse_digest

DOCKER_HUB = "docker.io"
_HUB_ALIASES = frozenset({"index.docker.io", "registry-1.docker.io"})
_MAX_NAME = 255  # characters of host/repository

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_BARE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where blobs can be had: one repository of one registry. ``host`` is canonical (``docker.io``, ``host:port``)."""

    host: str
    repository: str

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A parsed reference; ``tag`` is ``latest`` if the text had neither tag nor digest."""

    host: str
    repository: str
    tag: str | None
    digest: Digest | None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """``[host[:port]/]repository[:tag][@digest]``; raises :class:`InvalidReference` naming the wrong part."""
        if _BARE_ID.fullmatch(text):
            raise InvalidReference(f"{text!r} is an image ID, not a reference")
        rest, at, digest_text = text.partition("@")
        digest = _digest(text, digest_text) if at else None
        name, tag = _split_tag(rest)
        host, repository = _split_host(name)
        _check(text, host, repository, tag)
        if tag is None and digest is None:
            tag = "latest"
        return cls(host=host, repository=repository, tag=tag, digest=digest)

    @property
    def origin(self) -> Origin:
        """The repository alone."""
        return Origin(host=self.host, repository=self.repository)

    @property
    def target(self) -> str:
        """What goes into ``/manifests/<target>``: the digest where there is one, else the tag."""
        return self.digest or self.tag or "latest"

    def at(self, digest: Digest) -> "Reference":
        """The same name pinned to ``digest``."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}{tag}{digest}"


def _digest(text: str, digest: str) -> Digest:
    try:
        return parse_digest(digest)
    except ValueError as exc:
        raise InvalidReference(f"{text!r}: the digest must be sha256: and 64 hex digits") from exc


def _split_tag(rest: str) -> tuple[str, str | None]:
    # A colon before the last slash belongs to a port.
    name, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        return rest, None
    return name, tag


def _split_host(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    # Only what cannot be a path component is a host: a dot, a port, upper case, or the word localhost.
    is_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
    host, repository = (first, rest) if slash and is_host else (DOCKER_HUB, name)
    if host in _HUB_ALIASES:
        host = DOCKER_HUB
    if host == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    return host, repository


def _check(text: str, host: str, repository: str, tag: str | None) -> None:
    if not _HOST.fullmatch(host):
        raise InvalidReference(f"{text!r}: {host!r} is no registry host")
    if not _REPOSITORY.fullmatch(repository):
        hint = " (it must be lower case)" if _REPOSITORY.fullmatch(repository.lower()) else ""
        raise InvalidReference(f"{text!r}: {repository!r} is no repository name{hint}")
    if len(host) + 1 + len(repository) > _MAX_NAME:
        raise InvalidReference(f"{text!r}: the name is longer than {_MAX_NAME} characters")
    if tag is not None and not _TAG.fullmatch(tag):
        raise InvalidReference(f"{text!r}: {tag!r} is no tag")
