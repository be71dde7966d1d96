"""OCI image layouts as destinations: a directory, and an archive of one.

A directory takes blobs one by one, each appearing complete. An archive is put together at the end out of unnamed
files: it needs temporary space for the converted blobs, in the directory of the archive.
"""

import asyncio
import contextlib
import fcntl
import io
import os
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

from converter.destinations import writing
from converter.errors import ConvertError, DestinationError, SourceNotFound
from converter.files import ArchiveFiles, DirectoryFiles, Extent
from converter.sources import REF_NAME, OciSource, blob_name
from converter.unnamed import UnnamedFile
from fetcher.registry import OCI_INDEX, Descriptor, Manifest, Origin, RegistryError, descriptors, encode_json
from fetcher.registry.descriptor import parse_json_object
from layerformat.digest import Digest

_WRITE_BYTES: Final = 1 << 20
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'


async def write_all(file: UnnamedFile, chunks: AsyncIterator[bytes]) -> None:
    """Append all chunks, about 1 MiB per hop into a thread."""
    pending: list[bytes] = []
    size = 0
    async for chunk in chunks:
        pending.append(chunk)
        size += len(chunk)
        if size >= _WRITE_BYTES:
            await asyncio.to_thread(file.write, b"".join(pending))
            pending, size = [], 0
    await asyncio.to_thread(file.write, b"".join(pending))


def with_image(index: dict[str, Any], row: Descriptor, tag: str | None) -> dict[str, Any]:
    """The layout's index with `row` as the image called `tag` (without a tag: as the untagged one)."""
    kept = [old for old in index.get("manifests") or [] if (old.get("annotations") or {}).get(REF_NAME) != tag]
    kept = [old for old in kept if tag is not None or old.get("digest") != row.digest]
    document = row.to_json()
    if tag is not None:
        document["annotations"] = {REF_NAME: tag}
    return {**index, "manifests": [*kept, document]}


def empty_index() -> dict[str, Any]:
    """Of a layout with no image."""
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


