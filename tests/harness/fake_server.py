"""An HTTP server in the test's own event loop that fails on demand, and notes what it was asked.

What the fakes of registries and object stores are made of; see :mod:`tests.harness.fake_registry` for how to use it.
"""

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

_PIECE_BYTES = 256 << 10
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(kw_only=True)
class Fault:
    """What goes wrong, and with which requests. Everything not set stays right."""

    method: str = "GET"
    path: str = ""
    skip: int = 0
    times: int | None = 1
    status: int | None = None  # answer this at once ...
    headers: Mapping[str, str] = field(default_factory=dict)  # ... with these (added to any answer)
    body: bytes = b""
    delay_s: float = 0.0  # before the answer
    reset: bool = False  # cut the connection instead of answering
    lose_answer: bool = False  # do what was asked, then cut the connection
    accept_bytes: int | None = None  # of an upload's PATCH: keep so many, then cut the connection
    truncate_at: int | None = None  # cut the connection after so many bytes of the body
    corrupt_at: int | None = None  # flip the byte at this offset of the body
    ignore_range: bool = False  # 200 with everything
    shift_range: int = 0  # lie in Content-Range
    piece_bytes: int = _PIECE_BYTES
    piece_delay_s: float = 0.0  # before every piece: a slow body


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request as it came, and what it was answered."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    status: int
    sent_bytes: int

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")


class ConnectionCut(Exception):
    """The connection is to be cut."""


class FakeServer:
    """Listens on a free port, applies faults, counts."""

    def __init__(self, *, address: str = "127.0.0.1", ssl_context: ssl.SSLContext | None = None) -> None:
        self.address = address
        self.port = 0
        self.ssl_context = ssl_context
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        self.on_request: Callable[[web.Request], object] = lambda request: None
        self._sent: dict[int, int] = {}  # by id of a request being answered
        self._stack = AsyncExitStack()

    @property
    def host(self) -> str:
        """``address:port``: the registry part of a reference."""
        return f"{self.address}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.ssl_context else 'http'}://{self.host}"

    def fault(self, fault: Fault) -> Fault:
        """Arm ``fault``. Of several that match, the first armed with something left acts."""
        self.faults.append(fault)
        return fault

    def seen(self, method: str = "", path: str = "") -> list[Seen]:
        """The requests with this method whose path contains ``path``."""
        return [one for one in self.requests if one.method == (method or one.method) and path in one.path]

    def bytes_sent(self, path: str = "") -> int:
        """Body bytes given to the network for requests whose path contains ``path``."""
        return sum(one.sent_bytes for one in self.seen(path=path))

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 40)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        # handler_cancellation: a client that leaves ends its handler, as with a real server.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, self.address, self.port, ssl_context=self.ssl_context)
        await site.start()
        self.port = runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.on_request(request)
        fault = self._pick(request)
        self._sent[id(request)] = 0
        status = 0
        try:
            await asyncio.sleep(fault.delay_s)
            if fault.reset:
                raise ConnectionCut
            if fault.status is not None:
                response: web.StreamResponse = web.Response(status=fault.status, body=fault.body, headers=fault.headers)
            else:
                response = await self.answer(request, fault)
            status = response.status
            if fault.lose_answer:
                raise ConnectionCut
            if isinstance(response, web.Response) and isinstance(response.body, bytes):
                self._sent[id(request)] = len(response.body)
            return response
        except ConnectionCut:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=status or 500)
        finally:
            self._note(request, status)

    def _pick(self, request: web.Request) -> Fault:
        for fault in self.faults:
            if fault.method != request.method or not re.search(fault.path, request.path) or fault.times == 0:
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            if fault.times is not None:
                fault.times -= 1
            return fault
        return Fault()

    def _note(self, request: web.Request, status: int) -> None:
        self.requests.append(
            Seen(
                method=request.method,
                path=request.path,
                query=dict(request.query),
                headers=request.headers.copy(),
                status=status,
                sent_bytes=self._sent.pop(id(request), 0),
            )
        )

    async def answer(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        raise NotImplementedError

    async def send(
        self, request: web.Request, data: bytes, fault: Fault, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """``data`` or the range of it that was asked for, as spoiled as ``fault`` wants it."""
        first, end, status = 0, len(data), 200
        if (match := _RANGE.fullmatch(request.headers.get("Range", ""))) and not fault.ignore_range:
            first = int(match[1])
            end = min(len(data), int(match[2]) + 1 if match[2] else len(data))
            status = 206
            if first >= end:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
        response = web.StreamResponse(status=status, headers={**headers, **fault.headers})
        response.content_length = end - first
        if status == 206:
            shift = fault.shift_range
            response.headers["Content-Range"] = f"bytes {first + shift}-{end - 1 + shift}/{len(data)}"
        await response.prepare(request)
        if request.method != "HEAD":
            await self._write(request, response, memoryview(data)[first:end], fault)
        await response.write_eof()
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, body: memoryview, fault: Fault) -> None:
        if fault.corrupt_at is not None and fault.corrupt_at < len(body):
            spoiled = bytearray(body)
            spoiled[fault.corrupt_at] ^= 0xFF
            body = memoryview(spoiled)
        end = len(body) if fault.truncate_at is None else min(fault.truncate_at, len(body))
        for start in range(0, end, fault.piece_bytes):
            if fault.piece_delay_s:
                await asyncio.sleep(fault.piece_delay_s)
            piece = body[start : min(end, start + fault.piece_bytes)]
            await response.write(piece)
            self._sent[id(request)] += len(piece)
        if end < len(body):
            await asyncio.sleep(0.02)  # let what was written leave before the connection is reset
            raise ConnectionCut
