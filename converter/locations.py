"""What SRC and DST on the command line mean."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from converter.errors import UsageError
from fetcher.registry import InvalidReference, Reference

_TRANSPORTS: Final = ("oci", "oci-archive", "docker-archive")


@dataclass(frozen=True, slots=True)
class LocalLocation:
    """`transport:PATH[:NAME]`; `name` is a tag, for docker-archive a tag with its repository."""

    transport: str
    path: Path
    name: str | None

    def __str__(self) -> str:
        return f"{self.transport}:{self.path}" + (f":{self.name}" if self.name else "")


Location = Reference | LocalLocation


def parse_location(text: str) -> Location:
    """A registry reference (also as `docker://REF`) or a local image; UsageError tells what is wrong with it."""
    transport, colon, rest = text.partition(":")
    if colon and transport in _TRANSPORTS:
        path, _, name = rest.partition(":")
        if not path:
            raise UsageError(f"{text!r}: no path after {transport}:")
        return LocalLocation(transport, Path(path), name or None)
    try:
        return Reference.parse(text.removeprefix("docker://"))
    except InvalidReference as exc:
        raise UsageError(str(exc)) from exc
