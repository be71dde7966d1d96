"""One finding of the doctor."""

from dataclasses import asdict, dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. Only `FAIL` makes the doctor's exit code non-zero."""

    OK = "ok"
    NOTE = "note"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was looked at, what was found, and the one thing to do about it (empty where nothing is to be done)."""

    area: str
    name: str
    level: Level
    found: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        return {key: str(value) for key, value in asdict(self).items()}


def ok(area: str, name: str, found: str) -> Check:
    return Check(area=area, name=name, level=Level.OK, found=found)


def note(area: str, name: str, found: str, fix: str) -> Check:
    return Check(area=area, name=name, level=Level.NOTE, found=found, fix=fix)


def fail(area: str, name: str, found: str, fix: str) -> Check:
    return Check(area=area, name=name, level=Level.FAIL, found=found, fix=fix)
