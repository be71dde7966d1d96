"""Named files inside a directory or an uncompressed tar archive, read by position. Blocking calls run in threads."""

import asyncio
import hashlib
import os
import posixpath
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from converter.errors import MalformedInput, SourceNotFound
from layerformat.digest import Digest, sha256_digest

_READ_BYTES: Final = 1 << 20
_MAX_DOCUMENT: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """`size` bytes from `offset` of the file at `path`."""

    path: Path
    offset: int
    size: int

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Blocking; fewer bytes than asked for at the file's end."""
        length = self.size - offset if length is None else min(length, self.size - offset)
        with self.path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), max(0, length), self.offset + offset)

    def document(self) -> bytes:
        """All of a small file; MalformedInput where it is no small file."""
        if self.size > _MAX_DOCUMENT:
            raise MalformedInput(f"{self.path}: a document of {self.size} bytes")
        return self.read()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes in order, at most 1 MiB at a time."""
        fd = await asyncio.to_thread(os.open, self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            position = 0
            while position < self.size:
                size = min(_READ_BYTES, self.size - position)
                chunk = await asyncio.to_thread(os.pread, fd, size, self.offset + position)
                if not chunk:
                    raise MalformedInput(f"{self.path}: truncated")
                position += len(chunk)
                yield chunk
        finally:
            os.close(fd)

    async def verified(self, digest: Digest) -> AsyncIterator[bytes]:
        """`chunks`, ending with MalformedInput unless they have the digest."""
        hasher = hashlib.sha256()
        async for chunk in self.chunks():
            await asyncio.to_thread(hasher.update, chunk)
            yield chunk
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise MalformedInput(f"{self.path}: blob {digest} is damaged: its bytes have another digest")


class Files(Protocol):
    """Where an image's files are."""

    @property
    def label(self) -> str:
        """What a person calls it."""
        ...

    def locate(self, name: str) -> Extent | None:
        """Blocking. None: there is no such file."""
        ...


class DirectoryFiles:
    """A directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.label = str(directory)

    def locate(self, name: str) -> Extent | None:
        path = self._directory / name
        try:
            return Extent(path, 0, path.stat().st_size)
        except (FileNotFoundError, NotADirectoryError):
            return None


class ArchiveFiles:
    """A tar archive, as docker, podman, skopeo and buildx save images. Opening it reads all its headers (blocking)."""

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self._path = path
        self._members: dict[str, tarfile.TarInfo] = {}
        for member in _members(path):
            self._members[posixpath.normpath(member.name)] = member

    def locate(self, name: str) -> Extent | None:
        for _ in range(8):  # docker used to save a layer it has twice as a link to the first
            member = self._members.get(posixpath.normpath(name))
            if member is None:
                return None
            if member.issym():
                name = posixpath.join(posixpath.dirname(member.name), member.linkname)
            elif member.islnk():
                name = member.linkname
            elif member.isreg():
                return Extent(self._path, member.offset_data, member.size)
            else:
                return None
        return None


def _members(path: Path) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:") as archive:
            return archive.getmembers()
    except FileNotFoundError as exc:
        raise SourceNotFound(f"{path}: no such file") from exc
    except (tarfile.TarError, EOFError) as exc:
        hint = "if it is compressed, decompress it first (gunzip, zstd -d)"
        raise MalformedInput(f"{path}: not a tar archive: {exc}", hint=hint) from exc


def required(files: Files, name: str) -> Extent:
    """`locate`, or MalformedInput: the image says that the file is there."""
    extent = files.locate(name)
    if extent is None:
        raise MalformedInput(f"{files.label}: {name} is missing")
    return extent


def verified_document(files: Files, name: str, digest: Digest) -> bytes:
    """A small file that must have `digest`. Blocking."""
    body = required(files, name).document()
    if sha256_digest(body) != digest:
        raise MalformedInput(f"{files.label}: {name} is damaged: its bytes have another digest")
    return body
