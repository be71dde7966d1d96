"""``WWW-Authenticate`` challenges (RFC 9110, 11.6.1) and the scopes of distribution's token specification."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"\s*,?\s*({_TOKEN})(?=[\s,]|$)")
_PARAMETER = re.compile(rf"\s*,?\s*({_TOKEN})\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|({_TOKEN}))")
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One way in that the server offers; ``scheme`` is lower case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """Actions on one repository."""

    repository: str
    actions: tuple[str, ...]  # sorted

    def __str__(self) -> str:
        return f"repository:{self.repository}:{','.join(self.actions)}"


def pull(repository: str) -> Scope:
    return Scope(repository, ("pull",))


def push(repository: str) -> Scope:
    return Scope(repository, ("pull", "push"))


def delete(repository: str) -> Scope:
    return Scope(repository, ("delete", "pull"))


def parse_challenges(values: Iterable[str]) -> tuple[Challenge, ...]:
    """All challenges of all ``WWW-Authenticate`` fields, in order. What cannot be parsed is left out."""
    return tuple(challenge for value in values for challenge in _parse_field(value))


def _parse_field(value: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = 0
    while position < len(value):
        parameter = _PARAMETER.match(value, position)
        if parameter and found:
            text = parameter[3] if parameter[2] is None else _ESCAPE.sub(r"\1", parameter[2])
            found[-1].parameters[parameter[1].lower()] = text
            position = parameter.end()
        elif scheme := _SCHEME.match(value, position):
            found.append(Challenge(scheme=scheme[1].lower()))
            position = scheme.end()
        else:
            break
    return found


def merge_scopes(wanted: tuple[Scope, ...], challenged: str) -> tuple[str, ...]:
    """What to ask the token server for: what we need, and what the challenge says where it names something else.

    A registry behind a rewriting proxy knows the repository under another name than we do; only its challenge tells.
    """
    ours = [str(scope) for scope in wanted]
    named = {scope.repository for scope in wanted}
    theirs = [text for text in challenged.split() if _repository(text) not in named]
    return tuple(dict.fromkeys(ours + theirs))


def _repository(scope: str) -> str:
    return scope.partition(":")[2].rpartition(":")[0]
