"""The admin socket's routes for profiles. `{manifest}` is `sha256:<hex>` of an image's manifest.

`GET /v1/profiles`                    what is known of every image: `{"profiles": [...]}`
`GET /v1/profiles/{manifest}`         the profile stored on this node, as docs/profiles.md specifies it
`GET /v1/profiles/{manifest}/replayed` the profile that the image's start was given, wherever it came from
`DELETE /v1/profiles/{manifest}`      forgets it: `{"removed": bool}`
`POST /v1/profiles/{manifest}/start`  records from now on. An image that was not pulled yet is described in the body:
                                      `{"name", "layers": [annotations of each layer], "origins": [{"host",
                                      "repository"}], "window_s"}`, every member optional
`POST /v1/profiles/{manifest}/stop`   ends the recording; answers the stored profile, or 204 when nothing was read;
                                      `?keep=0` throws the recording away

Errors are `{"error": "..."}` with 400 (malformed), 404 (no such profile) or 409 (can not be done now).
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from aiohttp import web

from fetcher.model import ImageHint
from fetcher.profiles.document import ProfileError
from fetcher.profiles.profile import MEDIA_TYPE, Profile, encode_profile
from fetcher.profiles.profiles import Profiles
from fetcher.registry import Origin
from layerformat.annotations import LayerRef
from layerformat.digest import Digest, parse_digest
from layerformat.errors import FormatError

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ProfileRoutes:
    """Handlers over the profiles of one fetcher."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles

    def routes(self) -> Sequence[web.RouteDef]:
        """To be added to the admin application."""
        one = "/v1/profiles/{manifest}"
        return [
            web.get("/v1/profiles", _told(self.index)),
            web.get(one, _told(self.show)),
            web.get(f"{one}/replayed", _told(self.replayed)),
            web.delete(one, _told(self.remove)),
            web.post(f"{one}/start", _told(self.start)),
            web.post(f"{one}/stop", _told(self.stop)),
        ]

    async def index(self, _request: web.Request) -> web.Response:
        return web.json_response({"profiles": [asdict(each) for each in await self._profiles.status()]})

    async def show(self, request: web.Request) -> web.Response:
        profile = await self._profiles.get(_manifest(request))
        if profile is None:
            return _error(404, "there is no profile of this image on this node")
        return _document(profile)

    async def replayed(self, request: web.Request) -> web.Response:
        profile = self._profiles.replayed(_manifest(request))
        return _error(404, "no profile was replayed for this image") if profile is None else _document(profile)

    async def remove(self, request: web.Request) -> web.Response:
        return web.json_response({"removed": await self._profiles.remove(_manifest(request))})

    async def start(self, request: web.Request) -> web.Response:
        manifest = _manifest(request)
        body = parse_start(manifest, await request.read())
        return web.json_response(asdict(await self._profiles.start(manifest, *body)))

    async def stop(self, request: web.Request) -> web.Response:
        profile = await self._profiles.stop(_manifest(request), keep=request.query.get("keep") != "0")
        return web.Response(status=204) if profile is None else _document(profile)


def _told(handler: _Handler) -> _Handler:
    """Errors as answers."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except FormatError as error:
            return _error(400, str(error))
        except (ProfileError, OSError) as error:
            return _error(409, str(error))

    return answer


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _document(profile: Profile) -> web.Response:
    return web.Response(body=encode_profile(profile), content_type=MEDIA_TYPE)


def _manifest(request: web.Request) -> Digest:
    return parse_digest(request.match_info["manifest"])


def parse_start(manifest: Digest, body: bytes) -> tuple[ImageHint | None, float | None]:
    """What the body of a start says: the image, if it describes one, and the window. Raises FormatError."""
    try:
        document = json.loads(body) if body else {}
        window = document.get("window_s")
        return _hint(manifest, document), None if window is None else float(window)
    except FormatError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise FormatError(f"start: not understood: {error!r}") from error


def _hint(manifest: Digest, document: Mapping[str, Any]) -> ImageHint | None:
    refs = [LayerRef.from_annotations(annotations) for annotations in document.get("layers", [])]
    layers = tuple(ref for ref in refs if ref is not None)
    if not layers:
        return None
    name = document.get("name")
    origins = tuple(
        Origin(host=str(row["host"]), repository=str(row["repository"])) for row in document.get("origins", [])
    )
    return ImageHint(name=None if name is None else str(name), manifest_digest=manifest, layers=layers, origins=origins)
