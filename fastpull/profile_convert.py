"""Profiles and conversions: which one frames are cut along, and how the result gets it."""

from pathlib import Path

import click

from converter.locations import parse_location
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.profile_target import all_targets
from fetcher.profiles import referrers
from fetcher.profiles.document import MAX_BYTES, ProfileError
from fetcher.profiles.merging import merge
from fetcher.profiles.profile import Profile, decode_profile
from fetcher.registry import NotFound, Reference, RegistryClient, RegistryError

AUTO = "auto"


def read_profile(file: Path) -> Profile:
    """A profile in a file. Raises Failure for one that is no good, OSError. Blocking."""
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    try:
        return decode_profile(data)
    except ProfileError as problem:
        raise Failure(f"{file} {problem}", code=ExitCode.MALFORMED) from None


async def chosen_profile(client: RegistryClient, choice: str, source: str, destination: str) -> Profile | None:
    """The profile in a file, or for "auto" what is attached to the source and to what the destination is now.

    None, with a note, where "auto" finds none. Raises Failure or RegistryError.
    """
    if choice != AUTO:
        return read_profile(Path(choice))
    references = [where for where in map(parse_location, (source, destination)) if isinstance(where, Reference)]
    found = [profile for reference in dict.fromkeys(references) for profile in await _attached(client, reference)]
    if not found:
        click.echo("fastpull: note: neither SRC nor DST has a profile: frames are cut without one", err=True)
        return None
    return merge(found)


async def _attached(client: RegistryClient, reference: Reference) -> list[Profile]:
    """Of every platform's image."""
    try:
        targets = await all_targets(client, reference)
    except NotFound:
        return []
    found = [await referrers.pull(client, target.origin, target.digest, target.diff_ids) for target in targets]
    return [profile for profile in found if profile is not None]


async def attach(client: RegistryClient, destination: str, profile: Profile) -> None:
    """Attach the profile to what was made of it: other cuts, the same tar. A refusal is a note, the image is there."""
    reference = parse_location(destination)
    if not isinstance(reference, Reference):
        return
    try:
        for target in await all_targets(client, reference):
            part = profile.restricted_to(target.diff_ids)
            if part is not None:
                await referrers.push(client, target.origin, target.digest, part)
    except RegistryError as problem:
        click.echo(f"fastpull: note: the profile was not attached to {reference}: {problem}", err=True)
