"""Changing the text of a TOML file and nothing else of it.

The text is edited line by line, so comments, order and spelling stay. That is only safe for files laid out in the
usual way; so the result is parsed and compared with what the change was to mean, and refused if it means anything
else.
"""

import copy
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Scalar = str | bool | int
Path = tuple[str, ...]


class CannotEdit(Exception):
    """The file is laid out in a way that a line editor cannot change safely; the text says where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetKey:
    """`key = value` in the table at `path` (made if it is missing)."""

    path: Path
    key: str
    value: Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendTable:
    """One more element of the array of tables at `path`."""

    path: Path
    values: Mapping[str, Scalar]


Edit = SetKey | AppendTable


def apply(text: str, edits: Sequence[Edit]) -> str:
    """The text with the edits made; an edit whose value is there already changes nothing.

    Raises:
        CannotEdit: the text is no TOML, or its layout is beyond a line editor.
    """
    wanted = _parse(text)
    for edit in edits:
        wanted = _expected(wanted, edit)
        if _parse(text) != wanted:
            text = _edited(text, edit)
        if _parse(text) != wanted:
            raise CannotEdit(f"table {header(edit.path)} is written in a way that cannot be changed safely")
    return text


def header(path: Path) -> str:
    """A table's name as it stands between brackets."""
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part) for part in path)


def literal(value: Scalar) -> str:
    """A value as TOML writes it. JSON's strings are TOML basic strings as long as they hold no surrogates."""
    return json.dumps(value, ensure_ascii=False)


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise CannotEdit(f"not valid TOML: {problem}") from None


def _expected(document: Mapping[str, Any], edit: Edit) -> dict[str, Any]:
    """What the document has to mean after the edit."""
    changed = copy.deepcopy(dict(document))
    table = changed
    for part in edit.path[:-1] if isinstance(edit, AppendTable) else edit.path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise CannotEdit(f"{header(edit.path)}: {part} is not a table")
    if isinstance(edit, SetKey):
        table[edit.key] = edit.value
        return changed
    rows = table.setdefault(edit.path[-1], [])
    if not isinstance(rows, list):
        raise CannotEdit(f"{header(edit.path)} is not an array of tables")
    if dict(edit.values) not in rows:
        rows.append(dict(edit.values))
    return changed


def _edited(text: str, edit: Edit) -> str:
    lines = text.splitlines()
    if isinstance(edit, AppendTable):
        pairs = [f"  {key} = {literal(value)}" for key, value in edit.values.items()]
        return _joined([*lines, "", f"[[{header(edit.path)}]]", *pairs])
    line = f"{edit.key} = {literal(edit.value)}"
    if not edit.path:
        return _joined(_at_top(lines, edit.key, line))
    start = next((number for number, one in enumerate(lines) if _table_of(one) == edit.path), None)
    if start is None:
        return _joined([*lines, "", f"[{header(edit.path)}]", f"  {line}"])
    end = next((n for n in range(start + 1, len(lines)) if lines[n].lstrip().startswith("[")), len(lines))
    return _joined(_in_table(lines, start, end, edit.key, line))


def _joined(lines: Sequence[str]) -> str:
    text = "\n".join(lines)
    return text.lstrip("\n") + "\n"


def _at_top(lines: list[str], key: str, line: str) -> list[str]:
    """A key of no table: before the first header."""
    end = next((n for n, one in enumerate(lines) if one.lstrip().startswith("[")), len(lines))
    place = next((n for n in range(end) if _key_of(lines[n]) == key), None)
    if place is not None:
        return [*lines[:place], line, *lines[place + 1 :]]
    return [line, *lines]


def _in_table(lines: list[str], start: int, end: int, key: str, line: str) -> list[str]:
    indent = lines[start][: len(lines[start]) - len(lines[start].lstrip())] + "  "
    place = next((n for n in range(start + 1, end) if _key_of(lines[n]) == key), None)
    if place is not None:
        return [*lines[:place], indent + line, *lines[place + 1 :]]
    return [*lines[: start + 1], indent + line, *lines[start + 1 :]]


def _table_of(line: str) -> Path | None:
    """The path of a `[table]` header line; None for every other line."""
    if not line.lstrip().startswith("[") or line.lstrip().startswith("[["):
        return None
    try:
        found: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None  # an element of a multi-line array
    path: list[str] = []
    while isinstance(found, dict) and len(found) == 1:
        part, found = next(iter(found.items()))
        path.append(part)
    return tuple(path)


def _key_of(line: str) -> str | None:
    """The key of a `key = value` line whose value ends on the line."""
    try:
        found = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    return next(iter(found), None) if not line.lstrip().startswith("[") else None
