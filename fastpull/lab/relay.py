"""A TCP relay that adds latency and nothing else: `python -m fastpull.lab.relay --help`.

Each direction of a connection is a queue of (time due, bytes). The reader stamps what it gets with now + delay, the
writer waits until that time; so every byte is late by the delay, and the rate is not limited by it. A queue is bounded
by bytes: enough for the fastest link's rate x delay, and a slow receiver still slows the sender. A new connection
costs its first bytes one more round trip, as a TCP handshake over a long link would.
"""

import argparse
import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field

import uvloop

READ_BYTES = 256 * 1024
# 10 Gbit/s over 50 ms is 62 MB; past that the queue holds the sender back as a full pipe does.
QUEUE_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class DelayLine:
    """One direction: bytes go in, and come out `delay_s` later in the same order. The end of the stream too."""

    delay_s: float
    first_extra_s: float = 0
    _queue: deque[tuple[float, bytes]] = field(default_factory=deque)
    _queued_bytes: int = 0
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def put(self, data: bytes) -> None:
        """Empty bytes mean the end of the stream. Waits while the line is full."""
        due = asyncio.get_running_loop().time() + self.delay_s + self.first_extra_s
        self.first_extra_s = 0
        async with self._changed:
            await self._changed.wait_for(lambda: self._queued_bytes < QUEUE_BYTES)
            # Never before what is already queued: the first bytes carry the extra wait.
            due = max(due, self._queue[-1][0]) if self._queue else due
            self._queue.append((due, data))
            self._queued_bytes += len(data)
            self._changed.notify_all()

    async def get(self) -> bytes:
        """The next bytes, not before they are due."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._queue))
            due, data = self._queue.popleft()
            self._queued_bytes -= len(data)
            self._changed.notify_all()
        wait = due - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)
        return data


async def _feed(reader: asyncio.StreamReader, line: DelayLine) -> None:
    while True:
        try:
            data = await reader.read(READ_BYTES)
        except ConnectionError:
            data = b""
        await line.put(data)
        if not data:
            return


async def _drain(line: DelayLine, writer: asyncio.StreamWriter) -> None:
    while data := await line.get():
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """Listens, and joins each connection to one of its own to the target."""

    target_host: str
    target_port: int
    delay_s: float

    async def handle(self, near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(
                self.target_host, self.target_port, limit=2 * READ_BYTES
            )
        except OSError:
            near_writer.close()
            return
        up = DelayLine(self.delay_s, first_extra_s=2 * self.delay_s)
        down = DelayLine(self.delay_s)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_feed(near_reader, up))
                both.create_task(_drain(up, far_writer))
                both.create_task(_feed(far_reader, down))
                both.create_task(_drain(down, near_writer))
        except* OSError:
            pass  # a peer went away: the other end learns it by the close below
        finally:
            near_writer.close()
            far_writer.close()

    async def serve(self, host: str, port: int) -> None:
        server = await asyncio.start_server(self.handle, host, port, limit=2 * READ_BYTES)
        async with server:
            await server.serve_forever()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(prog="fastpull.lab.relay", description="TCP relay that adds latency")
    parser.add_argument("--listen", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--target", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--delay-ms", type=float, required=True, help="for each direction")
    given = parser.parse_args()
    relay = Relay(target_host=given.target[0], target_port=given.target[1], delay_s=given.delay_ms / 1000)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(relay.serve(*given.listen))


if __name__ == "__main__":
    main()
