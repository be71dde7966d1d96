"""The relay: order kept, what is asked late by a round trip, what is under way bounded."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from fastpull.lab import relay
from fastpull.lab.relay import Line, Relay

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def through(delay_s: float, handler: Handler) -> AsyncIterator[Streams]:
    """A connection to a server, with a relay in between."""
    behind = await asyncio.start_server(handler, "127.0.0.1", 0)
    front = await Relay(behind.sockets[0].getsockname(), delay_s=delay_s).listen("127.0.0.1", 0)
    async with behind, front:
        reader, writer = await asyncio.open_connection(*front.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()
            await writer.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_each_question_takes_a_round_trip_and_the_first_one_two() -> None:
    async with through(0.2, echo) as (reader, writer):
        for least_s in (0.4, 0.2, 0.2):
            began = time.monotonic()
            writer.write(b"word")
            assert await reader.readexactly(4) == b"word"
            assert least_s - 0.002 <= time.monotonic() - began < least_s + 0.19


async def test_what_follows_the_first_bytes_does_not_overtake_them() -> None:
    async with through(0.02, echo) as (reader, writer):
        for number in range(50):
            writer.write(f"{number:4}".encode())
            await asyncio.sleep(0.001)
        assert await reader.readexactly(200) == b"".join(f"{number:4}".encode() for number in range(50))


async def test_a_full_line_holds_the_sender_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "LINE_BYTES", 1 << 20)
    received = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        while data := await reader.read(1 << 20):
            received += len(data)
        writer.close()

    async with through(0.2, count) as (reader, writer):
        sent = 32 << 20
        writer.write(bytes(sent))
        writer.write_eof()
        await asyncio.sleep(0.35)
        assert writer.transport.get_write_buffer_size() > 0
        assert await reader.read() == b""
    assert received == sent


async def test_a_slow_receiver_slows_the_sender() -> None:
    sent = 0

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _number in range(64):
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1 << 20
        writer.close()

    async with through(0.001, flood) as (reader, writer):
        writer.write(b"?")
        await asyncio.sleep(0.3)
        assert sent < 64 << 20
        received = 0
        while data := await reader.read(1 << 20):
            received += len(data)
        assert received == 64 << 20


async def test_both_directions_and_their_ends_get_through() -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        await writer.drain()
        writer.close()

    async with through(0.04, shout) as (reader, writer):
        began = time.monotonic()
        writer.write(b"quiet words")
        writer.write_eof()
        assert await reader.read() == b"QUIET WORDS"
        # One round trip for the connection's sake, one for the bytes.
        assert time.monotonic() - began >= 0.08


async def test_what_was_said_before_a_connection_broke_still_arrives() -> None:
    received = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        received.set_result(await reader.read())

    async with through(0.1, listen) as (_, writer):
        for _number in range(20):
            writer.write(b"word")
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.02)
        writer.transport.abort()
        assert await asyncio.wait_for(received, 10) == 20 * b"word"


def test_what_is_said_before_the_target_is_reached_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    join = Relay._join_to_target

    async def join_late(through: Relay, near: Line) -> None:
        await asyncio.sleep(0.1)
        await join(through, near)

    async def ask() -> bytes:
        async with through(0.005, echo) as (reader, writer):
            writer.write(b"early")
            return await asyncio.wait_for(reader.readexactly(5), 5)

    monkeypatch.setattr(Relay, "_join_to_target", join_late)
    assert uvloop.run(ask()) == b"early"  # the relay's own loop: it reads sooner than asyncio's


async def test_a_target_that_refuses_ends_the_connection() -> None:
    taken = await asyncio.start_server(echo, "127.0.0.1", 0)
    target = taken.sockets[0].getsockname()
    taken.close()
    await taken.wait_closed()
    front = await Relay(target, delay_s=0.01).listen("127.0.0.1", 0)
    async with front:
        reader, writer = await asyncio.open_connection(*front.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
