"""Running one helper program that prints a secret: bounded in time and output, killed when the caller gives up."""

import asyncio
import shutil
from collections.abc import Mapping, Sequence

from fetcher.registry.errors import CredentialsUnavailable

TIMEOUT_S = 30.0
MAX_OUTPUT_BYTES = 1 << 20


async def run_helper(
    program: str, arguments: Sequence[str], stdin: bytes, environment: Mapping[str, str]
) -> tuple[int, bytes]:
    """Exit status and standard output of ``program`` (a path, or a name looked for in the environment's PATH)."""
    path = await asyncio.to_thread(shutil.which, program, path=environment.get("PATH"))
    if path is None:
        raise CredentialsUnavailable(f"{program} is not installed")
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # may quote the secret; nothing reads it
            env=dict(environment),
        )
    except OSError as exc:
        raise CredentialsUnavailable(f"{program}: {exc.strerror}") from exc
    return await _communicate(process, program, stdin)


async def _communicate(process: asyncio.subprocess.Process, program: str, stdin: bytes) -> tuple[int, bytes]:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            output, _ = await process.communicate(stdin)
    except TimeoutError as exc:
        raise CredentialsUnavailable(f"{program}: no answer within {TIMEOUT_S:.0f} s") from exc
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    if len(output) > MAX_OUTPUT_BYTES:
        raise CredentialsUnavailable(f"{program}: printed more than {MAX_OUTPUT_BYTES} bytes")
    return process.returncode or 0, output
