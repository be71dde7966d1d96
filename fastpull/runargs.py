"""Where the image is in `fastpull run [OUR FLAGS] [NERDCTL FLAGS] IMAGE [ARGS...]`. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fastpull.nerdctl import FlagArity


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """A command line taken apart. `image` is None where there is none."""

    own: tuple[str, ...]
    nerdctl: tuple[str, ...]
    image: str | None
    arguments: tuple[str, ...]


class _Tokens:
    """The command line with a place in it."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._next = 0

    def __iter__(self) -> Iterator[str]:
        while self._next < len(self._tokens):
            yield self.take(1)[0]

    def take(self, count: int) -> tuple[str, ...]:
        """The next `count` tokens; fewer at the end of the line (the program that gets them will complain)."""
        taken = tuple(self._tokens[self._next : self._next + count])
        self._next += count
        return taken

    def rest(self) -> tuple[str, ...]:
        return tuple(self._tokens[self._next :])


def split(tokens: Sequence[str], own: Mapping[str, bool], arity: FlagArity) -> RunLine:
    """Divide the tokens: our flags, nerdctl's flags, the image, the container's arguments.

    Args:
        own: our long flags, with dashes, and whether each takes a value.
        arity: nerdctl's flags.

    The first token that is neither a flag nor a flag's value is the image; what follows it is never looked at.
    """
    line = _Tokens(tokens)
    ours: list[str] = []
    theirs: list[str] = []
    for token in line:
        if token == "--":
            return _finish(ours, theirs, line.rest())
        if not token.startswith("-") or token == "-":
            return _finish(ours, theirs, (token, *line.rest()))
        name, _, attached = token.partition("=")
        if name in own:
            ours += [token, *line.take(1 if own[name] and not attached and "=" not in token else 0)]
        else:
            theirs += [token, *line.take(1 if arity.wants_next(token) else 0)]
    return _finish(ours, theirs, ())


def _finish(ours: list[str], theirs: list[str], rest: tuple[str, ...]) -> RunLine:
    image = rest[0] if rest else None
    return RunLine(own=tuple(ours), nerdctl=tuple(theirs), image=image, arguments=rest[1:])
