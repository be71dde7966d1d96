"""SHA-256 of a whole layer file: of a small one in a thread, of a large one hashed along as it grows, in a process.

That process runs at idle priority. A thread would not do: at idle priority it can be kept off the processor while it
holds the interpreter's lock, and the event loop with it. Hashing along, not at the end, finds the bytes still in the
page cache. Small layers are many, and a process for each would cost more than the hash.

Run as a script: the argument is the number of the layer file's descriptor; each line on standard input is how many
bytes from its start are there; at end of file everything is. Prints ``sha256:<hex>``.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress

CHUNK = 1 << 20
POLL_S = 0.5
#: Less than this from the start of the file is not worth a process yet.
BEGIN_BYTES = 32 << 20


def small_tar_digest(fd: int) -> str:
    """The digest of a complete file behind ``fd``, which must not raise events when read. Blocks."""
    checksum = hashlib.sha256()
    _hash(fd, checksum, 0, None)
    return f"sha256:{checksum.hexdigest()}"


async def tar_digest(fd: int, available: Callable[[], int | None]) -> str:
    """The digest of the file behind ``fd``, which must not raise events when read.

    ``available`` tells how many bytes from the start are there, None once all are. Raises OSError when no digest can be
    had. Cancelling ends the process, which is begun when the fill is well under way: a start has better use for it.
    """
    await _well_begun(available)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", __file__, str(fd)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=(fd,),
    )
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            while (count := available()) is not None:
                process.stdin.write(b"%d\n" % count)
                await process.stdin.drain()
                await asyncio.sleep(POLL_S)
        process.stdin.close()
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise OSError(f"hashing a layer file ended with status {process.returncode}")
    return output.decode().strip()


async def _well_begun(available: Callable[[], int | None]) -> None:
    while True:
        count = available()
        if count is None or count >= BEGIN_BYTES:
            return
        await asyncio.sleep(POLL_S)


def main() -> int:
    """Hash by position, so that the file offset, which others share, does not matter."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    fd, checksum, position = int(sys.argv[1]), hashlib.sha256(), 0
    for line in sys.stdin.buffer:
        position = _hash(fd, checksum, position, int(line))
    _hash(fd, checksum, position, None)
    print(f"sha256:{checksum.hexdigest()}")
    return 0


def _hash(fd: int, checksum: hashlib._Hash, position: int, end: int | None) -> int:
    """Add the bytes from ``position`` to ``end`` (None: of the file); returns where it came."""
    while end is None or position < end:
        chunk = os.pread(fd, CHUNK if end is None else min(CHUNK, end - position), position)
        if not chunk:
            break
        checksum.update(chunk)
        position += len(chunk)
    return position


if __name__ == "__main__":
    sys.exit(main())
