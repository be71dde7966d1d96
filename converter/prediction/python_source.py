"""What a Python source does when it is executed as a module, as far as its syntax tree tells: in order, which modules
it imports, which functions it calls, which attributes of modules it asks for.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Final, NamedTuple

from converter.prediction.python_conditions import constants, dotted

#: Whether a condition holds, if that is known.
Decide = Callable[[ast.expr], bool | None]

#: Larger sources are data.
MAX_SOURCE_BYTES: Final = 4 << 20
#: The function by which transformers reads the sources of all its models, to learn what they define.
_READS_SOURCES: Final = "define_import_structure"
_LIBRARY: Final = re.compile(r"lib[\w+-]+\.so[\w.*\[\]-]*")


class Import(NamedTuple):
    """`import module as alias`, or with `names` `from module import`: each with the name it gets; "*" is a name."""

    module: str  # absolute, never ""
    names: tuple[tuple[str, str], ...] = ()
    alias: str | None = None


class Use(NamedTuple):
    """`a.b.c`, or a call of it."""

    name: str
    called: bool


class ReadSources(NamedTuple):
    """All sources below a directory, relative to the module's own, are read."""

    directory: str


class LoadLibrary(NamedTuple):
    """A shared library may be loaded: its name, or a pattern of glob(7)."""

    pattern: str


Step = Import | Use | ReadSources | LoadLibrary


class Source:
    """One module's syntax tree. What cannot be parsed does nothing."""

    def __init__(self, text: bytes, module: str, *, is_package: bool, package: str | None = None) -> None:
        """`package` is what relative imports start from, where the module's name does not tell."""
        self._package = package or (module if is_package else module.rpartition(".")[0])
        self._is_main = module == "__main__"
        self._body: Sequence[ast.stmt] = ()
        try:
            with warnings.catch_warnings(action="ignore"):
                self._body = ast.parse(text).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            pass

    def steps(self, decide: Decide) -> Iterator[Step]:
        """Its execution; of a program, that of all its functions, too."""
        yield from self._statements(self._body, decide)
        if self._is_main:
            for body in self._functions.values():
                yield from self._statements(body, decide)

    def function(self, name: str, decide: Decide) -> Iterator[Step]:
        """The execution of one of its functions; nothing if it has none of that name."""
        return self._statements(self._functions.get(name, ()), decide)

    @cached_property
    def constants(self) -> Mapping[str, object]:
        """Names that stand for constants."""
        return constants(self._body)

    def has_function(self, name: str) -> bool:
        return name in self._functions

    @cached_property
    def _functions(self) -> Mapping[str, Sequence[ast.stmt]]:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        return {statement.name: statement.body for statement in self._body if isinstance(statement, kinds)}

    @cached_property
    def told_to_type_checkers(self) -> Mapping[str, str]:
        """Names that are imported `if TYPE_CHECKING`, with the module they are from.

        Packages that load their parts on demand tell type checkers, and us, where what is.
        """
        return {name: told.module for told in self._for_type_checkers() for name, _ in told.names if name != "*"}

    @cached_property
    def stars_told_to_type_checkers(self) -> Sequence[str]:
        """Modules that are imported from as a whole `if TYPE_CHECKING`."""
        return [told.module for told in self._for_type_checkers() if ("*", "*") in told.names]

    def _for_type_checkers(self) -> Iterator[Import]:
        for statement in self._body:
            if isinstance(statement, ast.If) and _is_type_checking(statement.test):
                steps = self._statements(statement.body, lambda _: None)
                yield from (step for step in steps if isinstance(step, Import))

    def _statements(self, body: Iterable[ast.stmt], decide: Decide) -> Iterator[Step]:
        for statement in body:
            match statement:
                case ast.Import(names=names):
                    yield from (Import(alias.name, alias=alias.asname) for alias in names)
                case ast.ImportFrom(names=names):
                    if module := self._absolute(statement.module or "", statement.level):
                        yield Import(module, tuple((alias.name, alias.asname or alias.name) for alias in names))
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    defaults = [*statement.args.defaults, *filter(None, statement.args.kw_defaults)]
                    yield from _expressions([*statement.decorator_list, *defaults])
                case ast.ClassDef():
                    keywords = [keyword.value for keyword in statement.keywords]
                    yield from _expressions([*statement.decorator_list, *statement.bases, *keywords])
                    yield from self._statements(statement.body, decide)
                case ast.If(test=test, body=then, orelse=otherwise):
                    yield from _expressions([test])
                    holds = False if _is_type_checking(test) else decide(test)
                    if holds is not False:
                        yield from self._statements(then, decide)
                    if holds is not True:
                        yield from self._statements(otherwise, decide)
                case ast.Try() | ast.TryStar():
                    handlers = [inner for handler in statement.handlers for inner in handler.body]
                    inner = [*statement.body, *handlers, *statement.orelse, *statement.finalbody]
                    yield from self._statements(inner, decide)
                case ast.With() | ast.AsyncWith():
                    yield from _expressions([item.context_expr for item in statement.items])
                    yield from self._statements(statement.body, decide)
                case ast.For() | ast.AsyncFor():
                    yield from _expressions([statement.iter])
                    yield from self._statements([*statement.body, *statement.orelse], decide)
                case ast.While():
                    yield from _expressions([statement.test])
                    yield from self._statements([*statement.body, *statement.orelse], decide)
                case _:
                    yield from _expressions(ast.iter_child_nodes(statement))

    def _absolute(self, module: str, level: int) -> str:
        if not level:
            return module
        parts = self._package.split(".") if self._package else []
        if level > len(parts):
            return ""
        return ".".join([*parts[: len(parts) - level + 1], *([module] if module else [])])


