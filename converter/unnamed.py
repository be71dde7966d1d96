"""Files that have no name until they are complete: a killed process leaves nothing behind."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from layerformat.digest import Digest, parse_digest

_COPY_BYTES: Final = 1 << 20


class UnnamedFile:
    """A file in `directory` that gets its name with `link` or `replace`, and is gone if it never does. Blocking.

    Made with O_TMPFILE; where the file system has no such thing, under a hidden name that `close` removes.
    """

    def __init__(self, directory: Path) -> None:
        self._hidden: Path | None = None
        self._hasher = hashlib.sha256()
        self.size = 0
        try:
            self.fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError:
            self.fd, name = tempfile.mkstemp(prefix=".fastpull-", dir=directory)
            os.fchmod(self.fd, 0o644)
            self._hidden = Path(name)

    def write(self, data: bytes) -> None:
        """Append."""
        self._hasher.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    @property
    def digest(self) -> Digest:
        """Of everything written."""
        return parse_digest(f"sha256:{self._hasher.hexdigest()}")

    def link(self, path: Path) -> None:
        """Give it the name `path`; a file that is there already stays."""
        source = str(self._hidden) if self._hidden else f"/proc/self/fd/{self.fd}"
        with suppress(FileExistsError):
            # Without a directory fd Python calls link(2), which does not follow. The path is absolute: any fd will do.
            os.link(source, path, src_dir_fd=self.fd, follow_symlinks=True)

    def replace(self, path: Path) -> None:
        """Give it the name `path`, in place of what is there."""
        with tempfile.TemporaryDirectory(prefix=".fastpull-", dir=path.parent) as scratch:
            name = Path(scratch) / "new"
            self.link(name)
            name.replace(path)

    def close(self) -> None:
        """Its name, if it got one, stays."""
        os.close(self.fd)
        if self._hidden is not None:
            self._hidden.unlink(missing_ok=True)
