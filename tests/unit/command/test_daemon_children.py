"""The daemon's children come to their exec, whatever gRPC is doing."""

import subprocess
import sys
from pathlib import Path

FORKING = """
import asyncio
import sys

import fastpull.daemon
import grpc
import uvloop


async def main(socket):
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        await channel.channel_ready()
        for _ in range(5):
            process = await asyncio.create_subprocess_exec("/bin/cat", stdin=-1, stdout=-1)
            assert await process.communicate(b"here") == (b"here", None)
    await server.stop(None)


uvloop.run(main(sys.argv[1]))
"""


def test_grpc_does_nothing_when_the_daemon_forks(tmp_path: Path) -> None:
    """Its handlers say so on standard error when they cannot run, and otherwise may kill the child."""
    command = [sys.executable, "-c", FORKING, f"{tmp_path / 's'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    of_the_handlers = [line for line in done.stderr.splitlines() if "fork" in line.lower()]
    assert (done.returncode, of_the_handlers) == (0, []), done.stderr
