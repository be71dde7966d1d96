"""Profiles on this node: ``<root>/profiles/<hex of the manifest's digest>.json``. Everything here blocks briefly."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fetcher.profiles.document import MAX_BYTES, ProfileError
from fetcher.profiles.profile import Profile, decode_profile, encode_profile
from layerformat.digest import Digest, parse_digest
from layerformat.errors import FormatError

#: Files kept; the longest unused go first.
MAX_FILES = 1000


class ProfileStore:
    """The local profiles. A file is replaced whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, manifest: Digest) -> Path:
        return self._directory / f"{parse_digest(manifest).removeprefix('sha256:')}.json"

    def load(self, manifest: Digest) -> Profile | None:
        """The profile of an image; None if there is none. Raises ProfileError or OSError for one that is no good."""
        try:
            with self._path(manifest).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
                os.utime(file.fileno())
        except FileNotFoundError:
            return None
        return decode_profile(data)

    def save(self, manifest: Digest, profile: Profile) -> None:
        """Keep a profile in place of the one before; one call at a time. Raises OSError."""
        data = encode_profile(profile)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._directory.glob(".new-*"):  # by a crash
            left.unlink(missing_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".new-", dir=self._directory)
        draft = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fdatasync(file.fileno())
            draft.rename(self._path(manifest))
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        self._prune()

    def remove(self, manifest: Digest) -> bool:
        """Tells whether there was one."""
        try:
            self._path(manifest).unlink()
        except FileNotFoundError:
            return False
        return True

    def manifests(self) -> list[Digest]:
        """Of every image that has a profile here, good or not."""
        return sorted(digest for digest, _ in self._files())

    def _files(self) -> Iterator[tuple[Digest, Path]]:
        with suppress(FileNotFoundError):
            for path in self._directory.glob("*.json"):
                with suppress(FormatError):
                    yield parse_digest(f"sha256:{path.name.removesuffix('.json')}"), path

    def _prune(self) -> None:
        paths = [path for _, path in self._files()]
        if len(paths) > MAX_FILES:
            for path in sorted(paths, key=lambda each: each.stat().st_mtime)[:-MAX_FILES]:
                path.unlink(missing_ok=True)


def load_sound(store: ProfileStore, manifest: Digest) -> tuple[Profile | None, str | None]:
    """The profile, or why the file that is there is no good."""
    try:
        return store.load(manifest), None
    except (ProfileError, OSError) as error:
        return None, str(error)
