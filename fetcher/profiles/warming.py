"""The daemon's side of :mod:`fetcher.profiles.warmer`: one such process for each image whose start is replayed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import structlog

from fetcher import subprocesses
from fetcher.profiles.profile import Profile
from layerformat.digest import DiffID, Digest

log = structlog.get_logger(__name__)

#: Of the memory that is free or can be, the share that may be filled for one start.
MEMORY_SHARE: Final = 4
#: At a time; a start that finds no room reads for itself.
MAX_PROCESSES: Final = 4


class Warming:
    """The processes that read ahead. Used on the event loop only; cancelling `run` ends its process."""

    def __init__(self) -> None:
        self._running: dict[asyncio.subprocess.Process, frozenset[Digest]] = {}

    @property
    def pids(self) -> Collection[int]:
        """Their reads are not the program's."""
        return [process.pid for process in self._running]

    async def run(self, manifest: Digest, profile: Profile, directories: Mapping[DiffID, tuple[Digest, Path]]) -> None:
        """Read what the profile names of these layers, as it comes; returns when that has ended, however it did."""
        if len(self._running) >= MAX_PROCESSES or not directories:
            return
        order = {
            "layers": [str(directories[each][1]) if each in directories else None for each in profile.layers],
            "reads": [[read.layer, read.offset, read.length] for read in profile.reads if profile.is_common(read)],
            "limit_bytes": _available_bytes() // MEMORY_SHARE,
        }
        try:
            process = await subprocesses.start_module("fetcher.profiles.warmer")
        except OSError as error:
            log.warning("warming_failed", manifest=manifest, error=str(error))
            return
        self._running[process] = frozenset(digest for digest, _ in directories.values())
        try:
            answer = await subprocesses.ask(process, json.dumps(order).encode())
        finally:
            await self._end(process)
        # What was ended on the way says nothing.
        log.info("warmed", manifest=manifest, **(json.loads(answer) if answer else {}))

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        await subprocesses.end(process)
        self._running.pop(process, None)

    async def stop(self, digests: Collection[Digest]) -> None:
        """End what reads any of these layers; nothing of theirs is open any more on return."""
        for process, layers in list(self._running.items()):
            if not layers.isdisjoint(digests):
                await self._end(process)


def _available_bytes() -> int:
    """MemAvailable of /proc/meminfo, proc(5)."""
    rows = (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return next(int(rest.split()[0]) * 1024 for name, _, rest in rows if name == "MemAvailable")