def _expressions(nodes: Iterable[ast.AST]) -> Iterator[Step]:
    """What is asked for and called in expressions, outside of functions that are only defined there."""
    stack = list(nodes)[::-1]
    while stack:
        node = stack.pop()
        match node:
            case ast.Lambda():
                continue
            case ast.Call(func=function, args=arguments, keywords=keywords):
                name = dotted(function)
                if name is None:
                    stack.append(function)
                elif name == _READS_SOURCES:
                    yield ReadSources(next(_texts(arguments[:1]), ""))
                else:
                    yield Use(name, called=True)
                stack += [*[keyword.value for keyword in keywords], *arguments][::-1]
            case ast.Attribute():
                name = dotted(node)
                if name is None:
                    stack.append(node.value)
                else:
                    yield Use(name, called=False)
            case ast.Constant(value=str() as text):
                if len(text) < 100 and _LIBRARY.fullmatch(text):
                    yield LoadLibrary(text)
            case _:
                stack += list(ast.iter_child_nodes(node))[::-1]


def _texts(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                yield inner.value


def _is_type_checking(test: ast.expr) -> bool:
    return (dotted(test) or "").rpartition(".")[2] == "TYPE_CHECKING"


_DOTTED = re.compile(rb"(?<=\0)[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?=\0)")


def dotted_names(data: bytes) -> list[str]:
    """C strings in a compiled extension that may be names of modules it imports, each once."""
    return list(dict.fromkeys(name.decode() for name in _DOTTED.findall(data)))


_ALL = re.compile(rb"__all__[^\[(]{0,200}[\[(]([^\])]*)")


def exports(text: bytes, name: str) -> bool:
    """Whether a source seems to define a name at its top, or has it in `__all__`; faster than parsing it."""
    word = re.escape(name.encode())
    if re.search(rb"^(?:class|def|async def) " + word + rb"\b|^" + word + rb"\s*[:=]", text, re.M):
        return True
    return any(quote + name.encode() + quote in listed for listed in _ALL.findall(text) for quote in (b'"', b"'"))
