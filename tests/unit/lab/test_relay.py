"""The relay's delay line: order kept, every byte late by the delay, bounded."""

import asyncio
import time

import pytest

from fastpull.lab import relay
from fastpull.lab.relay import DelayLine, Relay


async def test_bytes_come_late_and_in_order() -> None:
    line = DelayLine(0.05)
    began = time.monotonic()
    for word in (b"one", b"two", b""):
        await line.put(word)
    assert [await line.get() for _ in range(3)] == [b"one", b"two", b""]
    assert 0.05 <= time.monotonic() - began < 0.15


async def test_what_follows_the_first_bytes_does_not_overtake_them() -> None:
    line = DelayLine(0.01, first_extra_s=0.05)
    began = time.monotonic()
    await line.put(b"first")
    await line.put(b"second")
    assert [await line.get(), await line.get()] == [b"first", b"second"]
    assert time.monotonic() - began >= 0.06


async def test_a_full_line_holds_the_sender_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "QUEUE_BYTES", 10)
    line = DelayLine(0)
    await line.put(bytes(10))
    blocked = asyncio.ensure_future(line.put(b"x"))
    await asyncio.sleep(0.02)
    assert not blocked.done()
    assert await line.get() == bytes(10)
    await blocked
    assert await line.get() == b"x"


async def test_both_directions_and_their_ends_get_through() -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    through = Relay(target_host="127.0.0.1", target_port=port, delay_s=0.02)
    front = await asyncio.start_server(through.handle, "127.0.0.1", 0)
    async with server, front:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(*front.sockets[0].getsockname())
        writer.write(b"quiet words")
        writer.write_eof()
        assert await reader.read() == b"QUIET WORDS"
        # One round trip for the connection's sake, one for the bytes.
        assert time.monotonic() - began >= 0.08
        writer.close()
        await writer.wait_closed()
