"""Where the programs of the laboratory are: the checkout's own tools directory first, then PATH."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from fastpull.lab.process import LabError

# Debian puts runc and docker-registry's neighbours where a plain user's PATH may not look.
_SYSTEM_DIRS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def tools_dir() -> Path:
    """Directory with what `make` built: `$FASTPULL_TOOLS`, or `.tools/bin` of the checkout this file is in."""
    named = os.environ.get("FASTPULL_TOOLS")
    return Path(named) if named else Path(__file__).resolve().parents[2] / ".tools" / "bin"


def _debian_dirs() -> tuple[str, ...]:
    """Programs of Debian packages that were unpacked and not installed, because installing starts a service."""
    unpacked = tools_dir().parent / "debian" / "usr"
    return str(unpacked / "bin"), str(unpacked / "sbin")


def search_path() -> str:
    own = os.environ.get("PATH", "")
    return os.pathsep.join([str(tools_dir()), own, *_SYSTEM_DIRS, *_debian_dirs()])


def find(name: str) -> Path:
    """Path of a program. Raises `LabError` with what provides it."""
    found = find_optional(name)
    if found is None:
        raise LabError(f"{name} not found: `make tools` sets up what the laboratory needs")
    return found


def find_optional(name: str) -> Path | None:
    """Path of a program that need not be there."""
    found = shutil.which(name, path=search_path())
    return Path(found) if found else None


def find_system(name: str) -> Path | None:
    """Path of the distribution's program of that name, or None."""
    found = shutil.which(name, path=os.pathsep.join([*_SYSTEM_DIRS, *_debian_dirs()]))
    return Path(found) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One generation of containerd: the directory of its programs, and its configuration's version."""

    name: str
    bin_dir: Path
    config_version: int

    @property
    def containerd(self) -> Path:
        return self.bin_dir / "containerd"

    @property
    def ctr(self) -> Path:
        return self.bin_dir / "ctr"

    def path(self) -> str:
        """PATH for its processes: its own shim is found before any other."""
        return os.pathsep.join([str(self.bin_dir), search_path()])


def debian_release() -> Release | None:
    """The distribution's containerd (1.x on Debian 12), or None."""
    found = find_system("containerd")
    return Release(name="debian", bin_dir=found.parent, config_version=2) if found else None


def current_release() -> Release | None:
    """The containerd 2.x that `make tools` builds, or None."""
    here = tools_dir()
    return Release(name="current", bin_dir=here, config_version=3) if (here / "containerd").exists() else None
