"""Which tests may be skipped in continuous integration: tests/declared_skips.txt, one "pattern | reason" a line."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

DECLARED = Path(__file__).parents[1] / "declared_skips.txt"


@dataclass(frozen=True, slots=True)
class DeclaredSkip:
    """A pattern of test ids (fnmatch) and why they cannot run."""

    pattern: str
    reason: str


def parse(text: str) -> list[DeclaredSkip]:
    """The declared skips. A line without a reason raises `ValueError`: a skip must say why."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        pattern, bar, reason = (part.strip() for part in line.partition("|"))
        if not (pattern and bar and reason):
            raise ValueError(f"line {number}: not 'pattern | reason': {line!r}")
        found.append(DeclaredSkip(pattern, reason))
    return found


def is_declared(test_id: str, declared: list[DeclaredSkip]) -> bool:
    # "[" is literal in a test id (parameters) and magic in a pattern.
    return any(fnmatchcase(test_id, entry.pattern.replace("[", "[[]")) for entry in declared)
