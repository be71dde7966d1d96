"""A TCP relay that adds latency and as little else as can be: `python -m fastpull.lab.relay --help`.

What goes to the target is late by a whole round trip, what comes back is passed on at once: whoever asks cannot tell
that from half of it each way, and the bulk, which comes back, costs no timers on the processors that the relay shares
with what is measured. A new connection costs its first bytes one more round trip, as a TCP handshake over a long link
would. The rate is not limited; what is under way is bounded, and a slow receiver slows the sender.
"""

import argparse
import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import cast

import uvloop

# 10 Gbit/s over 50 ms is 62 MB; past that the line holds the sender back as a full pipe does.
LINE_BYTES = 64 * 1024 * 1024
# What a peer that reads slowly may leave unread here.
BACKLOG_BYTES = 1024 * 1024


class Line(asyncio.Protocol):
    """One direction of a connection: what comes in here goes out at the other direction's end, `delay_s` later.

    So does the end of the stream. What is read before `join`, as uvloop does, waits for it.
    """

    def __init__(
        self, delay_s: float, first_extra_s: float = 0.0, made: "Callable[[Line], None] | None" = None
    ) -> None:
        self._delay_s = delay_s
        self._first_extra_s = first_extra_s
        self._made = made
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._other: Line | None = None
        #: Bytes, none at the end of the stream; None when the connection is gone.
        self._under_way: deque[bytes | None] = deque()
        self._bytes = 0
        self._overdue = 0
        self._last_due = 0.0
        self._receiver_is_slow = False
        self._ended = False

    def join(self, other: "Line") -> None:
        """Begin."""
        self._other = other
        while self._overdue:
            self._overdue -= 1
            self._send()
        self._read_or_wait()

    def close(self) -> None:
        """When what was written has gone out."""
        self._transport.close()

    # What comes in.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(BACKLOG_BYTES)
        self._transport.pause_reading()
        if self._made is not None:
            self._made(self)

    def data_received(self, data: bytes) -> None:
        if self._delay_s or self._under_way or self._other is None:
            self._send_later(data)
        else:
            self._other.write(data)

    def eof_received(self) -> bool:
        self._send_later(b"")
        return True  # the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end learns it, after what is under way."""
        self._send_later(None)

    def _send_later(self, data: bytes | None) -> None:
        # Never before what is under way already: the first bytes carry the extra wait.
        due = max(self._last_due, self._loop.time() + self._delay_s + self._first_extra_s)
        self._last_due, self._first_extra_s = due, 0.0
        self._under_way.append(data)
        self._bytes += len(data or b"")
        self._loop.call_at(due, self._send)
        self._read_or_wait()

    def _send(self) -> None:
        if self._other is None:
            self._overdue += 1
            return
        data = self._under_way.popleft()
        self._bytes -= len(data or b"")
        self._ended = not data
        if data is None:
            self._other.close()
        else:
            self._other.write(data)
        self._read_or_wait()

    def _read_or_wait(self) -> None:
        if self._transport.is_closing():
            return
        if self._receiver_is_slow or self._bytes >= LINE_BYTES:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # What goes out: it came in on the other line.

    def write(self, data: bytes) -> None:
        """Send, or end the stream where there is nothing; a peer that has gone gets nothing more."""
        if self._transport.is_closing():
            return
        if data:
            self._transport.write(data)
            return
        self._transport.write_eof()
        if self._ended and self._other is not None:
            self.close()
            self._other.close()

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other.note_receiver(is_slow=True)

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other.note_receiver(is_slow=False)

    def note_receiver(self, *, is_slow: bool) -> None:
        """Whether whoever this line leads to has enough for now."""
        self._receiver_is_slow = is_slow
        self._read_or_wait()


class Relay:
    """Joins each connection that is accepted to one of its own to the target. `delay_s` is a round trip."""

    def __init__(self, target: tuple[str, int], delay_s: float) -> None:
        self._target = target
        self._delay_s = delay_s
        self._connecting: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """The server that accepts them."""
        return await asyncio.get_running_loop().create_server(self._accept, host, port)

    def _accept(self) -> Line:
        return Line(self._delay_s, first_extra_s=self._delay_s, made=self._connect)

    def _connect(self, near: Line) -> None:
        task = asyncio.ensure_future(self._join_to_target(near))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _join_to_target(self, near: Line) -> None:
        try:
            _, far = await asyncio.get_running_loop().create_connection(lambda: Line(0.0), *self._target)
        except OSError:
            near.close()
            return
        near.join(far)
        far.join(near)


async def _serve(relay: Relay, host: str, port: int) -> None:
    async with await relay.listen(host, port) as server:
        await server.serve_forever()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(prog="fastpull.lab.relay", description="TCP relay that adds latency")
    parser.add_argument("--listen", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--target", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--rtt-ms", type=float, required=True, help="of a round trip")
    given = parser.parse_args()
    relay = Relay(given.target, delay_s=given.rtt_ms / 1000)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(relay, *given.listen))


if __name__ == "__main__":
    main()
