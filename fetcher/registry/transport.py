"""The seam to HTTP: one request, one response, deadlines on every wait, and aiohttp's exceptions turned into ours.

Nothing here follows redirects, authenticates or retries. The rest of the package sees no aiohttp type.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager, suppress

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from fetcher.registry.config import RegistryConfig
from fetcher.registry.errors import ProtocolViolation, RegistryError, ShortBody, Unavailable, Untrusted

_MAX_DRAIN_BYTES = 64 << 10


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
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdigit() else None

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
        timeouts = self._config.timeouts
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=self._config.connections_per_host),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s, sock_read=timeouts.first_byte_s),
            headers={"User-Agent": self._config.user_agent},
            read_bufsize=self._config.read_buffer_bytes,
            # Bytes are addressed by what the registry holds, never by a content coding of it.
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "Content-Type"),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=self._config.environment_proxies,
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
        body: bytes | memoryview | None = None,
    ) -> Response:
        """Send, and wait for the head of the answer, which the caller closes.

        ``subject`` is what errors name instead of the URL.
        """
        if self._session is None:
            raise RuntimeError("the registry client is used before it was entered")
        timeouts = self._config.timeouts
        with _mapped(subject, 0):
            # Waiting for a free connection is bounded by the caller's deadline, connecting and the first byte by the
            # session's timeouts; only a body being sent has no clock of its own in aiohttp.
            async with asyncio.timeout(timeouts.upload_s(len(body)) if body else None):
                answer = await self._session.request(
                    method,
                    URL(url, encoded=True),  # a signed URL is signed as spelled
                    headers=headers,
                    ssl=tls if tls is not None else True,
                    data=body,
                    allow_redirects=False,
                )
        return Response(answer, timeouts.between_bytes_s)


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
