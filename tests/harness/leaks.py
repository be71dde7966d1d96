"""What a test may leave behind, taken before and after it.

Several test runs may share a machine, so a difference counts only when it belongs to this run: below the run's own
directory, or carrying its mark in the environment. With `everything` (continuous integration, where nothing else
runs) every mount, loop device and network namespace of the machine counts.
"""

import contextlib
import gc
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fastpull.lab import mounts
from fastpull.lab.workspace import describe

RUN_MARK = "FASTPULL_TEST_RUN"
# Event loops of libraries (gRPC's, uvloop's) keep these for the life of the process; they hold nothing.
_SHARED_FDS = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[timerfd]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What exists at one moment. Each member counts descriptions, so that a difference reads as a sentence."""

    mounts: Counter[str]
    loops: Counter[str]
    namespaces: Counter[str]
    processes: Counter[str]
    directories: Counter[str]
    fds: Counter[str]

    @classmethod
    def take(cls, run_dir: Path, mark: str, *, everything: bool) -> "Footprint":
        gc.collect()
        return cls(
            mounts=_mounts(None if everything else run_dir),
            loops=_loops(None if everything else run_dir),
            namespaces=_namespaces() if everything else Counter(),
            processes=_processes(mark),
            directories=Counter(f"directory {path}" for path in run_dir.glob("fp-*")),
            fds=_fds(),
        )

    def grown(self, before: "Footprint") -> list[str]:
        """What is here now and was not before, in words."""
        return sorted(
            description
            for name in ("mounts", "loops", "namespaces", "processes", "directories", "fds")
            for description in (getattr(self, name) - getattr(before, name)).elements()
        )


def _inside(path: str, directory: Path | None) -> bool:
    return directory is None or path == str(directory) or path.startswith(f"{directory}/")


def _mounts(directory: Path | None) -> Counter[str]:
    return Counter(f"mount {m.kind} on {m.point}" for m in mounts.mounts() if _inside(m.point, directory))


def _loops(directory: Path | None) -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        # A loop device may go away while it is looked at.
        with contextlib.suppress(OSError):
            backing = entry.read_text().strip()
            if _inside(backing, directory):
                found[f"loop device {entry.parts[3]} of {backing}"] += 1
    return found


def _namespaces() -> Counter[str]:
    return Counter(f"network namespace {path.name}" for path in Path("/run/netns").glob("*"))


def _processes(mark: str) -> Counter[str]:
    """Every live process that carries the run's mark, wherever it was reparented to; this one excepted."""
    wanted = f"{RUN_MARK}={mark}".encode()
    found: Counter[str] = Counter()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found[f"process {describe(int(entry.name))}"] += 1
    return found


def _fds() -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        # The listing's own fd is closed by now.
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if target not in _SHARED_FDS:
                found[f"fd of {target}"] += 1
    return found
