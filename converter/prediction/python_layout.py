"""Where an image's Python looks for modules: what CPython's site does at its beginning, from the files alone.

Sources: docs.python.org, "The initialization of the sys.path module search path", "site", PEP 405 (virtual
environments), PEP 3147 (`__pycache__`), PEP 3149 (tags of extensions).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from converter.prediction.files import ImageFiles

_VERSION = re.compile(r"python(3\.\d+)")
#: Read at every start, whatever the program.
STARTUP = (
    *("encodings", "encodings.aliases", "encodings.utf_8", "codecs", "io", "abc", "site", "os", "stat"),
    *("sitecustomize", "usercustomize"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonLayout:
    """Of one interpreter. `path` is `sys.path` without the program's directory."""

    version: str  # "3.11"
    path: tuple[str, ...]

    @property
    def cache_tag(self) -> str:
        return f"cpython-{self.version.replace('.', '')}"

    def compiled(self, source: str) -> str:
        """Where the bytecode of a source is kept."""
        directory, name = posixpath.split(source)
        return f"{directory}/__pycache__/{name.removesuffix('.py')}.{self.cache_tag}.pyc"


def python_layout(files: ImageFiles, executable: str, environment: Mapping[str, str]) -> PythonLayout | None:
    """Of the interpreter at a path; None if it is no CPython 3, or has no library."""
    real = files.resolve(executable)
    if real is None or not re.fullmatch(r"python(3(\.\d+)?)?", posixpath.basename(real)):
        return None
    prefixes = list(dict.fromkeys(_prefixes(files, executable, real)))
    version = _version(files, real, prefixes)
    if version is None:
        return None
    library = [path for prefix in prefixes for path in _library(files, prefix, version)]
    sites = [path for prefix in prefixes for path in _sites(files, prefix, version)]
    linked = [path for site in sites for path in _path_files(files, site)]
    given = [path for path in environment.get("PYTHONPATH", "").split(":") if path]
    return PythonLayout(version=version, path=tuple(dict.fromkeys([*given, *library, *sites, *linked])))


def _prefixes(files: ImageFiles, executable: str, real: str) -> Iterator[str]:
    """Of a virtual environment, then of the interpreter it was made with; for Debian's, `/usr/local` first."""
    beside = posixpath.dirname(posixpath.normpath(executable))
    for directory in (beside, posixpath.dirname(beside)):
        if files.file(f"{directory}/pyvenv.cfg") is not None:
            yield directory
    prefix = posixpath.dirname(posixpath.dirname(real))
    if prefix == "/usr":
        yield "/usr/local"
    yield prefix


def _version(files: ImageFiles, real: str, prefixes: list[str]) -> str | None:
    if named := _VERSION.fullmatch(posixpath.basename(real)):
        return named[1]
    for prefix in reversed(prefixes):
        for name in files.names(f"{prefix}/lib"):
            if (named := _VERSION.fullmatch(name)) and files.file(f"{prefix}/lib/{name}/os.py") is not None:
                return named[1]
    return None


def _library(files: ImageFiles, prefix: str, version: str) -> Iterator[str]:
    for lib in ("lib64", "lib"):
        directory = f"{prefix}/{lib}/python{version}"
        if files.file(f"{directory}/os.py") is not None:
            yield from (directory, f"{directory}/lib-dynload")


def _sites(files: ImageFiles, prefix: str, version: str) -> Iterator[str]:
    for directory in (f"lib64/python{version}", f"lib/python{version}", "lib/python3"):
        for name in ("site-packages", "dist-packages"):
            if files.is_directory(path := f"{prefix}/{directory}/{name}"):
                yield path


def _path_files(files: ImageFiles, site: str) -> Iterator[str]:
    """Directories that `*.pth` files add: installations for development do it."""
    for name in files.names(site):
        file = files.file(f"{site}/{name}") if name.endswith(".pth") else None
        if file is not None:
            for line in files.read(file, 0, 64 << 10).decode(errors="surrogateescape").splitlines():
                if line and not line.startswith(("#", "import ", "import\t")):
                    yield posixpath.join(site, line.rstrip())
