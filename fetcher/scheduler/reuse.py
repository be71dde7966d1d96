"""Frames that the node holds already, in another layer or elsewhere in the same: copied from there, not fetched.

Equal data gives equal frames, whatever the image, since a large file's frames hold nothing but its data. When a layer
is admitted its frames are looked up among those of all layers, once; what is kept is the matches. A match is a
hint: the copy is verified like anything that comes from a registry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from fetcher.layers.layer import Layer
from layerformat.frames import Frame


class SharedFrames:
    """For each incomplete layer, which of its frames are where else on the node."""

    def __init__(self) -> None:
        self._elsewhere: dict[str, dict[int, tuple[Layer, int]]] = {}

    def knows(self, digest: str) -> bool:
        """Whether the layer was looked up and not forgotten since."""
        return digest in self._elsewhere

    def look_up(self, layer: Layer, others: Iterable[Layer]) -> None:
        """Find a layer's frames among those of others, and those it has more than once. Not for the event loop."""
        first: dict[bytes, int] = {}
        again: list[tuple[int, int]] = []
        for number, (_, _, digest) in enumerate(layer.frames.rows()):
            same = first.setdefault(digest, number)
            if same != number:
                again.append((number, same))
        found: dict[int, tuple[Layer, int]] = {}
        for other in others:
            if other is layer:
                continue
            for number, (_, _, digest) in enumerate(other.frames.rows()):
                if (wanted := first.get(digest)) is not None and self._better(found.get(wanted), other, number):
                    found[wanted] = (other, number)
        for number, same in again:
            found[number] = found.get(same, (layer, same))
        self._elsewhere[layer.digest] = found

    @staticmethod
    def _better(known: tuple[Layer, int] | None, other: Layer, number: int) -> bool:
        """Whichever is present now; of those the first."""
        return known is None or (known[1] not in known[0].present and number in other.present)

    def find(self, layer: Layer, number: int) -> tuple[Layer, Frame] | None:
        """Where a frame can be copied from now, if anywhere."""
        match = self._elsewhere.get(layer.digest, {}).get(number)
        if match is None or match[0].closed or match[1] not in match[0].present:
            return None
        source, there = match
        return source, source.frames[there]

    def forget(self, digest: str) -> None:
        """The layer is complete or gone."""
        self._elsewhere.pop(digest, None)

    def discard(self, digest: str, number: int) -> None:
        """A copy turned out to be wrong: have the frame fetched."""
        self._elsewhere.get(digest, {}).pop(number, None)


def copy_frame(source: Layer, there: Frame, destination: Layer, frame: Frame) -> bool:
    """Copy a frame between layer files, sharing the blocks where the file system can. Blocks; raises OSError.

    False when what the source has is not the frame.
    """
    with source.borrow_fd() as fd:
        data = source.read_frame(fd, there)
        if len(data) != frame.length or hashlib.sha256(data).digest() != frame.sha256:
            return False
        if not destination.clone_frame(fd, there, frame):
            destination.write_frame(frame, [data])
    return True
