"""Imports run one way; see docs/design/0001-architecture.md. Read from the source, so that nothing is executed."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PACKAGES = ("fastpull", "snapshotter", "converter", "fetcher", "layerformat")
# What each package may import of the project.
ALLOWED: Mapping[str, frozenset[str]] = {
    "layerformat": frozenset({"layerformat"}),
    "fetcher": frozenset({"fetcher", "layerformat"}),
    "snapshotter": frozenset({"snapshotter", "fetcher", "layerformat"}),
    "converter": frozenset({"converter", "fetcher", "layerformat"}),
    "fastpull": frozenset(PACKAGES),
}
# Narrower walls: the converter sees the registry client alone; the layer format, the stdlib and the zstd library.
CONVERTER_SEES = "fetcher.registry"
# The floors of the fetcher, each with those that it may stand on, and the modules beside them, of one floor together.
BESIDE = frozenset({"cache", "kernel", "model", "subprocesses", "tasks"})
FLOORS: Mapping[str, frozenset[str]] = {
    "registry": frozenset(),
    "beside": frozenset({"registry"}),
    "layers": frozenset({"registry", "beside"}),
    "scheduler": frozenset({"registry", "beside", "layers"}),
    "planes": frozenset({"registry", "beside", "layers", "scheduler"}),
    "profiles": frozenset({"registry", "beside", "layers", "scheduler"}),
    "node": frozenset({"registry", "beside", "layers", "scheduler", "planes", "profiles"}),
}
LAYERFORMAT_LIBRARIES = frozenset({"zstandard"})

Graph = dict[str, frozenset[str]]


def module_name(path: Path, top: Path) -> str:
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Full names of what a module imports; `from a import b` gives `a.b`, which may be a module or a name in one."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def graph(top: Path) -> Graph:
    """Module -> the modules of the project and the top-level libraries it imports."""
    sources = {module_name(path, top): path for package in PACKAGES for path in (top / package).rglob("*.py")}
    return {module: frozenset(_edges(module, path, sources)) for module, path in sources.items()}


def _edges(module: str, path: Path, sources: Mapping[str, Path]) -> Iterator[str]:
    tree = ast.parse(path.read_text(), filename=str(path))
    for name in imported(tree, module, is_package=path.name == "__init__.py"):
        if name.split(".")[0] not in PACKAGES:
            yield name.split(".")[0]
            continue
        # `a.b.Name` is an import of module `a.b`; the longest prefix that is a module counts.
        while name not in sources and "." in name:
            name = name.rpartition(".")[0]
        yield name


def chain(edges: Graph, start: str, forbidden: str) -> list[str] | None:
    """The shortest way from module `start` to a module of package `forbidden`, or None."""
    ways = {start: [start]}
    queue = [start]
    for module in queue:
        for following in sorted(edges.get(module, frozenset())):
            if following not in ways:
                ways[following] = [*ways[module], following]
                queue.append(following)
                if following.split(".")[0] == forbidden:
                    return ways[following]
    return None


def test_packages_import_only_what_is_below_them() -> None:
    edges = graph(TOP)
    found = [
        " -> ".join(way)
        for module in sorted(edges)
        for forbidden in sorted(set(PACKAGES) - ALLOWED[module.split(".")[0]])
        if (way := chain(edges, module, forbidden)) is not None
    ]
    assert not found, "forbidden imports:\n" + "\n".join(found)


def test_the_converter_sees_only_the_registry_client() -> None:
    found = [
        f"{module} -> {name}"
        for module, names in graph(TOP).items()
        for name in names
        if module.startswith("converter") and name.startswith("fetcher") and not name.startswith(CONVERTER_SEES)
    ]
    assert not found, "\n".join(found)


def test_the_fetchers_floors_stand_on_each_other() -> None:
    edges = {module: names for module, names in graph(TOP).items() if module.startswith("fetcher.")}
    assert {_floor(module) for module in edges} == set(FLOORS)
    found = [
        f"{module} -> {name}"
        for module, names in edges.items()
        for name in names
        if name.startswith("fetcher.") and _floor(name) not in (_floor(module), *FLOORS[_floor(module)])
    ]
    assert not found, "\n".join(found)


def _floor(module: str) -> str:
    name = module.split(".")[1]
    return "beside" if name in BESIDE else name


def test_the_layer_format_needs_the_stdlib_and_zstd_alone() -> None:
    libraries = {
        name: module
        for module, names in graph(TOP).items()
        if module.startswith("layerformat")
        for name in names
        if name.split(".")[0] not in (*PACKAGES, *sys.stdlib_module_names)
    }
    assert set(libraries) <= LAYERFORMAT_LIBRARIES, libraries


def test_ctypes_lives_in_one_module() -> None:
    users = sorted(module for module, names in graph(TOP).items() if "ctypes" in names)
    assert users in ([], ["fetcher.kernel"])


def test_no_module_is_named_like_one_of_the_stdlib() -> None:
    tops = {path.stem for path in TOP.glob("*.py")} | {path.name for path in TOP.iterdir() if path.is_dir()}
    assert not tops & (sys.stdlib_module_names - {"test"})


@pytest.mark.parametrize(
    ("source", "module", "is_package", "expected"),
    [
        ("import a.b", "x.y", False, ["a.b"]),
        ("from a import b, c", "x.y", False, ["a.b", "a.c"]),
        ("from . import b", "x.y", False, ["x.b"]),
        ("from .z import b", "x.y", False, ["x.z.b"]),
        ("from .z import b", "x.y", True, ["x.y.z.b"]),
        ("from ..z import b", "x.y.w", False, ["x.z.b"]),
        ("def f():\n  import late", "x", False, ["late"]),
    ],
)
def test_imports_are_read_right(source: str, module: str, is_package: bool, expected: list[str]) -> None:
    assert list(imported(ast.parse(source), module, is_package=is_package)) == expected


def test_a_forbidden_chain_is_found_and_named() -> None:
    edges = {"fetcher.a": frozenset({"fetcher.b"}), "fetcher.b": frozenset({"snapshotter.c"})}
    assert chain(edges, "fetcher.a", "snapshotter") == ["fetcher.a", "fetcher.b", "snapshotter.c"]
    assert chain(edges, "fetcher.a", "converter") is None
