"""containerd's filter grammar (`pkg/filters`), for `List`.

    filter    := selector ("," selector)*          all of them must match
    selector  := fieldpath [operator value]        a bare fieldpath asks for presence
    fieldpath := field ("." field)*
    field     := quoted | [A-Za-z0-9_]+
    operator  := "==" | "!=" | "~="
    value     := quoted | any run of printable characters but space and comma
    quoted    := a Go string in double quotes; after "~=" also between / / or | |

Several filters are alternatives; no filter, or an empty one, matches everything. Space is allowed before a field, an
operator and a value, nowhere else.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from snapshotter.errors import InvalidArgument

Field = Callable[[Sequence[str]], str | None]
"""Gives the value at a field path of the object at hand; None when it has none."""


class Operator(enum.Enum):
    PRESENT = ""
    EQUAL = "=="
    NOT_EQUAL = "!="
    MATCHES = "~="


@dataclass(frozen=True, slots=True)
class Selector:
    path: tuple[str, ...]
    operator: Operator = Operator.PRESENT
    value: str = ""

    def matches(self, field: Field) -> bool:
        """An absent field differs from every value, and is matched as if it were empty; so containerd has it."""
        found = field(self.path)
        match self.operator:
            case Operator.PRESENT:
                return found is not None
            case Operator.EQUAL:
                return found == self.value
            case Operator.NOT_EQUAL:
                return (found or "") != self.value
            case Operator.MATCHES:
                return _search(self.value, found or "")


def _search(pattern: str, text: str) -> bool:
    """A pattern that does not compile matches nothing."""
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return False


@dataclass(frozen=True, slots=True)
class Filter:
    """Alternatives, each a tuple of selectors that must all match."""

    alternatives: tuple[tuple[Selector, ...], ...] = ((),)

    def matches(self, field: Field) -> bool:
        return any(all(selector.matches(field) for selector in each) for each in self.alternatives)


def parse_filters(texts: Iterable[str]) -> Filter:
    """Raises InvalidArgument, naming the filter and the position, for what the grammar does not allow."""
    alternatives = tuple(_Parser(text).selectors() if text else () for text in texts)
    return Filter(alternatives or ((),))


_FIELD: Final = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR: Final = re.compile(r"[=!~]+")
_VALUE: Final = re.compile(r"[^\s,=!~.\"/|][^\s,]*")
_QUOTED: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_ALTERNATIVE_QUOTED: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)*/|\|(?:[^|\\\n]|\\.)*\|')
_SPACE: Final = re.compile(r"\s*")


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        if "\0" in text or "\ufffd" in text:
            raise self._error("illegal character")

    def selectors(self) -> tuple[Selector, ...]:
        found = [self._selector()]
        while self._position < len(self._text):
            if not self._accept(","):
                raise self._error("unexpected input")
            found.append(self._selector())
        return tuple(found)

    def _selector(self) -> Selector:
        path = [self._field()]
        while self._accept("."):
            path.append(self._field())
        if self._position == len(self._text) or self._text[self._position] == ",":
            return Selector(tuple(path))
        operator = self._operator()
        return Selector(tuple(path), operator, self._value(operator))

    def _field(self) -> str:
        self._take(_SPACE)
        quoted = self._take(_QUOTED)
        if quoted is not None:
            return self._unquote(quoted)
        name = self._take(_FIELD)
        if name is None:
            raise self._error("expected field or quoted")
        return name

    def _operator(self) -> Operator:
        self._take(_SPACE)
        text = self._take(_OPERATOR)
        try:
            return Operator(text or "?")
        except ValueError:
            raise self._error('expected an operator ("=="|"!="|"~=")') from None

    def _value(self, operator: Operator) -> str:
        self._take(_SPACE)
        quoted = self._take(_ALTERNATIVE_QUOTED if operator is Operator.MATCHES else _QUOTED)
        if quoted is not None:
            return self._unquote(quoted)
        value = self._take(_VALUE)
        if value is None:
            raise self._error("expected value or quoted")
        return value

    def _accept(self, character: str) -> bool:
        if self._text.startswith(character, self._position):
            self._position += 1
            return True
        return False

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self._text, self._position)
        if found is None:
            return None
        self._position = found.end()
        return found.group()

    def _unquote(self, quoted: str) -> str:
        try:
            return _unquote(quoted)
        except ValueError as exc:
            raise self._error(str(exc)) from None

    def _error(self, reason: str) -> InvalidArgument:
        return InvalidArgument(f"filter {self._text!r}: {reason} at position {self._position}")


_ESCAPE: Final = re.compile(
    r"\\(?:x([0-9A-Fa-f]{2})|([0-7]{3})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|([^\\]+)", re.DOTALL
)
_SIMPLE: Final = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92}


def _unquote(quoted: str) -> str:
    """The value of a Go string literal. `\\xNN` and octal escapes are bytes, so the pieces are joined as bytes."""
    quote, body = quoted[0], quoted[1:-1]
    pieces = bytearray()
    for found in _ESCAPE.finditer(body):
        pieces += _piece(found, quote)
    return pieces.decode("utf-8", "surrogateescape")


def _piece(found: re.Match[str], quote: str) -> bytes:
    byte_hex, octal, short, long, simple, plain = found.groups()
    if plain is not None:
        return plain.encode()
    if byte_hex is not None or octal is not None:
        return _byte(int(byte_hex, 16) if byte_hex is not None else int(octal, 8))
    if simple is not None:
        return quote.encode() if simple == quote else _simple(simple)
    return _rune(int(short or long, 16))


def _simple(escape: str) -> bytes:
    if escape not in _SIMPLE:
        raise ValueError(f"unknown escape \\{escape}")
    return bytes((_SIMPLE[escape],))


def _byte(value: int) -> bytes:
    if value > 255:
        raise ValueError("octal escape over 255")
    return bytes((value,))


def _rune(value: int) -> bytes:
    """Go writes a surrogate as the replacement character."""
    if value > 0x10FFFF:
        raise ValueError("escape over the last code point")
    return "\ufffd".encode() if 0xD800 <= value < 0xE000 else chr(value).encode()
