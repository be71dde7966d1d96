"""Packs: blobs that hold frames of several layers one after the other, as a start wants them.

A pack saves requests, nothing else: each frame is verified against its layer's index wherever it came from, and is
fetched from the layer where the pack fails.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from fetcher.model import Priority
from fetcher.registry import Origin, RegistryError, is_transient
from fetcher.scheduler.queues import LayerQueue, Piece, Run
from layerformat.digest import Digest

log = structlog.get_logger(__name__)


#: Requests of a pack that may fail for reasons that pass.
TRIES = 3


@dataclass(slots=True, eq=False)
class PackBlob:
    """Where a pack is."""

    origin: Origin
    digest: Digest
    usable: bool = True
    failures: int = 0

    def failed(self, error: RegistryError) -> None:
        """A request of it failed."""
        self.failures += 1
        if not is_transient(error) or self.failures >= TRIES:
            self.give_up(str(error))

    def give_up(self, reason: str) -> None:
        """Fetch nothing more of it."""
        if self.usable:
            self.usable = False
            log.warning("pack_ignored", pack=self.digest, source=str(self.origin), reason=reason)


class Place(NamedTuple):
    """Where in a pack a frame is."""

    pack: PackBlob
    offset: int


#: Frames that are wanted, by layer digest and number, the first wanted first; and where in a pack they are, if known.
Wanted = OrderedDict[tuple[str, int], Place | None]


@dataclass(slots=True, eq=False)
class PackedRun:
    """Neighbours in a pack, fetched by one range request. Each layer has a run of its own, its share of this one."""

    pack: PackBlob
    offset: int
    size: int
    pieces: list[Piece]
    shares: dict[LayerQueue, Run]
    settled: Callable[[], Awaitable[None]] | None = None  # waits for the frames that are being written
    priority: Priority = Priority.PREFETCH

    def note_received(self, count: int) -> None:
        """So many bytes have come."""
        for share in self.shares.values():
            share.received_to = self.offset + count

    def wanted_shares(self) -> list[tuple[LayerQueue, Run]]:
        """Of the layers that were not withdrawn meanwhile."""
        return [(queue, share) for queue, share in self.shares.items() if not queue.withdrawn]

    def put_back(self, wanted: Wanted) -> None:
        """What did not come is wanted again, before everything else."""
        for queue, frame in reversed(self.pieces):
            if not queue.withdrawn and frame.number not in queue.layer.present:
                key = (queue.layer.digest, frame.number)
                wanted[key] = Place(self.pack, self.shares[queue].places[frame.number])
                wanted.move_to_end(key, last=False)

    async def leave(self, queue: LayerQueue) -> None:
        """The layer is withdrawn; returns when nothing of this run is written to it any more."""
        if queue in self.shares and self.settled is not None:
            await self.settled()


def take_packed(wanted: Wanted, queues: Mapping[str, LayerQueue], most_bytes: int) -> PackedRun | None:
    """The first frame that is wanted, which has a place, and those that follow both in order and in the pack.

    They are taken out of ``wanted``. None if the first one cannot be fetched.
    """
    taken: list[tuple[str, int]] = []
    pieces: list[Piece] = []
    places: dict[LayerQueue, dict[int, int]] = {}
    first: Place | None = None
    end = 0
    for (digest, number), place in wanted.items():
        queue = queues.get(digest)
        if place is None or (first is not None and (place.pack is not first.pack or place.offset != end)):
            break
        if queue is None or not queue.is_free(number):
            break
        frame = queue.layer.frames[number]
        if first is None:
            first = place
        elif end + frame.size - first.offset > most_bytes:
            break
        taken.append((digest, number))
        pieces.append(Piece(queue, frame))
        places.setdefault(queue, {})[number] = place.offset
        end = place.offset + frame.size
    if first is None:
        return None
    for key in taken:
        del wanted[key]
    shares = {queue: queue.take_packed(where, first.offset) for queue, where in places.items()}
    return PackedRun(first.pack, first.offset, end - first.offset, pieces, shares)
