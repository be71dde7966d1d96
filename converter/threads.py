"""From the event loop into threads and back: a layer is read, unpacked and cut by one thread, compressed by many."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError as ThreadCancelled
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Final, TypeVar

T = TypeVar("T")

#: A layer's thread mostly waits for the network, so there are some even where there is but one core.
_MIN_LAYERS: Final = 3
_MAX_LAYERS: Final = 8


class Threads:
    """`jobs` threads for compression and hashing, `layers` threads for layers in progress."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.layers = max(_MIN_LAYERS, min(jobs, _MAX_LAYERS))
        self.workers = ThreadPoolExecutor(jobs, thread_name_prefix="compress")
        self.readers = ThreadPoolExecutor(self.layers, thread_name_prefix="layer")

    def __enter__(self) -> "Threads":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.workers.shutdown(wait=True, cancel_futures=True)
        self.readers.shutdown(wait=True, cancel_futures=True)


class ChunkReader:
    """An async iterator of chunks, as a blocking `read()` for one thread: the next chunk, b"" at the end.

    `close` wakes a thread that waits in `read`, which then raises CancelledError.
    """

    def __init__(self, chunks: AsyncIterator[bytes], on_chunk: Callable[[int], None]) -> None:
        self._chunks = chunks
        self._on_chunk = on_chunk
        self._loop = asyncio.get_running_loop()
        self._pending: Future[bytes] | None = None
        self._closed = False

    def read(self) -> bytes:
        """Called in the thread."""
        if self._closed:
            raise ThreadCancelled
        self._pending = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
        return self._pending.result()

    async def _next(self) -> bytes:
        async for chunk in self._chunks:
            if chunk:  # an empty one would read as the end
                self._on_chunk(len(chunk))
                return chunk
        return b""

    def close(self) -> None:
        """Called in the event loop's thread."""
        self._closed = True
        if self._pending is not None:
            self._pending.cancel()


async def run_to_end(pool: ThreadPoolExecutor, function: Callable[[], T], on_cancel: Callable[[], None]) -> T:
    """`function()` in a thread. When cancelled, `on_cancel` is called and the thread is waited for: it never outlives
    this.
    """
    future = asyncio.get_running_loop().run_in_executor(pool, function)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        on_cancel()
        await asyncio.wait([future])
        with suppress(BaseException):
            future.exception()  # it was cancelled: whatever it says now is of no interest
        raise
