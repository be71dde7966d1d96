"""Reading blobs: single ranges as they stream, and whole blobs resumed and verified."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from fetcher.registry.challenge import pull
from fetcher.registry.errors import DigestMismatch, NotFound, ProtocolViolation, RegistryError, ShortBody, is_transient
from fetcher.registry.hosts import Endpoint
from fetcher.registry.ranges import BodyPlan, parse_count, plan_body, range_header
from fetcher.registry.reference import Origin
from fetcher.registry.retry import RetryPolicy
from fetcher.registry.router import Router
from fetcher.registry.session import REDIRECTS, Call, Session
from fetcher.registry.transport import Response
from layerformat.digest import Digest

# Below this a hash takes less time than handing it to a thread.
_HASH_INLINE_BYTES = 256 << 10


class BlobReader:
    """GET and HEAD of blobs."""

    def __init__(self, session: Session, router: Router, policy: RetryPolicy) -> None:
        self._session = session
        self._router = router
        self._policy = policy

    @asynccontextmanager
    async def read(
        self, origin: Origin, digest: Digest, *, offset: int = 0, length: int | None = None, via: Endpoint | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """See :meth:`RegistryClient.read_blob`."""
        subject = f"{origin}@{digest}"
        header = range_header(offset, length)

        async def start(endpoint: Endpoint) -> tuple[Response, BodyPlan]:
            call = self._call("GET", endpoint, origin, digest, header)
            # 206 is no answer to a request without Range.
            response = await self._session.answer(call, frozenset({200, 206} if header else {200}))
            try:
                return response, plan_body(response.status, response.headers, offset, length, subject)
            except BaseException:
                response.close()
                raise

        response, plan = await self._router.run(origin, "pull", subject, start, via=via)
        try:
            async with aclosing(_planned(response, plan, subject)) as chunks:
                yield chunks
        finally:
            response.close()

    async def pull(self, origin: Origin, digest: Digest) -> AsyncIterator[bytes]:
        """See :meth:`RegistryClient.pull_blob`."""
        hasher, position, failures = hashlib.sha256(), 0, 0
        while True:
            try:
                async with self.read(origin, digest, offset=position) as chunks:
                    async for chunk in chunks:
                        await _update(hasher, chunk)
                        position += len(chunk)
                        failures = 0
                        yield chunk
                break
            except RegistryError as exc:
                failures += 1
                if not is_transient(exc) or failures >= self._policy.attempts or position == 0:
                    raise
            await asyncio.sleep(self._policy.delay_s(failures, None, 1.0))
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise DigestMismatch(f"{origin}@{digest}: the bytes received have another digest")

    async def size(self, origin: Origin, digest: Digest) -> int | None:
        """Bytes of the blob, None if the registry does not have it."""
        subject = f"{origin}@{digest}"

        async def head(endpoint: Endpoint) -> int:
            call = self._call("HEAD", endpoint, origin, digest, {})
            async with self._session.open(call, REDIRECTS | {200}) as response:
                if response.status != 200:
                    return await self._size_by_range(endpoint, origin, digest)
                if response.length is None:
                    raise ProtocolViolation(f"{subject}: HEAD names no Content-Length")
                return response.length

        try:
            return await self._router.run(origin, "pull", subject, head)
        except NotFound:
            return None

    async def _size_by_range(self, endpoint: Endpoint, origin: Origin, digest: Digest) -> int:
        """HEAD may lead to a URL that is signed for GET alone: ask for one byte, and read the total beside it."""
        call = self._call("GET", endpoint, origin, digest, {"Range": "bytes=0-0"})
        async with self._session.open(call, frozenset({200, 206, 416})) as response:
            total = parse_count(response.headers.get("Content-Range", "").rpartition("/")[2])
            if response.status != 200 and total is not None:
                await response.drain(call.subject)
                return total
            if response.status == 200 and response.length is not None:
                return response.length
            raise ProtocolViolation(f"{call.subject}: the storage does not tell how long the blob is")

    def _call(self, method: str, endpoint: Endpoint, origin: Origin, digest: Digest, header: dict[str, str]) -> Call:
        return Call(
            method=method,
            endpoint=endpoint,
            url=endpoint.url(f"{origin.repository}/blobs/{digest}"),
            subject=f"{endpoint.authority}/{origin.repository}@{digest}",
            scopes=(pull(origin.repository),),
            headers={"Accept-Encoding": "identity", **header},
            follow=method == "GET",
            keep_redirect=method == "GET",
        )


async def _planned(response: Response, plan: BodyPlan, subject: str) -> AsyncGenerator[bytes, None]:
    """The asked part of the body, exactly: one byte less is a :class:`ShortBody`."""
    skip, given = plan.skip, 0
    async with aclosing(response.chunks(subject)) as chunks:
        async for chunk in chunks:
            if skip:
                skip, chunk = max(0, skip - len(chunk)), chunk[skip:]
            if plan.take is not None:
                chunk = chunk[: plan.take - given]
            if chunk:
                given += len(chunk)
                yield chunk
            if given == plan.take:
                return
    if skip or (plan.take is not None and given < plan.take):
        raise ShortBody(f"{subject}: {given} bytes came, {plan.take} were announced", received_bytes=given)


async def _update(hasher: "hashlib._Hash", chunk: bytes) -> None:
    if len(chunk) < _HASH_INLINE_BYTES:
        hasher.update(chunk)
    else:
        await asyncio.to_thread(hasher.update, chunk)
