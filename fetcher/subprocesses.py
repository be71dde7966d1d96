"""Processes of the daemon's own that are asked one thing: started, told, heard, and ended if nobody waits any more."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress


async def start_module(name: str) -> asyncio.subprocess.Process:
    """Run a module of this project, its standard input and output piped. Raises OSError."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, "-I", "-m", name, stdin=pipe, stdout=pipe)


async def ask(process: asyncio.subprocess.Process, question: bytes) -> bytes:
    """All it says until it ends, once told `question`; nothing where it died before."""
    assert process.stdin is not None and process.stdout is not None
    # Not `communicate`: where the process is dead already, uvloop has that raise RuntimeError.
    if not process.stdin.is_closing():
        process.stdin.write(question)
        process.stdin.close()
    answer = await process.stdout.read()
    await process.wait()
    return answer


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill it unless it has ended; it is gone on return."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
