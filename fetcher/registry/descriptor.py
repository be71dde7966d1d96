"""Descriptors and manifests of the OCI image specification, as far as this project reads and writes them.

https://github.com/opencontainers/image-spec (descriptor.md, manifest.md, image-index.md).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fetcher.registry.errors import ProtocolViolation
from layerformat.digest import Digest, parse_digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"

_KNOWN = frozenset({"mediaType", "digest", "size", "annotations", "platform", "artifactType"})
_PLATFORM_KNOWN = frozenset({"os", "architecture", "variant"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """``os/architecture[/variant]``; ``extra`` holds members that are not ours to interpret (os.version,
    os.features).
    """

    os: str
    architecture: str
    variant: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Platform":
        """``linux/amd64`` or ``linux/arm64/v8``; ValueError otherwise."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            raise ValueError(f"{text!r} is no platform: os/architecture[/variant]")
        return cls(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) == 3 else None)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Platform":
        extra = {key: value for key, value in document.items() if key not in _PLATFORM_KNOWN}
        variant = document.get("variant")
        return cls(
            os=str(document.get("os", "")),
            architecture=str(document.get("architecture", "")),
            variant=str(variant) if variant else None,
            extra=extra,
        )

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        if self.variant:
            document["variant"] = self.variant
        return document | dict(self.extra)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What something is, its digest and its size in bytes; unknown members survive a round trip in ``extra``."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    artifact_type: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: object) -> "Descriptor":
        """Raises :class:`ProtocolViolation` for what is no descriptor."""
        if not isinstance(document, Mapping):
            raise ProtocolViolation("a descriptor is not a JSON object")
        size, platform = document.get("size"), document.get("platform")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ProtocolViolation("a descriptor's size is not a number of bytes")
        return cls(
            media_type=_text(document, "mediaType") or "",
            digest=_digest(document.get("digest")),
            size=size,
            annotations=_annotations(document.get("annotations")),
            platform=Platform.from_json(platform) if isinstance(platform, Mapping) else None,
            artifact_type=_text(document, "artifactType"),
            extra={key: value for key, value in document.items() if key not in _KNOWN},
        )

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        if self.platform is not None:
            document["platform"] = self.platform.to_json()
        if self.artifact_type is not None:
            document["artifactType"] = self.artifact_type
        return document | dict(self.extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest or index as it came over the wire: ``body`` has the digest, ``document`` is its JSON object."""

    descriptor: Descriptor
    body: bytes
    document: Mapping[str, Any]

    @property
    def is_index(self) -> bool:
        """Whether it lists manifests of several platforms instead of layers."""
        return self.descriptor.media_type in INDEX_TYPES

    @property
    def manifests(self) -> tuple[Descriptor, ...]:
        """An index's entries."""
        return descriptors(self.document, "manifests")

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """A manifest's layers, base first."""
        return descriptors(self.document, "layers")

    @property
    def config(self) -> Descriptor:
        """A manifest's config."""
        return Descriptor.from_json(self.document.get("config"))


def parse_json_object(body: bytes, subject: str) -> dict[str, Any]:
    """The JSON object in ``body``; :class:`ProtocolViolation` that names ``subject`` otherwise."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise ProtocolViolation(f"{subject}: not JSON") from exc
    if not isinstance(document, dict):
        raise ProtocolViolation(f"{subject}: not a JSON object")
    return document


def descriptors(document: Mapping[str, Any], member: str) -> tuple[Descriptor, ...]:
    """The list of descriptors under ``member``; a missing one is empty."""
    rows = document.get(member)
    if rows is None:
        return ()
    if not isinstance(rows, list):
        raise ProtocolViolation(f"{member} is not a list")
    return tuple(Descriptor.from_json(row) for row in rows)


def encode_json(document: Mapping[str, Any]) -> bytes:
    """One spelling for what we write, so that equal content has an equal digest."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _text(document: Mapping[str, Any], member: str) -> str | None:
    value = document.get(member)
    return value if isinstance(value, str) else None


def _digest(value: object) -> Digest:
    try:
        return parse_digest(value if isinstance(value, str) else "")
    except ValueError as exc:
        raise ProtocolViolation("a descriptor's digest is not sha256: and 64 hex digits") from exc


def _annotations(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise ProtocolViolation("a descriptor's annotations are not a map of strings")
    return dict(value)
