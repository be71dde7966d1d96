"""From a location to the object that reads or writes it."""

import asyncio

from converter.destinations import ImageDestination, RegistryDestination
from converter.docker_archive import DockerArchiveSource
from converter.errors import DestinationError, UsageError
from converter.files import ArchiveFiles
from converter.locations import LocalLocation, Location
from converter.oci_destinations import ArchiveDestination, LayoutDestination
from converter.sources import ImageSource, OciSource, RegistrySource, oci_files, reading
from fetcher.registry import Reference, RegistryClient


async def open_source(location: Location, client: RegistryClient) -> ImageSource:
    """The image to read; for a local one, that there is one is checked here."""
    if isinstance(location, Reference):
        return RegistrySource(location, client)
    with reading(str(location.path)):
        return await asyncio.to_thread(_open_local_source, location)


def _open_local_source(location: LocalLocation) -> ImageSource:
    if location.transport == "docker-archive":
        return DockerArchiveSource(ArchiveFiles(location.path), location.name)
    return OciSource(oci_files(location), location.name)


async def open_destination(location: Location, client: RegistryClient) -> ImageDestination:
    """Where to write; nothing is changed there before the first blob."""
    if isinstance(location, Reference):
        if location.digest is not None:
            raise UsageError(f"{location}: a destination has a tag, not a digest")
        return RegistryDestination(location, client)
    if location.transport == "docker-archive":
        raise UsageError(
            "docker-archive: cannot hold a converted image", hint="write oci-archive:FILE, which docker load reads too"
        )
    try:
        return await asyncio.to_thread(_open_local_destination, location)
    except OSError as exc:
        raise DestinationError(f"{location.path}: {exc.strerror or exc}") from exc


def _open_local_destination(location: LocalLocation) -> ImageDestination:
    if location.transport == "oci-archive":
        return ArchiveDestination(location.path, location.name)
    return LayoutDestination(location.path, location.name)
