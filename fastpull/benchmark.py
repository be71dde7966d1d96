"""One measured start of one container, driven through nerdctl and timed by containerd's events."""

import asyncio
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeVar

from fastpull.containerd_events import ContainerEvent, EventLog, Moment, subscribed
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.nerdctl import Nerdctl
from fastpull.readiness import wait_ready
from fastpull.samples import Sample

T = TypeVar("T")

_CID_POLL_S = 0.005
_STOP_GRACE_S = 5.0
# The event of a container that has just run is behind its nerdctl by moments at most.
_EVENT_LAG_S = 5.0


class Until(Enum):
    """What ends the measurement."""

    COMPLETION = "completion"
    READINESS = "readiness"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What is to be started and when it counts as done. `flags` are nerdctl's, `arguments` the container's."""

    image: str
    snapshotter: str
    until: Until
    flags: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    readiness_endpoint: str | None = None
    limit_s: float = 600.0


async def measure(nerdctl: Nerdctl, start: Start) -> Sample:
    """Start the container, wait for the end of the measurement, remove the container, whatever happened.

    Raises:
        Failure: nerdctl failed, the container ended before it was ready, or the time is over.
    """
    async with subscribed(nerdctl.address, nerdctl.namespace) as log:
        with tempfile.TemporaryDirectory(prefix="fastpull-run-") as scratch:
            cid_file, flags = _cid_file(start.flags, Path(scratch))
            requested_s = time.monotonic()
            argv = nerdctl.argv("run", *flags, start.image, *start.arguments, snapshotter=start.snapshotter)
            async with _running(nerdctl, argv, cid_file) as process:
                return await _follow(start, log, process, cid_file, requested_s)


def _cid_file(flags: Sequence[str], scratch: Path) -> tuple[Path, tuple[str, ...]]:
    """Where nerdctl will write the container's id: the caller's own --cidfile, or one of ours."""
    for position, flag in enumerate(flags):
        if flag.startswith("--cidfile="):
            return Path(flag.partition("=")[2]), tuple(flags)
        if flag == "--cidfile" and position + 1 < len(flags):
            return Path(flags[position + 1]), tuple(flags)
    ours = scratch / "cid"
    return ours, ("--cidfile", str(ours), *flags)


@asynccontextmanager
async def _running(nerdctl: Nerdctl, argv: Sequence[str], cid_file: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """nerdctl with our own stdin, stdout and stderr; when the block ends neither it nor its container is left."""
    process = await asyncio.create_subprocess_exec(*argv)
    try:
        yield process
    finally:
        # Not to be interrupted by a second Ctrl-C's cancellation: a container left behind holds ports and GPUs.
        await asyncio.shield(_end(nerdctl, process, cid_file))


async def _end(nerdctl: Nerdctl, process: asyncio.subprocess.Process, cid_file: Path) -> None:
    await _remove(nerdctl, _read_cid(cid_file))
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None and not await _exits(process, _STOP_GRACE_S):
            process.send_signal(number)
    await process.wait()
    # nerdctl may have been on its way to create the container while the first removal found none.
    await _remove(nerdctl, _read_cid(cid_file))


async def _remove(nerdctl: Nerdctl, container_id: str | None) -> None:
    if container_id is None:
        return
    argv = nerdctl.argv("rm", "-f", "-v", container_id)
    quiet = asyncio.subprocess.DEVNULL
    # A session of its own: the terminal's Ctrl-C goes to the whole foreground group and must not stop the removal.
    remover = await asyncio.create_subprocess_exec(
        *argv, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )
    await remover.wait()


async def _exits(process: asyncio.subprocess.Process, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            await process.wait()
    except TimeoutError:
        return False
    return True


def _read_cid(cid_file: Path) -> str | None:
    try:
        return cid_file.read_text().strip() or None
    except FileNotFoundError:
        return None


async def _follow(
    start: Start, log: EventLog, process: asyncio.subprocess.Process, cid_file: Path, requested_s: float
) -> Sample:
    container_id = await _container_id(process, cid_file)
    try:
        async with asyncio.timeout(start.limit_s):
            await _started(log, process, container_id)
            ready_s = await _ready(start, log, process, container_id)
            gone = await log.wait(container_id, Moment.EXITED) if start.until is Until.COMPLETION else None
    except TimeoutError:
        what = "finish" if start.until is Until.COMPLETION else "become ready"
        message = f"the container did not {what} in {start.limit_s:.0f} s"
        raise Failure(message, hint="--timeout gives it longer", code=ExitCode.NOT_READY) from None
    since, elapsed_s = _Since(log, container_id, requested_s), time.monotonic() - requested_s
    if gone is not None:
        await _exits(process, _STOP_GRACE_S)  # it may still be passing on the container's last words
    return Sample(
        container_id=container_id,
        container_created_time=since.event(Moment.CREATED),
        container_start_time=since.event(Moment.STARTED),
        readiness_time=None if ready_s is None else ready_s - requested_s,
        completion_time=None if gone is None else gone.at_s - requested_s,
        total_elapsed_time=elapsed_s,
        exit_status=0 if gone is None else gone.exit_status,
    )


@dataclass(frozen=True, slots=True)
class _Since:
    """Seconds from the request to an event of the container, where it happened."""

    log: EventLog
    container_id: str
    requested_s: float

    def event(self, moment: Moment) -> float | None:
        event = self.log.get(self.container_id, moment)
        return None if event is None else event.at_s - self.requested_s


async def _container_id(process: asyncio.subprocess.Process, cid_file: Path) -> str:
    """The id nerdctl chose; it writes it before it pulls."""
    while True:
        over = process.returncode
        container_id = _read_cid(cid_file)
        if container_id is not None:
            return container_id
        if over is not None:
            raise _nerdctl_failed(over)
        await asyncio.sleep(_CID_POLL_S)


async def _started(log: EventLog, process: asyncio.subprocess.Process, container_id: str) -> None:
    """Wait for the container's first process, or learn that it will never be.

    A nerdctl that ended may still have started it (-d, or a container quicker than its event).
    """
    status: int | ContainerEvent = await _first(log.wait(container_id, Moment.STARTED), process.wait())
    if not isinstance(status, int) or log.get(container_id, Moment.STARTED) is not None:
        return
    try:
        async with asyncio.timeout(_EVENT_LAG_S if status == 0 else 0.2):
            await log.wait(container_id, Moment.STARTED)
    except TimeoutError:
        raise _nerdctl_failed(status) from None


async def _ready(start: Start, log: EventLog, process: asyncio.subprocess.Process, container_id: str) -> float | None:
    if start.until is not Until.READINESS:
        return None
    assert start.readiness_endpoint is not None
    first: float | ContainerEvent = await _first(
        wait_ready(start.readiness_endpoint), log.wait(container_id, Moment.EXITED)
    )
    if isinstance(first, float):
        return first
    await _exits(process, _STOP_GRACE_S)
    message = f"the container ended with status {first.exit_status} before it was ready"
    raise Failure(message, hint="its last lines of output are above", code=ExitCode.NOT_READY)


def _nerdctl_failed(status: int) -> Failure:
    return Failure(
        f"nerdctl run failed with status {status}", hint="its message is above", code=ExitCode.COMMAND_FAILED
    )


async def _first(*waits: Awaitable[T]) -> T:
    """The result of whichever is done first; the others are cancelled and gone when this returns."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
