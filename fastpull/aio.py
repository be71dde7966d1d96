"""Running the asynchronous half of a command so that Ctrl-C and SIGTERM both unwind it."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure

T = TypeVar("T")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end. SIGTERM cancels the work as Ctrl-C does, so that whatever it holds is given back.

    Raises:
        Failure: SIGTERM arrived.
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        return asyncio.run(_cancelled_by_sigterm(work))
    except asyncio.CancelledError:
        raise Failure("terminated", code=ExitCode.INTERRUPTED) from None


async def _cancelled_by_sigterm(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGTERM)
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await work
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
