"""The seam to HTTP: one request, one response, deadlines on every wait, and aiohttp's exceptions turned into ours.

Nothing here follows redirects, authenticates or retries. The rest of the package sees no aiohttp type.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from fetcher.registry.config import RegistryConfig
from fetcher.registry.errors import ProtocolViolation, RegistryError, ShortBody, Unavailable, Untrusted
from fetcher.registry.proxies import proxy_for
from fetcher.registry.ranges import parse_count

_MAX_DRAIN_BYTES = 64 << 10
_PIECE_BYTES = 256 << 10
Body = bytes | memoryview | AsyncIterator[bytes] | None


class Response:
    """A response whose body has not been read.

    Closing it early closes the connection; reading it whole gives it back.
    """

    def __init__(self, response: aiohttp.ClientResponse, between_bytes_s: float) -> None:
        self._response = response
        self._between_bytes_s = between_bytes_s
        self.received_bytes = 0

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        return self._response.headers

    @property
    def length(self) -> int | None:
        """Content-Length in bytes, None where there is none or it is no number."""
        return parse_count(self.headers.get("Content-Length"))

    async def chunks(self, subject: str) -> AsyncGenerator[bytes, None]:
        """The body as it arrives; :class:`ShortBody` if it breaks off."""
        stream = self._response.content
        while True:
            with _mapped(subject, self.received_bytes):
                async with asyncio.timeout(self._between_bytes_s):
                    chunk = await stream.readany()
            if not chunk:
                return
            self.received_bytes += len(chunk)
            yield chunk

    async def read(self, subject: str, limit_bytes: int) -> bytes:
        """The whole body, of at most ``limit_bytes``: more is a :class:`ProtocolViolation`."""
        body = bytearray()
        async for chunk in self.chunks(subject):
            body += chunk
            if len(body) > limit_bytes:
                raise ProtocolViolation(f"{subject}: the answer is longer than {limit_bytes} bytes")
        return bytes(body)

    async def drain(self, subject: str) -> None:
        """Read and forget a short body, so that the connection can be used again; a long or broken one is not worth
        it.
        """
        with suppress(RegistryError):
            await self.read(subject, _MAX_DRAIN_BYTES)

    def close(self) -> None:
        """Give the connection back if the body was read (or is empty), else close it."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


class Transport:
    """One connection pool. Enter it before use."""

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Transport":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=self._config.connections_per_host),
            headers={"User-Agent": self._config.user_agent},
            read_bufsize=self._config.read_buffer_bytes,
            # Bytes are addressed by what the registry holds, never by a content coding of it.
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "Content-Type"),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(
        self,
        method: str,
        url: str,
        *,
        subject: str,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None = None,
        body: Body = None,
        answer_s: float | None = None,
    ) -> Response:
        """Send, and wait for the head of the answer, which the caller closes.

        ``subject`` is what errors name instead of the URL; ``answer_s`` replaces the time allowed until the first byte.
        """
        if self._session is None:
            raise RuntimeError("the registry client is used before it was entered")
        timeouts = self._config.timeouts
        with _mapped(subject, 0):
            # Waiting for a free connection is bounded by the caller's deadline, connecting and the first byte by the
            # session's timeouts; only a body being sent has no clock of its own in aiohttp.
            async with asyncio.timeout(None) as clock:
                answer = await self._session.request(
                    method,
                    URL(url, encoded=True),  # a signed URL is signed as spelled
                    headers=_framed(headers, body),
                    ssl=tls if tls is not None else True,
                    data=body if body is None or body == b"" else _paced(body, clock, timeouts.between_bytes_s),
                    allow_redirects=False,
                    proxy=proxy_for(url, self._config.environment) if self._config.environment_proxies else None,
                    timeout=self._timeout(answer_s),
                )
        return Response(answer, timeouts.between_bytes_s)

    def _timeout(self, answer_s: float | None) -> aiohttp.ClientTimeout:
        timeouts = self._config.timeouts
        read_s = timeouts.first_byte_s if answer_s is None else answer_s
        return aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s, sock_read=read_s)


def _framed(headers: Mapping[str, str], body: Body) -> dict[str, str]:
    """With the length where it is known: without it a body goes in HTTP chunks, which object stores refuse."""
    if isinstance(body, bytes | memoryview):
        return {**headers, "Content-Length": str(len(body))}
    return dict(headers)


async def _paced(
    body: bytes | memoryview | AsyncIterator[bytes], clock: asyncio.Timeout, between_bytes_s: float
) -> AsyncIterator[bytes]:
    """The body in pieces, each of which must leave within ``between_bytes_s``. Making them may take its time."""
    loop = asyncio.get_running_loop()
    pieces = _cut(body) if isinstance(body, bytes | memoryview) else body
    async for piece in pieces:
        # The server may have answered before it has the whole body; the clock is over then, and nothing is to be timed.
        with suppress(RuntimeError):
            clock.reschedule(loop.time() + between_bytes_s)
        yield piece
        with suppress(RuntimeError):
            clock.reschedule(None)


async def _cut(body: bytes | memoryview) -> AsyncIterator[bytes]:
    view = memoryview(body)
    for start in range(0, len(view), _PIECE_BYTES):
        yield bytes(view[start : start + _PIECE_BYTES])


@contextmanager
def _mapped(subject: str, received_bytes: int) -> Iterator[None]:
    """Foreign exceptions become ours.

    Their text may quote a URL, so only their kind is kept (``from None`` for the same reason).
    """
    try:
        yield
    except RegistryError:
        raise
    except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as exc:
        raise Untrusted(f"{subject}: {_certificate_reason(exc)}") from None
    except aiohttp.ClientConnectorError as exc:
        raise Unavailable(
            f"{subject}: cannot connect to {exc.host}:{exc.port}: {exc.os_error.strerror or 'failed'}"
        ) from None
    except aiohttp.ClientPayloadError:
        raise ShortBody(
            f"{subject}: the answer broke off after {received_bytes} bytes", received_bytes=received_bytes
        ) from None
    except aiohttp.InvalidURL:
        raise ProtocolViolation(f"{subject}: a URL that is none") from None
    except (aiohttp.ClientError, ConnectionError, TimeoutError, OSError) as exc:
        what = "timed out" if isinstance(exc, TimeoutError) else f"the connection failed ({type(exc).__name__})"
        if received_bytes:
            raise ShortBody(f"{subject}: {what} after {received_bytes} bytes", received_bytes=received_bytes) from None
        raise Unavailable(f"{subject}: {what}") from None


def _certificate_reason(exc: Exception) -> str:
    cause = exc.certificate_error if isinstance(exc, aiohttp.ClientConnectorCertificateError) else exc
    reason = getattr(cause, "verify_message", "") or "it does not verify"
    return f"the server's certificate is not trusted: {reason}"
