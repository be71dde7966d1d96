"""From an image's command to the bytes that its start will read."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import dropwhile, groupby, takewhile
from typing import Final, NamedTuple

from converter.prediction.constructors import reached
from converter.prediction.elf import PAGE, Elf, Range, joined, parse_elf, without
from converter.prediction.files import File, ImageFiles
from converter.prediction.python_imports import PythonImports
from converter.prediction.python_layout import python_layout

#: A library up to this size is read as a whole; a larger one where it is linked, and where its constructors run.
WHOLE_LIBRARY_BYTES: Final = 12 << 20
_LIBRARIES: Final = ("/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib")
_MULTIARCH: Final = ("x86_64-linux-gnu", "aarch64-linux-gnu")
_SHELLS: Final = frozenset({"sh", "bash", "dash", "ash"})
#: Programs that execute the rest of their arguments. What is before it is recognised by a dash or an equals sign.
_LAUNCHERS: Final = frozenset({"env", "tini", "dumb-init", "nohup", "nice", "catatonit"})
_ASSIGNMENT: Final = re.compile(r"\w+=")
#: What may stand before a simple command.
_KEYWORDS: Final = frozenset({"exec", "if", "then", "elif", "else", "while", "until", "do", "!", "{", "time"})
_MAX_COMMANDS: Final = 32
_MAX_SCRIPT: Final = 1 << 20


class Reach(NamedTuple):
    """Bytes [offset, offset + length) of the tar of layer number `layer`."""

    layer: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What the image's config says is started."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"

    @classmethod
    def of_config(cls, config: Mapping[str, object]) -> Command:
        """From the `config` member of an OCI image configuration; what is malformed there is left out."""
        words = [*_strings(config.get("Entrypoint")), *_strings(config.get("Cmd"))]
        pairs = [text.partition("=") for text in _strings(config.get("Env"))]
        directory = config.get("WorkingDir")
        return cls(
            words=tuple(words),
            environment={name: value for name, _, value in pairs},
            directory=directory if isinstance(directory, str) and directory else "/",
        )


def _strings(value: object) -> list[str]:
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def predict(files: ImageFiles, command: Command) -> list[Reach]:
    """What a start of `command` will read, first things first; no byte twice. Nothing for a command that is not there.

    CPU bound: about 15 ms a Python module.
    """
    start = _Start(files, command)
    start.follow(command.words)
    return list(start.reaches())


class _Start:
    def __init__(self, files: ImageFiles, command: Command) -> None:
        self._files = files
        self._command = command
        self._reads: list[tuple[File, tuple[Range, ...]]] = []
        self._known: set[tuple[int, int]] = set()  # files by their place, which hard links share
        self._libraries: dict[str, list[File]] = {}  # below a directory
        self._commands = 0

    def reaches(self) -> Iterator[Reach]:
        """What was read, in order."""
        for file, ranges in self._reads:
            for start, end in ranges:
                yield Reach(file.layer, file.offset + start, min(end, file.size) - start)

    def _is_new(self, file: File) -> bool:
        place = (file.layer, file.offset)
        if not file.size or place in self._known:
            return False
        self._known.add(place)
        return True

    def read(self, file: File) -> None:
        """A file is read as a whole, if it was not before."""
        if self._is_new(file):
            self._reads.append((file, (Range(0, file.size),)))

    # Commands

    def follow(self, words: Sequence[str]) -> None:
        """One command, and those it executes."""
        path = self._executable(words[0]) if words else None
        if path is None or self._commands >= _MAX_COMMANDS:
            return
        self._commands += 1
        file = self._files.file(path)
        assert file is not None
        if shebang := _shebang(self._files.read(file, 0, 512)):
            self.read(file)
            self.follow([*shebang, path, *words[1:]])
            return
        self.load(file)
        name = posixpath.basename(path)
        if name in _SHELLS:
            self._shell(words[1:])
        elif (layout := python_layout(self._files, path, self._command.environment)) is not None:
            self._python(PythonImports(self._files, layout, self, self._command.environment), words[1:])
        elif name in _LAUNCHERS:
            self.follow(_launched(words[1:]))
        elif "--" in words:
            self.follow(words[words.index("--") + 1 :])

    def _executable(self, word: str) -> str | None:
        if "/" in word:
            path = posixpath.join(self._command.directory, word)
            return path if self._files.file(path) is not None else None
        for directory in self._command.environment.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":"):
            if directory and self._files.file(path := f"{directory}/{word}") is not None:
                return path
        return None

    def _shell(self, words: Sequence[str]) -> None:
        """`sh -c COMMANDS`, or a script, with its arguments."""
        options = list(takewhile(lambda word: word.startswith(("-", "+")), words))
        rest = words[len(options) :]
        if not rest:
            return
        if any("c" in option for option in options if not option.startswith("--")):
            text = rest[0]
        else:
            script = self._files.file(posixpath.join(self._command.directory, rest[0]))
            if script is None:
                return
            self.read(script)
            text = self._files.read(script, 0, _MAX_SCRIPT).decode(errors="surrogateescape")
        for command in _shell_commands(text):
            self.follow([word for part in command for word in (rest[1:] if part == "$@" else [part])])

    def _python(self, imports: PythonImports, words: Sequence[str]) -> None:
        words = list(words)
        while words:
            word = words.pop(0)
            if word in ("-W", "-X"):
                words = words[1:]
            elif word == "-m" and words:
                imports.run_module(words[0], self._command.directory)
                return
            elif word == "-c" and words:
                imports.run(words[0].encode(errors="surrogateescape"), self._command.directory)
                return
            elif not word.startswith("-"):
                path = posixpath.join(self._command.directory, word)
                script = self._files.file(path)
                if script is not None:
                    self.read(script)
                    imports.run(self._files.read(script), posixpath.dirname(path))
                return

    # Libraries

    def load(self, file: File) -> None:
        """A program or library, its interpreter, and those it needs, breadth first as the dynamic linker does.

        All are linked before the constructors of the first run, and those of a library after those that it needs.
        """
        queue = [file]
        linked: list[tuple[File, Elf]] = []
        search: list[str] = []
        for file in queue:
            if not self._is_new(file):
                continue
            elf = parse_elf(partial(self._files.read, file))
            if elf is None or file.size <= WHOLE_LIBRARY_BYTES:
                self._reads.append((file, (Range(0, file.size),)))
            else:
                self._reads.append((file, _pages(elf.linked, file.size)))
                linked.append((file, elf))
            if elf is None:
                continue
            if elf.interpreter and (interpreter := self._files.file(elf.interpreter)):
                queue.append(interpreter)
            own = _own_search(elf, file)
            queue += filter(None, (self._library(name, [*own, *search]) for name in elf.needed))
            search += own
        for file, elf in reversed(linked):
            run = _pages(reached(elf, partial(self._files.read, file)), file.size)
            self._reads.append((file, without(run, _pages(elf.linked, file.size))))

    def may_load(self, pattern: str, directory: str) -> None:
        """The first library below a directory that has such a name."""
        if directory not in self._libraries:
            self._libraries[directory] = [file for file in self._files.walk(directory) if ".so" in file.path]
        for file in self._libraries[directory]:
            if fnmatchcase(posixpath.basename(file.path), pattern):
                self.load(file)
                return

    def _library(self, name: str, search: Sequence[str]) -> File | None:
        given = self._command.environment.get("LD_LIBRARY_PATH", "").split(":")
        for directory in [*search, *filter(None, given), *_default_libraries()]:
            if (found := self._files.file(f"{directory}/{name}")) is not None:
                return found
        return None


def _pages(ranges: Sequence[Range], size: int) -> tuple[Range, ...]:
    """The whole pages of a file that ranges touch."""
    inside = [(start, min(end, size)) for start, end in ranges if start < size]
    return joined([Range(start // PAGE * PAGE, -(-end // PAGE) * PAGE) for start, end in inside])


def _own_search(elf: Elf, file: File) -> list[str]:
    origin = posixpath.dirname(file.path)
    return [text.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for text in elf.search]


def _default_libraries() -> Iterator[str]:
    for directory in _LIBRARIES:
        yield from (f"{directory}/{machine}" for machine in _MULTIARCH)
        yield directory


def _shebang(head: bytes) -> list[str]:
    """The words of a script's first line: execve(2) gives an interpreter one argument, `env -S` more."""
    if not head.startswith(b"#!"):
        return []
    words = head[2:].split(b"\n")[0].decode(errors="surrogateescape").split()
    return [word for word in words if word != "-S"]


def _launched(words: Sequence[str]) -> list[str]:
    """What is left of a launcher's words when its options and assignments are gone."""
    return list(dropwhile(lambda word: word.startswith("-") or _ASSIGNMENT.match(word), words))


def _shell_commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell's text, in its order; what only a shell can tell is left out."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a quotation that goes on in the next line
            continue
        for is_operator, part in groupby(words, lambda word: set(word) <= set(";&|()")):
            if not is_operator:
                yield list(dropwhile(lambda word: word in _KEYWORDS or _ASSIGNMENT.match(word), part))
