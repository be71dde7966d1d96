"""The admin socket's routes that concern the fetcher: its cache, and what containers read.

`POST /v1/cache/clear` evicts every layer no snapshot uses: `{"evicted": [digest, ...]}`.
`GET /v1/touches` tells which bytes were read since the daemon started (the last 200,000 reads): for each layer the
reads in their order as `[ns, offset, count, wait_ns, ahead]`, ns on the clock whose present reading is `now_ns`;
wait_ns is 0 for a read that did not wait, and -1 for one that still does; ahead is 1 for what no program read, but the
daemon's own process ahead of one.
"""

import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from fetcher.node import Fetcher


class FetcherRoutes:
    """Handlers over one fetcher."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    def routes(self) -> Sequence[web.RouteDef]:
        """To be added to the admin application."""
        return [web.post("/v1/cache/clear", self.clear_cache), web.get("/v1/touches", self.touches)]

    async def clear_cache(self, _request: web.Request) -> web.Response:
        return web.json_response({"evicted": list(await self._fetcher.clear_cache())})

    async def touches(self, _request: web.Request) -> web.Response:
        layers: dict[str, list[list[Any]]] = {}
        for touch in list(self._fetcher.touches.history):
            layers.setdefault(touch.layer, []).append(
                [touch.at_ns, touch.offset, touch.count, touch.wait_ns, int(touch.ahead)]
            )
        return web.json_response({"now_ns": time.monotonic_ns(), "layers": layers})
