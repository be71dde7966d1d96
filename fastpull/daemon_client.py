"""What the daemon says of itself, over its admin socket; only the members that are shown, checked as they are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.service_hints import restart_daemon, start_daemon

T = TypeVar("T")

_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One lazily served layer on this node. `present_bytes` of `tar_bytes` are local; `fetched` is by priority."""

    digest: str
    state: str
    plane: str
    mounted: bool
    tar_bytes: int
    blob_bytes: int
    present_bytes: int
    waiting: int
    origins: tuple[str, ...]
    fetched: Mapping[str, int]
    last_error: str | None

    @property
    def share(self) -> float:
        """How much is local, 0 to 1."""
        return self.present_bytes / self.tar_bytes if self.tar_bytes else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """The daemon at one moment. Bytes are compressed bytes received since it started."""

    plane: str
    layers: Mapping[str, Layer]
    fetched: Mapping[str, int] = field(default_factory=dict)
    faults: int = 0
    fault_wait_s: float = 0.0
    rate_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Touch:
    """One read of a layer's tar: when and how long it waited, in nanoseconds of the node's monotonic clock; bytes."""

    at_ns: int
    offset: int
    count: int
    wait_ns: int  # 0: not at all; -1: it still waits
    ahead: int = 0  # 1: no program's read; it was brought into the page cache ahead of one


async def ask(socket: Path) -> Daemon:
    """The daemon's status.

    Raises:
        Failure: it does not answer, or not with what this version understands.
    """
    return await _exchange(socket, "GET", "/v1/status", parse)


async def clear_cache(socket: Path) -> list[str]:
    """Have the daemon evict every layer that no snapshot uses; their digests. Raises Failure as `ask` does."""
    return await _exchange(socket, "POST", "/v1/cache/clear", lambda answer: [str(one) for one in answer["evicted"]])


async def touches(socket: Path) -> Mapping[str, list[Touch]]:
    """What was read of each layer, in order, since the daemon started. Raises Failure as `ask` does."""
    return await _exchange(socket, "GET", "/v1/touches", parse_touches)


def unreachable(socket: Path, problem: Exception) -> Failure:
    """The failure for a daemon that cannot be asked, in the system's words and not in the HTTP library's."""
    cause = getattr(problem, "os_error", problem)
    if isinstance(cause, PermissionError):
        return Failure(f"only root may ask the daemon at {socket}", hint="use sudo", code=ExitCode.NOT_PERMITTED)
    words = (cause.strerror if isinstance(cause, OSError) else str(cause)) or type(cause).__name__
    return Failure(f"the daemon does not answer at {socket}: {words}", hint=start_daemon(), code=ExitCode.UNAVAILABLE)


async def _exchange(socket: Path, method: str, path: str, read: Callable[[Any], T]) -> T:
    try:
        connector = aiohttp.UnixConnector(path=str(socket))
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, f"http://fastpull{path}") as response,
        ):
            response.raise_for_status()
            return read(await response.json())
    except (aiohttp.ClientError, TimeoutError, OSError) as problem:
        raise unreachable(socket, problem) from None
    except (KeyError, TypeError, ValueError) as problem:
        message = f"the daemon at {socket} answers in another language ({problem!r})"
        raise Failure(message, hint=restart_daemon(), code=ExitCode.MALFORMED) from None


def parse(document: Mapping[str, Any]) -> Daemon:
    """Read the document of `GET /v1/status`. Raises KeyError, TypeError or ValueError where it is not one."""
    fetcher = document["fetcher"]
    if fetcher is None:
        return Daemon(plane="none", layers={})
    layers = [_layer(row) for row in fetcher["layers"]]
    return Daemon(
        plane=str(fetcher["plane"]),
        layers={layer.digest: layer for layer in layers},
        fetched={str(key): int(value) for key, value in fetcher["fetched_bytes"].items()},
        faults=int(fetcher["faults"]),
        fault_wait_s=float(fetcher["fault_wait_s"]),
        rate_bytes_per_s=float(fetcher["rate_bytes_per_s"]),
    )


def parse_touches(document: Mapping[str, Any]) -> Mapping[str, list[Touch]]:
    """Read the document of `GET /v1/touches`. Raises as `parse` does."""
    return {str(layer): [Touch(*map(int, row)) for row in rows] for layer, rows in document["layers"].items()}


def _layer(row: Mapping[str, Any]) -> Layer:
    error = row["last_error"]
    return Layer(
        digest=str(row["digest"]),
        state=str(row["state"]),
        plane=str(row["plane"]),
        mounted=bool(row["mounted"]),
        tar_bytes=int(row["tar_bytes"]),
        blob_bytes=int(row["blob_bytes"]),
        present_bytes=int(row["present_bytes"]),
        waiting=int(row["waiting"]),
        origins=tuple(str(origin) for origin in row["origins"]),
        fetched={str(key): int(value) for key, value in row["fetched_bytes"].items()},
        last_error=None if error is None else str(error),
    )
