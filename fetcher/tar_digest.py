"""SHA-256 of a whole layer file, in a process of its own at idle priority.

A thread would not do: at idle priority it can be kept off the processor while it holds the interpreter's lock, and the
event loop with it. Run as a script: hashes its standard input from the start, prints ``sha256:<hex>``.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from contextlib import suppress

CHUNK = 1 << 20


async def tar_digest(fd: int) -> str:
    """The digest of the file behind ``fd``, which must not raise events when read. Raises OSError when it cannot be
    had.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", __file__, stdin=fd, stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise OSError(f"hashing a layer file ended with status {process.returncode}")
    return output.decode().strip()


def main() -> int:
    """Hash standard input by position, so that its shared file offset does not matter."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    checksum, position = hashlib.sha256(), 0
    while chunk := os.pread(0, CHUNK, position):
        checksum.update(chunk)
        position += len(chunk)
    print(f"sha256:{checksum.hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
