"""OCI layouts to convert, made in memory from tars, and a look into what a conversion wrote."""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from layerformat.digest import Digest, sha256_digest

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

Json = dict[str, Any]


def compressed(tar: bytes, how: str) -> bytes:
    """gzip, zstd or nothing; the same bytes every time."""
    if how == "gzip":
        return gzip.compress(tar, mtime=0)
    return zstandard.ZstdCompressor().compress(tar) if how == "zstd" else tar


@dataclass(kw_only=True)
class Layout:
    """Blobs of images, to be written as a layout or put into a registry."""

    blobs: dict[Digest, bytes] = field(default_factory=dict)

    def add(self, data: bytes, media_type: str, **members: Any) -> Json:
        """Keep a blob; its descriptor."""
        digest = sha256_digest(data)
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **members}

    def document(self, value: Json, media_type: str, **members: Any) -> Json:
        """Keep a document."""
        return self.add(json.dumps(value, indent=3).encode(), media_type, **members)

    def image(
        self,
        tars: Sequence[bytes],
        *,
        how: str = "gzip",
        docker: bool = False,
        architecture: str = "amd64",
        annotations: Mapping[str, str] | None = None,
        diff_ids: Sequence[str] | None = None,
    ) -> Json:
        """An image of these layers; the descriptor of its manifest."""
        stem = DOCKER_LAYER if docker else OCI_LAYER
        suffix = f"{'.' if docker else '+'}{how}" if how else ""
        config = {
            "architecture": architecture,
            "os": "linux",
            "created": "2024-01-01T00:00:00.123456789Z",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "Labels": {"ümlaut": "ja"}},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids or map(sha256_digest, tars))},
            "history": [{"created_by": f"step {number}"} for number in range(len(tars))],
            "moby.buildkit.buildinfo.v1": "abc",
        }
        manifest: Json = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
            "config": self.document(config, DOCKER_CONFIG if docker else OCI_CONFIG),
            "layers": [self.add(compressed(tar, how), stem + suffix, annotations={"who": "me"}) for tar in tars],
        }
        if annotations:
            manifest["annotations"] = dict(annotations)
        platform = {"architecture": architecture, "os": "linux"}
        return self.document(manifest, manifest["mediaType"], platform=platform)

    def index(self, rows: Sequence[Json], *, docker: bool = False, **members: Any) -> Json:
        """An index of manifests."""
        media_type = DOCKER_LIST if docker else OCI_INDEX
        document = {"schemaVersion": 2, "mediaType": media_type, "manifests": list(rows), **members}
        return self.document(document, media_type)

    def attestation(self, subject: Json) -> Json:
        """What buildx adds to an index about one of its images."""
        config = self.document({"architecture": "unknown", "os": "unknown", "rootfs": {"diff_ids": []}}, OCI_CONFIG)
        statement = self.document({"predicate": "x"}, "application/vnd.in-toto+json")
        manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [statement]}
        notes = {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": subject["digest"],
        }
        platform = {"architecture": "unknown", "os": "unknown"}
        return self.document(manifest, OCI_MANIFEST, platform=platform, annotations=notes)

    def write(self, directory: Path, root: Json, tag: str = "t") -> str:
        """The layout in a directory; how `convert` is told of it."""
        blobs = directory / "blobs" / "sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        for digest, data in self.blobs.items():
            (blobs / digest.removeprefix("sha256:")).write_bytes(data)
        (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        row = {**root, "annotations": {"org.opencontainers.image.ref.name": tag}}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [row]}
        (directory / "index.json").write_text(json.dumps(index))
        return f"oci:{directory}:{tag}"


class Written:
    """A layout that a conversion wrote."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def blob(self, digest: str) -> bytes:
        """A blob, whose digest is checked."""
        data = (self.directory / "blobs" / digest.replace(":", "/")).read_bytes()
        assert sha256_digest(data) == digest
        return data

    def document(self, descriptor: Json) -> Json:
        """A document, whose size is checked as well."""
        data = self.blob(descriptor["digest"])
        assert len(data) == descriptor["size"]
        document: Json = json.loads(data)
        return document

    def root(self, tag: str = "t") -> Json:
        """The descriptor that a tag stands for."""
        rows = json.loads((self.directory / "index.json").read_bytes())["manifests"]
        (row,) = [row for row in rows if row["annotations"]["org.opencontainers.image.ref.name"] == tag]
        assert isinstance(row, dict)
        return row

    def snapshot(self) -> dict[str, bytes]:
        """Every file."""
        paths = [path for path in self.directory.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.directory)): path.read_bytes() for path in paths}
