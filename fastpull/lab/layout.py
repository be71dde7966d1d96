"""OCI image layouts written from tar streams: no other tool, no network, the same input gives the same bytes.

Written from the image-spec (image-layout.md, manifest.md, config.md). Used for images whose every byte a test knows,
and for the demo's image.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, cast

import zstandard

from fastpull.lab.process import LabError

Compression = Literal["none", "gzip", "zstd"]
WriteTar = Callable[[BinaryIO], None]

LAYER_MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"
MANIFEST_MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_MEDIA_TYPE = "application/vnd.oci.image.config.v1+json"
INDEX_MEDIA_TYPE = "application/vnd.oci.image.index.v1+json"
_SUFFIX: dict[Compression, str] = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}
_CREATED = "2024-01-01T00:00:00Z"
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInput:
    """One layer: who writes its tar, how it is compressed, and what the history says of it."""

    write: WriteTar
    compression: Compression = "gzip"
    created_by: str = "layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """An image's layers, from the lowest, and how it starts."""

    layers: Sequence[LayerInput]
    command: Sequence[str] = ()
    entrypoint: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = "/"
    annotations: Mapping[str, str] = field(default_factory=dict)


class _Hashed(io.RawIOBase):
    """A sink that hashes and counts what goes through it."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self.hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(cast(bytes, data))
        self.hash.update(view)
        self._sink.write(view)
        self.size += view.nbytes
        return view.nbytes

    @property
    def digest(self) -> str:
        return f"sha256:{self.hash.hexdigest()}"


class _Closable(Protocol):
    def write(self, data: bytes, /) -> int: ...
    def close(self) -> None: ...


@contextlib.contextmanager
def _compressor(sink: _Hashed, compression: Compression) -> Iterator[BinaryIO]:
    if compression == "none":
        yield cast(BinaryIO, sink)
        return
    writer: _Closable
    if compression == "gzip":
        writer = gzip.GzipFile(fileobj=cast(BinaryIO, sink), mode="wb", compresslevel=6, mtime=0)
    else:
        writer = zstandard.ZstdCompressor(level=3).stream_writer(cast(BinaryIO, sink), closefd=False)
    with contextlib.closing(writer):
        yield cast(BinaryIO, writer)


def _store(directory: Path, data: bytes) -> dict[str, object]:
    """Write one blob; returns the digest and size members of its descriptor."""
    digest = hashlib.sha256(data).hexdigest()
    (directory / "blobs" / "sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def _store_layer(directory: Path, layer: LayerInput) -> tuple[dict[str, object], str]:
    """Write one layer's blob; returns its descriptor and its diff id."""
    blobs = directory / "blobs" / "sha256"
    unnamed = blobs / ".unnamed"
    with unnamed.open("wb") as file:
        outer = _Hashed(file)
        with _compressor(outer, layer.compression) as inner:
            plain = _Hashed(inner)
            layer.write(cast(BinaryIO, plain))
    unnamed.rename(blobs / outer.hash.hexdigest())
    media_type = LAYER_MEDIA_TYPE + _SUFFIX[layer.compression]
    return {"mediaType": media_type, "digest": outer.digest, "size": outer.size}, plain.digest


def _config(image: ImageInput, diff_ids: Sequence[str]) -> dict[str, object]:
    return {
        "created": _CREATED,
        "architecture": _ARCHITECTURE[os.uname().machine],
        "os": "linux",
        "config": {
            "Env": [f"{name}={value}" for name, value in image.environment.items()],
            "Cmd": list(image.command),
            **({"Entrypoint": list(image.entrypoint)} if image.entrypoint else {}),
            "WorkingDir": image.working_dir,
        },
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created": _CREATED, "created_by": layer.created_by} for layer in image.layers],
    }


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def write_layout(directory: Path, tag: str, image: ImageInput) -> str:
    """Write `image` as an OCI layout with one tag; returns the manifest's digest. `directory` is made."""
    (directory / "blobs" / "sha256").mkdir(parents=True)
    stored = [_store_layer(directory, layer) for layer in image.layers]
    config = _store(directory, _json(_config(image, [diff_id for _, diff_id in stored])))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": {"mediaType": CONFIG_MEDIA_TYPE, **config},
        "layers": [descriptor for descriptor, _ in stored],
        **({"annotations": dict(image.annotations)} if image.annotations else {}),
    }
    named = _store(directory, _json(manifest))
    entry = {"mediaType": MANIFEST_MEDIA_TYPE, **named, "annotations": {"org.opencontainers.image.ref.name": tag}}
    index = {"schemaVersion": 2, "mediaType": INDEX_MEDIA_TYPE, "manifests": [entry]}
    (directory / "index.json").write_bytes(_json(index))
    (directory / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    return str(named["digest"])


# Tar streams


def tree(directory: Path, *, prefix: str = ".") -> WriteTar:
    """The files below `directory`, by GNU tar: owners by number, extended attributes kept, names sorted."""

    def write(sink: BinaryIO) -> None:
        argv = ["tar", "--create", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--sort=name", "--format=posix"]
        # Without these, PAX headers hold access times and the process id: no two streams would be equal.
        argv += ["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime", "--directory", str(directory)]
        with subprocess.Popen([*argv, prefix], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            while chunk := child.stdout.read(_COPY_BYTES):
                sink.write(chunk)
        if child.returncode:
            raise LabError(f"tar of {directory}: exit {child.returncode}")

    return write


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One entry of a handmade layer. `data` None is a directory, unless `kind` says otherwise."""

    name: str
    data: bytes | None = None
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: float = 1_700_000_000
    kind: bytes = b""
    target: str = ""
    device: tuple[int, int] = (0, 0)
    pax: Mapping[str, str] = field(default_factory=dict)

    def header(self) -> tarfile.TarInfo:
        info = tarfile.TarInfo(self.name)
        info.type = self.kind or (tarfile.DIRTYPE if self.data is None else tarfile.REGTYPE)
        info.size = len(self.data or b"")
        info.mode, info.uid, info.gid, info.mtime = self.mode, self.uid, self.gid, self.mtime
        info.linkname = self.target
        info.devmajor, info.devminor = self.device
        info.pax_headers = dict(self.pax)
        return info


def members(entries: Sequence[Member]) -> WriteTar:
    """The entries in their order, as a PAX tar."""

    def write(sink: BinaryIO) -> None:
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for entry in entries:
                archive.addfile(entry.header(), io.BytesIO(entry.data or b""))

    return write
