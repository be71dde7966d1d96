"""The daemon's side of :mod:`fetcher.layers.checker`: a small index is checked in a thread, a large one in a process.

It is Python that computes, a quarter of a second for 40,000 files. In a thread it would share the interpreter's lock
with all that a start needs meanwhile, and come to its end later for the company.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Final, Self

import structlog

from fetcher import subprocesses
from fetcher.layers.checker import check_index
from layerformat.annotations import LayerRef
from layerformat.digest import Digest
from layerformat.errors import FormatError

log = structlog.get_logger(__name__)

#: Bytes of an index from which on a process pays: some 10,000 files, whose check takes longer than its beginning.
PROCESS_BYTES: Final = 512 << 10


class IndexCheck:
    """One check. A context manager, to be entered when the index is asked for: the process begins meanwhile."""

    def __init__(self, ref: LayerRef, turn: asyncio.Lock) -> None:
        """``turn`` is for threads: those that compute at once all come to their end when the last one does."""
        self._ref = ref
        self._turn = turn
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        if self._ref.index_size >= PROCESS_BYTES:
            try:
                self._process = await subprocesses.start_module("fetcher.layers.checker")
            except OSError as error:  # a thread will do
                log.warning("checking_process_failed", layer=self._ref.digest, error=str(error))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Whatever is still under way ends."""
        if self._process is not None:
            await subprocesses.end(self._process)

    async def run(self, directory: Path) -> Digest:
        """What `check_index` does for a draft's directory. Raises FormatError or OSError."""
        if self._process is None:
            async with self._turn:
                return await asyncio.to_thread(check_index, directory, self._ref)
        order = {"directory": str(directory), "annotations": self._ref.to_annotations()}
        answer = await subprocesses.ask(self._process, json.dumps(order).encode())
        return _digest_told(answer, self._process.returncode)


def _digest_told(answer: bytes, status: int | None) -> Digest:
    told = json.loads(answer) if answer else {}
    if "malformed" in told:
        raise FormatError(told["malformed"])
    if "errno" in told:
        raise OSError(told["errno"], os.strerror(told["errno"]))
    if "metadata_digest" not in told:
        raise OSError(f"checking an index ended with status {status}")
    return Digest(told["metadata_digest"])
