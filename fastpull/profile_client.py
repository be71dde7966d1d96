"""The daemon's profiles, over its admin socket."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from fastpull.daemon_client import unreachable
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fetcher.profiles.document import ProfileError
from fetcher.profiles.profile import Profile, decode_profile

_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A recording is on: how many layers the image has, and of those how many were mounted, or will not be seen."""

    layers: int
    mounted: int
    silent: int


class ProfileClient:
    """One daemon. Every method raises Failure where it cannot be asked or declines."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def index(self) -> list[Mapping[str, Any]]:
        """What it knows of every image's profile; see fetcher.profiles.profiles.ProfileStatus."""
        _, body = await self._call("GET", "")
        return list(json.loads(body)["profiles"])

    async def get(self, manifest: str) -> Profile | None:
        """The profile it has stored."""
        status, body = await self._call("GET", f"/{manifest}", missing_is_fine=True)
        return None if status == 404 else _decoded(body)

    async def replayed(self, manifest: str) -> Profile | None:
        """The one that the image's start was given; None if it had to do without."""
        status, body = await self._call("GET", f"/{manifest}/replayed", missing_is_fine=True)
        return None if status == 404 else _decoded(body)

    async def remove(self, manifest: str) -> bool:
        """Whether there was one."""
        _, body = await self._call("DELETE", f"/{manifest}")
        return bool(json.loads(body)["removed"])

    async def start(self, manifest: str, image: Mapping[str, Any]) -> Started:
        """Record from now on."""
        _, body = await self._call("POST", f"/{manifest}/start", json.dumps(image).encode())
        answer = json.loads(body)
        return Started(**{name: int(answer[name]) for name in ("layers", "mounted", "silent")})

    async def stop(self, manifest: str, *, keep: bool) -> Profile | None:
        """End the recording; the profile that is stored now, None when nothing was read or it is not kept."""
        status, body = await self._call("POST", f"/{manifest}/stop?keep={int(keep)}")
        return None if status == 204 else _decoded(body)

    async def _call(
        self, method: str, path: str, body: bytes | None = None, *, missing_is_fine: bool = False
    ) -> tuple[int, bytes]:
        connector = aiohttp.UnixConnector(path=str(self._socket))
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.request(method, f"http://fastpull/v1/profiles{path}", data=body) as response,
            ):
                answer = await response.read()
                if response.status >= 400 and not (missing_is_fine and response.status == 404):
                    raise Failure(f"the daemon declines: {_reason(answer)}")
                return response.status, answer
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            raise unreachable(self._socket, problem) from None


def _reason(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return answer.decode(errors="replace").strip() or "no reason given"


def _decoded(body: bytes) -> Profile:
    try:
        return decode_profile(body)
    except ProfileError as problem:
        raise Failure(f"the daemon's profile {problem}", code=ExitCode.MALFORMED) from None
