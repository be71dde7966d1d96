"""The daemon's side of :mod:`fetcher.warmer`: one such process for each image whose start is being replayed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from fetcher.profile import Profile
from layerformat.digest import DiffID, Digest

log = structlog.get_logger(__name__)

#: Of the memory that is free or can be, the share that may be filled for one start.
MEMORY_SHARE: Final = 4
#: A process at a time for an image, and so many altogether.
MAX_PROCESSES: Final = 4


class Warming:
    """The processes that read ahead. Used on the event loop only."""

    def __init__(self) -> None:
        self._running: dict[asyncio.subprocess.Process, frozenset[Digest]] = {}
        self._closed = False

    @property
    def pids(self) -> Collection[int]:
        """Their reads are not the program's."""
        return [process.pid for process in self._running]

    async def run(self, manifest: Digest, profile: Profile, directories: Mapping[DiffID, tuple[Digest, Path]]) -> None:
        """Read what the profile names of these layers, as it comes; returns when that has ended, however it did."""
        if self._closed or len(self._running) >= MAX_PROCESSES or not directories:
            return
        order = {
            "layers": [str(directories[each][1]) if each in directories else None for each in profile.layers],
            "reads": [[read.layer, read.offset, read.length] for read in profile.reads if profile.is_common(read)],
            "limit_bytes": _available_bytes() // MEMORY_SHARE,
        }
        command = (sys.executable, "-I", "-m", "fetcher.warmer")
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        except OSError as error:
            log.warning("warming_failed", manifest=manifest, error=str(error))
            return
        self._running[process] = frozenset(digest for digest, _ in directories.values())
        try:
            output, _ = await process.communicate(json.dumps(order).encode())
        finally:
            await self._end(process)
        # What was ended on the way says nothing.
        log.info("warmed", manifest=manifest, **(json.loads(output) if output else {}))

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self._running.pop(process, None)

    async def stop(self, digests: Collection[Digest]) -> None:
        """End what reads any of these layers; nothing of theirs is open any more on return."""
        for process, layers in list(self._running.items()):
            if not layers.isdisjoint(digests):
                await self._end(process)

    async def close(self) -> None:
        """End everything."""
        self._closed = True
        for process in list(self._running):
            await self._end(process)


def _available_bytes() -> int:
    """MemAvailable of /proc/meminfo (proc(5)); what can be had at once where that is not told."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
