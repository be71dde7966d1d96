"""containerd's events, for one container.

The subscription is known to be in place before anything is asked of containerd: a marker of our own is published
until it comes back. So no event of the container can be missed, and no time is spent waiting for luck.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from fastpull.containerd_api import aio_channel, details, in_namespace
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from snapshotter._pb import events_pb2, events_pb2_grpc, task_events_pb2

_MARKER_TOPIC = "/fastpull/marker"
_MARKER_PERIOD_S = 0.02
_SUBSCRIBE_TIMEOUT_S = 10.0


class Moment(Enum):
    """What can happen to a container, by containerd's topic."""

    CREATED = "/containers/create"
    STARTED = "/tasks/start"
    EXITED = "/tasks/exit"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerEvent:
    """One event of one container. `at_s` is this process's monotonic clock when the event arrived."""

    container_id: str
    moment: Moment
    at_s: float
    exit_status: int = 0


def decode(topic: str, payload: bytes, at_s: float) -> ContainerEvent | None:
    """The event of a topic, or None: another topic, or the exit of an exec'd process.

    Raises:
        DecodeError: the payload is not the message containerd documents for the topic.
    """
    if topic == Moment.CREATED.value:
        created = task_events_pb2.ContainerCreate.FromString(payload)
        return ContainerEvent(container_id=created.id, moment=Moment.CREATED, at_s=at_s)
    if topic == Moment.STARTED.value:
        started = task_events_pb2.TaskStart.FromString(payload)
        return ContainerEvent(container_id=started.container_id, moment=Moment.STARTED, at_s=at_s)
    if topic != Moment.EXITED.value:
        return None
    gone = task_events_pb2.TaskExit.FromString(payload)
    if gone.id != gone.container_id:
        return None
    return ContainerEvent(container_id=gone.container_id, moment=Moment.EXITED, at_s=at_s, exit_status=gone.exit_status)


class EventLog:
    """All container events of a namespace since the subscription began, and a way to wait for one of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._events: dict[tuple[str, Moment], ContainerEvent] = {}
        self._changed = asyncio.Condition()
        self._lost: Failure | None = None

    async def add(self, topic: str, payload: bytes) -> None:
        """Record one event; a later event of the same kind (a restart policy) does not replace the first."""
        event = decode(topic, payload, self._clock())
        if event is None:
            return
        async with self._changed:
            self._events.setdefault((event.container_id, event.moment), event)
            self._changed.notify_all()

    async def lose(self, why: Failure) -> None:
        """The subscription ended: everyone who waits learns why."""
        async with self._changed:
            self._lost = why
            self._changed.notify_all()

    def get(self, container_id: str, moment: Moment) -> ContainerEvent | None:
        """The event, if it happened already."""
        return self._events.get((container_id, moment))

    async def wait(self, container_id: str, moment: Moment) -> ContainerEvent:
        """The event, when it happens.

        Raises:
            Failure: the subscription ended first.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._lost is not None or (container_id, moment) in self._events)
        found = self.get(container_id, moment)
        if found is None:
            assert self._lost is not None
            raise self._lost
        return found


@asynccontextmanager
async def subscribed(address: str, namespace: str) -> AsyncIterator[EventLog]:
    """An event log that is being filled, from before this returns until the block ends.

    Raises:
        Failure: containerd cannot be reached.
    """
    log = EventLog()
    in_place = asyncio.Event()
    async with aio_channel(address) as channel:
        events = events_pb2_grpc.EventsStub(channel)
        # Owned here and not by a task group: a group would wrap every exception of the block in an ExceptionGroup.
        reader = asyncio.ensure_future(_read(events, namespace, log, in_place))
        try:
            await _await_marker(events, namespace, in_place, address)
            yield log
        finally:
            reader.cancel()
            await asyncio.wait([reader])


async def _read(
    events: "events_pb2_grpc.EventsAsyncStub", namespace: str, log: EventLog, in_place: asyncio.Event
) -> None:
    marker = str(os.getpid()).encode()
    request = events_pb2.SubscribeRequest(filters=[f'namespace=="{namespace}"'])
    try:
        async for envelope in events.Subscribe(request):
            if envelope.topic == _MARKER_TOPIC:
                in_place.set() if envelope.event.value == marker else None
            else:
                await log.add(envelope.topic, envelope.event.value)
        await log.lose(Failure("containerd ended the event stream", code=ExitCode.UNAVAILABLE))
    except (grpc.aio.AioRpcError, DecodeError) as problem:
        why = details(problem) if isinstance(problem, grpc.RpcError) else str(problem)
        await log.lose(Failure(f"containerd's events cannot be followed: {why}", code=ExitCode.UNAVAILABLE))


async def _await_marker(
    events: "events_pb2_grpc.EventsAsyncStub", namespace: str, in_place: asyncio.Event, address: str
) -> None:
    event = Any(type_url="dev.fastpull.Marker", value=str(os.getpid()).encode())
    request = events_pb2.PublishRequest(topic=_MARKER_TOPIC, event=event)
    metadata = in_namespace(namespace)
    try:
        async with asyncio.timeout(_SUBSCRIBE_TIMEOUT_S):
            while not in_place.is_set():
                await events.Publish(request, metadata=metadata)
                await _wait(in_place, _MARKER_PERIOD_S)
    except (grpc.aio.AioRpcError, TimeoutError) as problem:
        why = details(problem) if isinstance(problem, grpc.RpcError) else "no event came back"
        raise Failure(
            f"containerd at {address} cannot be used: {why}",
            hint="is containerd running, and is this root? fastpull doctor tells more",
            code=ExitCode.UNAVAILABLE,
        ) from None


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return