class LayoutDestination:
    """A directory. Other images in it stay."""

    origin: Origin | None = None

    def __init__(self, directory: Path, tag: str | None) -> None:
        self._directory = directory
        self._tag = tag

    async def existing_root(self) -> Manifest | None:
        with writing(str(self._directory)):
            return await asyncio.to_thread(self._existing_root)

    def _existing_root(self) -> Manifest | None:
        rows = [row for row in descriptors(self._index(), "manifests") if row.annotations.get(REF_NAME) == self._tag]
        return self._manifest(rows[0]) if len(rows) == 1 else None

    def _index(self) -> dict[str, Any]:
        try:
            body = (self._directory / "index.json").read_bytes()
        except FileNotFoundError:
            return empty_index()
        try:
            return parse_json_object(body, f"{self._directory}/index.json")
        except RegistryError as exc:
            raise DestinationError(str(exc), hint="name an empty directory, or one that holds an OCI layout") from exc

    def _manifest(self, row: Descriptor) -> Manifest:
        body = (self._directory / blob_name(row.digest)).read_bytes()
        return Manifest(descriptor=row, body=body, document=parse_json_object(body, row.digest))

    async def existing_manifest(self, descriptor: Descriptor) -> Manifest:
        with writing(str(self._directory)):
            return await asyncio.to_thread(self._manifest, descriptor)

    async def blob_range(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        return await OciSource(DirectoryFiles(self._directory), None).blob_range(descriptor, offset, length)

    async def keeps(self, digest: Digest) -> bool:
        return await self.has_blob(digest)

    async def has_blob(self, digest: Digest) -> bool:
        return await asyncio.to_thread((self._directory / blob_name(digest)).is_file)

    async def mount_blob(self, digest: Digest, source: Origin) -> bool:
        return False

    async def push_blob(self, chunks: AsyncIterator[bytes]) -> tuple[Digest, int]:
        with writing(str(self._directory)):
            file = await asyncio.to_thread(self._new_file)
            with contextlib.closing(file):
                await write_all(file, chunks)
                await asyncio.to_thread(file.link, self._directory / blob_name(file.digest))
                return file.digest, file.size

    def _new_file(self) -> UnnamedFile:
        directory = self._directory / "blobs" / "sha256"
        directory.mkdir(parents=True, exist_ok=True)
        return UnnamedFile(directory)

    async def push_bytes(self, data: bytes) -> Digest:
        return (await self.push_blob(_one(data)))[0]

    async def push_manifest(self, body: bytes, media_type: str) -> Digest:
        return await self.push_bytes(body)

    async def publish(self, body: bytes, media_type: str) -> Digest:
        digest = await self.push_bytes(body)
        row = Descriptor(media_type=media_type, digest=digest, size=len(body))
        with writing(str(self._directory)):
            await asyncio.to_thread(self._write_index, row)
        return digest

    def _write_index(self, row: Descriptor) -> None:
        with _locked(self._directory):
            self._put("oci-layout", _LAYOUT)
            self._put("index.json", encode_json(with_image(self._index(), row, self._tag)))

    def _put(self, name: str, data: bytes) -> None:
        with contextlib.closing(UnnamedFile(self._directory)) as file:
            file.write(data)
            file.replace(self._directory / name)


class ArchiveDestination:
    """An archive file, replaced as a whole. Layers that the old one has are taken over."""

    origin: Origin | None = None

    def __init__(self, path: Path, tag: str | None) -> None:
        self._path = path
        self._tag = tag
        self._old = ArchiveFiles(path) if path.exists() else None
        self._blobs: dict[Digest, UnnamedFile | Extent] = {}

    async def existing_root(self) -> Manifest | None:
        if self._old is None:
            return None
        try:
            return await OciSource(self._old, self._tag).root()
        except (ConvertError, RegistryError):
            return None  # whatever the file was, it is about to be replaced

    async def existing_manifest(self, descriptor: Descriptor) -> Manifest:
        if self._old is None:
            raise SourceNotFound(f"{self._path}: no {descriptor.digest}")
        return await OciSource(self._old, None).manifest(descriptor)

    async def blob_range(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        if self._old is None:
            raise SourceNotFound(f"{self._path}: no {descriptor.digest}")
        return await OciSource(self._old, None).blob_range(descriptor, offset, length)

    async def keeps(self, digest: Digest) -> bool:
        return await self.has_blob(digest)

    async def has_blob(self, digest: Digest) -> bool:
        if (
            digest not in self._blobs
            and self._old is not None
            and (extent := self._old.locate(blob_name(digest))) is not None
        ):
            self._blobs[digest] = extent
        return digest in self._blobs

    async def mount_blob(self, digest: Digest, source: Origin) -> bool:
        return False

    async def push_blob(self, chunks: AsyncIterator[bytes]) -> tuple[Digest, int]:
        with writing(str(self._path)):
            file = await asyncio.to_thread(UnnamedFile, self._path.parent)
            try:
                await write_all(file, chunks)
            except BaseException:
                file.close()
                raise
            if file.digest in self._blobs:
                file.close()
            else:
                self._blobs[file.digest] = file
            return file.digest, file.size

    async def push_bytes(self, data: bytes) -> Digest:
        return (await self.push_blob(_one(data)))[0]

    async def push_manifest(self, body: bytes, media_type: str) -> Digest:
        return await self.push_bytes(body)

    async def publish(self, body: bytes, media_type: str) -> Digest:
        digest = await self.push_bytes(body)
        row = Descriptor(media_type=media_type, digest=digest, size=len(body))
        with writing(str(self._path)):
            await asyncio.to_thread(self._pack, row)
        return digest

    def _pack(self, row: Descriptor) -> None:
        documents = {"oci-layout": _LAYOUT, "index.json": encode_json(with_image(empty_index(), row, self._tag))}
        with contextlib.closing(UnnamedFile(self._path.parent)) as file, os.fdopen(os.dup(file.fd), "wb") as out:
            with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for name, data in documents.items():
                    archive.addfile(_member(name, len(data)), io.BytesIO(data))
                for digest in sorted(self._blobs):
                    self._pack_blob(archive, digest)
            out.flush()
            file.replace(self._path)

    def _pack_blob(self, archive: tarfile.TarFile, digest: Digest) -> None:
        blob = self._blobs[digest]
        member = _member(blob_name(digest), blob.size)
        if isinstance(blob, Extent):
            with blob.path.open("rb") as source:
                source.seek(blob.offset)
                archive.addfile(member, source)
            return
        with os.fdopen(os.dup(blob.fd), "rb") as source:
            source.seek(0)
            archive.addfile(member, source)


def _member(name: str, size: int) -> tarfile.TarInfo:
    """Owner and time are 0 and the mode is fixed, so that the same image makes the same archive."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two conversions into one layout do not lose each other's images."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
