"""Conditions that are decided before a program runs: platform, version, environment, constants of modules."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

#: What a name stands for; raises LookupError where that is not known.
ValueOf = Callable[[str], Any]

#: What does not depend on the image.
CONSTANTS: Final[Mapping[str, object]] = {"sys.platform": "linux", "os.name": "posix"}
_SYSTEM: Final = "Linux"
_COMPARISONS: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: lambda one, other: one is other or one == other,
    ast.IsNot: lambda one, other: not (one is other or one == other),
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
}


def decide(test: ast.expr, value_of: ValueOf, environment: Mapping[str, str]) -> bool | None:
    """Whether a condition holds; None where that depends on more than is known."""
    try:
        return bool(_Conditions(value_of, environment).value(test))
    except (LookupError, TypeError, AttributeError):
        return None


class _Conditions:
    """Evaluates the few kinds of expressions that conditions are made of; raises LookupError for all others."""

    def __init__(self, value_of: ValueOf, environment: Mapping[str, str]) -> None:
        self._value_of = value_of
        self._environment = environment

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=constant):
                return constant
            case ast.List(elts=elements):
                return list(map(self.value, elements))
            case ast.Tuple(elts=elements) | ast.Set(elts=elements):
                return tuple(map(self.value, elements))
            case ast.Name() | ast.Attribute() if (name := dotted(node)) is not None:
                return self._value_of(name)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self.value(operand)
            case ast.BoolOp(op=op, values=values):
                return self._joined(values, stops_at=isinstance(op, ast.Or))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return _COMPARISONS[type(op)](self.value(left), self.value(right))
            case ast.Call(func=function, args=arguments, keywords=[]):
                return self._call(function, arguments)
        raise LookupError("not a kind of expression that is known")

    def _joined(self, values: Sequence[ast.expr], *, stops_at: bool) -> bool:
        """Of `and` and `or`: one part that is known can decide, whatever the others are."""
        unknown = False
        for value in values:
            try:
                if bool(self.value(value)) is stops_at:
                    return stops_at
            except LookupError:
                unknown = True
        if unknown:
            raise LookupError("a part is not known")
        return not stops_at

    def _call(self, function: ast.expr, arguments: Sequence[ast.expr]) -> Any:
        name = dotted(function)
        if name == "platform.system" and not arguments:
            return _SYSTEM
        if name in ("os.getenv", "os.environ.get") and arguments:
            return self._environment.get(*map(self.value, arguments))
        if isinstance(function, ast.Attribute) and function.attr == "startswith":
            return self.value(function.value).startswith(*map(self.value, arguments))
        raise LookupError("not a call that is known")


def dotted(node: ast.expr) -> str | None:
    """`a.b.c`, if it is that."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(names)]) if isinstance(node, ast.Name) else None


def constants(body: Sequence[ast.stmt]) -> Mapping[str, object]:
    """Names that a module gives a constant at its top, and nothing else anywhere."""
    given: dict[str, object] = {}
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                given[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value)):
                given[name] = value
    if given:
        times = dict.fromkeys(given, 0)
        for node in (inner for statement in body for inner in ast.walk(statement)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in times:
                times[node.id] += 1
        given = {name: value for name, value in given.items() if times[name] == 1}
    return given
