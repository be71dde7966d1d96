"""How fast each layer arrives, from what the daemon said at several moments: it counts bytes, not rates."""

from collections import deque
from collections.abc import Mapping

from fastpull.daemon_client import Daemon

#: As long as the daemon's own rate looks back.
WINDOW_S = 3.0


class LayerRates:
    """Told of each answer; knows the rates over the last few seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Mapping[str, int]]] = deque()

    def add(self, at_s: float, daemon: Daemon) -> Mapping[str, float]:
        """Bytes per second of each layer that was there before; `at_s` is of a clock that only goes forward."""
        now = {digest: sum(layer.fetched.values()) for digest, layer in daemon.layers.items()}
        if self._seen and any(count < self._seen[-1][1].get(digest, 0) for digest, count in now.items()):
            self._seen.clear()  # another daemon answers: it counts from nothing
        self._seen.append((at_s, now))
        while len(self._seen) > 2 and self._seen[1][0] <= at_s - WINDOW_S:
            self._seen.popleft()
        began_s, before = self._seen[0]
        if at_s <= began_s:
            return {}
        return {digest: (now[digest] - before[digest]) / (at_s - began_s) for digest in now if digest in before}
