"""Indexes are checked one at a time, the smallest first.

Threads that compute share the interpreter's lock: checked at once, all indexes of an image are done when the last one
is. And a pull takes its layers into use from the bottom up, so what a small one waits for must not be a large one's
check, half a second for 40,000 files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

#: So long a large index lets smaller ones go first that are still on their way.
PATIENCE_S = 0.1


class CheckOrder:
    """For one event loop. Sizes are bytes of indexes, which are known before these come."""

    def __init__(self) -> None:
        self._coming: list[int] = []
        self._waiting: list[int] = []
        self._busy = False
        self._changed = asyncio.Event()

    @contextmanager
    def coming(self, size: int) -> Iterator[None]:
        """An index of this size is on its way."""
        self._coming.append(size)
        try:
            yield
        finally:
            self._coming.remove(size)
            self._tell()

    @asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[None]:
        """Wait until an index of this size is to be checked; others wait until it has been."""
        self._waiting.append(size)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await self._until(lambda: self._is_next(size) and size <= min(self._coming, default=size))
            await self._until(lambda: self._is_next(size))
            self._busy = True
        finally:
            self._waiting.remove(size)
            self._tell()
        try:
            yield
        finally:
            self._busy = False
            self._tell()

    def _is_next(self, size: int) -> bool:
        return not self._busy and size <= min(self._waiting)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
