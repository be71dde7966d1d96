"""Which files a Python program reads to import its modules, in the order of execution, told from its sources."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final, NamedTuple, Protocol

from converter.prediction.files import File, ImageFiles
from converter.prediction.python_conditions import CONSTANTS, decide
from converter.prediction.python_layout import STARTUP, PythonLayout
from converter.prediction.python_source import (
    MAX_SOURCE_BYTES,
    Decide,
    Import,
    LoadLibrary,
    ReadSources,
    Source,
    Step,
    Use,
    dotted_names,
    exports,
)

#: Beyond any image; bounds what a hostile one costs.
MAX_MODULES: Final = 50_000
#: Extensions up to this size are searched for names of modules.
_MAX_SEARCHED: Final = 16 << 20
#: How deep functions are followed that call each other, modules that import all from each other, names that are
#: imported from where they were imported.
_MAX_DEPTH: Final = 8


class Readers(Protocol):
    """Who is told what is read, in order."""

    def read(self, file: File) -> None:
        """A file as a whole."""

    def load(self, file: File) -> None:
        """A shared library, with those it needs."""

    def may_load(self, pattern: str, directory: str) -> None:
        """A shared library with such a name, somewhere below the directory."""


class _Origin(NamedTuple):
    """What a name in a module stands for: a module, or an attribute of it."""

    module: str
    attribute: str = ""


_Scope = MutableMapping[str, _Origin]


@dataclass(slots=True, eq=False)
class _Module:
    """One that was found. A package without `__init__` has no file; only packages have directories."""

    name: str
    file: File | None
    directories: tuple[str, ...] = ()
    source: Source | None = field(default=None, repr=False)
    scope: _Scope = field(default_factory=dict, repr=False)

    @property
    def site(self) -> str | None:
        """The directory of `sys.path` that it was found in, unless symbolic links lead elsewhere."""
        if self.file is None:
            return None
        above = PurePosixPath(self.file.path).parents
        depth = self.name.count(".") + bool(self.directories)
        return str(above[depth]) if depth < len(above) else None

    @property
    def is_extension(self) -> bool:
        return self.file is not None and self.file.path.endswith(".so")


class PythonImports:
    """Imports as one interpreter of the image does them: each module once."""

    def __init__(
        self, files: ImageFiles, layout: PythonLayout, readers: Readers, environment: Mapping[str, str]
    ) -> None:
        self._files = files
        self._environment = environment
        self._layout = layout
        self._readers = readers
        self._path: tuple[str, ...] = layout.path
        self._modules: dict[str, _Module | None] = {}
        self._called: set[tuple[str, str]] = set()
        self._suffixes = tuple(_suffixes(layout))

    def run(self, text: bytes, directory: str) -> None:
        """A program that is in `text`; `directory` is where it lies, for the modules beside it."""
        self._begin(directory)
        self._run(Source(text, "__main__", is_package=False))

    def run_module(self, name: str, directory: str) -> None:
        """`python -m name`, in a working directory."""
        self._begin(directory)
        self._follow(_chain(name))
        module = self._modules.get(name)
        if module is not None and module.directories:
            self._follow(iter([f"{name}.__main__"]))
            module = self._modules.get(f"{name}.__main__")
        if module is not None and module.file is not None and not module.is_extension:
            package = name if module.name.endswith(".__main__") else name.rpartition(".")[0]
            self._run(Source(self._text(module.file), "__main__", is_package=False, package=package))

    def _begin(self, directory: str) -> None:
        self._path = (directory, *self._layout.path)
        self._follow(iter(STARTUP))

    def _run(self, source: Source) -> None:
        main = _Module("__main__", None, source=source)
        self._follow(self._execute(main, source.steps(self._decide(main)), main.scope, 0))

    def _follow(self, first: Iterator[str]) -> None:
        """Import the names that are yielded; what a module imports in its turn comes before the next name."""
        stack = [first]
        while stack and len(self._modules) < MAX_MODULES:
            name = next(stack[-1], None)
            if name is None:
                stack.pop()
            elif name not in self._modules:
                stack.append(self._import(name))

    def _import(self, name: str) -> Iterator[str]:
        """Find one module, whose package was imported before; what it imports itself."""
        module = self._modules[name] = self._find(name)
        if module is None or module.file is None:
            return iter(())
        if module.is_extension:
            self._readers.load(module.file)
            return self._named_in(module.file)
        compiled = self._files.file(self._layout.compiled(module.file.path))
        self._readers.read(compiled or module.file)
        module.source = self._parse(module)
        return self._execute(module, module.source.steps(self._decide(module)), module.scope, 0)

    def _parse(self, module: _Module) -> Source:
        assert module.file is not None
        return Source(self._text(module.file), module.name, is_package=bool(module.directories))

    def _text(self, file: File) -> bytes:
        """A source; nothing of one that is too large to be one."""
        return self._files.read(file) if file.size <= MAX_SOURCE_BYTES else b""

    # Finding

    def _find(self, name: str) -> _Module | None:
        package, _, last = name.rpartition(".")
        if not package:
            return self._search(name, last, self._path)
        parent = self._modules.get(package)
        return None if parent is None else self._search(name, last, parent.directories)

    def _search(self, name: str, last: str, directories: Iterable[str]) -> _Module | None:
        """As importlib's finder: in each directory a package, an extension, a source; else all parts of a namespace."""
        portions = []
        for directory in directories:
            path = f"{directory}/{last}"
            if self._files.is_directory(path):
                if (file := self._files.file(f"{path}/__init__.py")) is not None:
                    return _Module(name, file, (path,))
                portions.append(path)
            for suffix in self._suffixes:
                if (file := self._files.file(path + suffix)) is not None:
                    return _Module(name, file)
        return _Module(name, None, tuple(portions)) if portions else None

    def _peek(self, name: str) -> _Module | None:
        """A module, without importing it or its packages."""
        found: _Module | None = None
        directories: Sequence[str] = self._path
        way = ""
        for part in name.split("."):
            way = f"{way}.{part}" if way else part
            found = self._search(way, part, directories)
            if found is None:
                return None
            directories = found.directories
        return found

    def _is_below(self, module: _Module, name: str) -> bool:
        """Whether a package has a module of that name."""
        below = f"{module.name}.{name}"
        if below in self._modules:
            return self._modules[below] is not None
        return bool(module.directories) and self._search(below, name, module.directories) is not None

    # Deciding

    def _decide(self, module: _Module) -> Decide:
        """Of the conditions in a module: what is known of them when it is executed."""
        return lambda test: decide(test, lambda name: self._constant(module, name), self._environment)

    def _constant(self, module: _Module, name: str) -> object:
        """What a name in a module stands for. Raises LookupError where that is no constant."""
        if name == "__name__":
            return module.name
        first, _, rest = name.partition(".")
        origin = module.scope.get(first)
        if origin is None:
            assert module.source is not None
            return module.source.constants[name]
        full = ".".join(filter(None, (*origin, rest)))
        if full == "sys.version_info":
            return tuple(map(int, self._layout.version.split(".")))
        if full in CONSTANTS:
            return CONSTANTS[full]
        where, _, attribute = full.rpartition(".")
        found = self._modules.get(where)
        if found is None or found.source is None:
            raise LookupError(name)
        return found.source.constants[attribute]

    # Executing

    def _execute(self, module: _Module, steps: Iterable[Step], scope: _Scope, depth: int) -> Iterator[str]:
        """The names that must be imported, one by one; it is resumed when the last one is. `scope` learns its names."""
        for step in steps:
            match step:
                case Import():
                    yield from self._execute_import(step, scope)
                case Use(name, called):
                    yield from self._use(module, name, scope, depth, called=called)
                case ReadSources(directory):
                    self._read_sources(module, directory)
                case LoadLibrary(pattern):
                    if (site := module.site) is not None:
                        self._readers.may_load(pattern, site)

    def _execute_import(self, wanted: Import, scope: _Scope) -> Iterator[str]:
        yield from _chain(wanted.module)
        if not wanted.names:
            top = wanted.module.partition(".")[0]
            scope[wanted.alias or top] = _Origin(wanted.module if wanted.alias else top)
            return
        module = self._modules.get(wanted.module)
        for name, alias in wanted.names if module is not None else ():
            assert module is not None
            scope[alias] = _Origin(wanted.module, name)
            if name != "*":
                yield from self._attribute(module, name)
            elif module.source is not None:
                yield from self._call(module, "__getattr__", 0)

    def _attribute(self, module: _Module, name: str) -> Iterator[str]:
        """An attribute of a module is asked for, where that takes another module."""
        for _ in range(_MAX_DEPTH):
            if self._is_below(module, name):
                yield f"{module.name}.{name}"
                return
            told = self._told(module, name)
            if told is None:
                return
            yield from _chain(told)
            found = self._modules.get(told)
            if found is None or found is module:
                return
            module = found

    def _use(self, module: _Module, name: str, scope: _Scope, depth: int, *, called: bool) -> Iterator[str]:
        """`a.b.c` is evaluated: modules on the way are imported, a function at its end is followed."""
        first, *rest = name.split(".")
        origin = scope.get(first)
        if origin is None:
            if called and not rest:
                yield from self._call(module, first, depth)
            return
        names = [*filter(None, [origin.attribute]), *rest]
        found = self._modules.get(origin.module)
        for number, attribute in enumerate(names):
            if found is None:
                return
            if self._is_below(found, attribute):
                yield f"{found.name}.{attribute}"
                found = self._modules.get(f"{found.name}.{attribute}")
            elif called and number == len(names) - 1:
                yield from self._call(found, attribute, depth)
                return
            else:
                yield from self._attribute(found, attribute)
                return

    def _call(self, module: _Module, name: str, depth: int) -> Iterator[str]:
        """A function is called; where the module has it from elsewhere, that one."""
        for _ in range(_MAX_DEPTH):
            source = module.source
            if source is None or depth >= _MAX_DEPTH or (module.name, name) in self._called:
                return
            self._called.add((module.name, name))
            if source.has_function(name):
                steps = source.function(name, self._decide(module))
                yield from self._execute(module, steps, ChainMap({}, module.scope), depth + 1)
                return
            origin = module.scope.get(name)
            found = self._modules.get(origin.module) if origin is not None and origin.attribute else None
            if origin is None or found is None:
                return
            module, name = found, origin.attribute

    def _read_sources(self, module: _Module, directory: str) -> None:
        for above in module.directories:
            for file in self._files.walk(f"{above}/{directory}"):
                if file.path.endswith(".py"):
                    self._readers.read(file)

    # Packages that load their parts on demand

    def _told(self, module: _Module, name: str) -> str | None:
        """From which module a package has a name, as it tells type checkers."""
        if module.source is None:
            return None
        told = module.source.told_to_type_checkers.get(name)
        stars = module.source.stars_told_to_type_checkers
        return told or next((star for star in stars if self._offers(star, name, _MAX_DEPTH)), None)

    def _offers(self, star: str, name: str, depth: int) -> bool:
        """Whether a module seems to export a name, or a package tells type checkers of one that does."""
        module = self._peek(star)
        if module is None or module.file is None or module.is_extension or not depth:
            return False
        if exports(self._text(module.file), name):
            return True
        if not module.directories:
            return False
        source = self._parse(module)
        return name in source.told_to_type_checkers or any(
            self._offers(below, name, depth - 1) for below in source.stars_told_to_type_checkers
        )

    def _named_in(self, file: File) -> Iterator[str]:
        """Modules whose names an extension holds. Compiled code imports by name, too; only what exists counts."""
        if file.size <= _MAX_SEARCHED:
            for name in dotted_names(self._files.read(file)):
                if self._peek(name) is not None:
                    yield from _chain(name)


def _chain(name: str) -> Iterator[str]:
    """A module's packages, outermost first, then itself."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _suffixes(layout: PythonLayout) -> Iterator[str]:
    """Of extensions and sources, in importlib's order."""
    for machine in ("x86_64", "aarch64"):
        yield f".{layout.cache_tag}-{machine}-linux-gnu.so"
    yield from (".abi3.so", ".so", ".py")
