"""Checking a converted layer as it streams by: every frame against the index, the whole against its diff id."""

import hashlib

import zstandard

from layerformat.annotations import LayerRef
from layerformat.errors import FormatError
from layerformat.frames import decode_frame
from layerformat.index import Index


class LayerCheck:
    """Fed with the blob's bytes in order; memory is one frame and one chunk. CPU-bound: call it off the event loop."""

    def __init__(self, ref: LayerRef, index: Index) -> None:
        self._ref = ref
        self._frames = iter(index.frames)
        self._frame = next(self._frames, None)
        self._left = bytearray()
        self._tar = hashlib.sha256()
        self._decompressor = zstandard.ZstdDecompressor()

    def feed(self, chunk: bytes) -> int:
        """Take the next bytes; returns how many bytes of the tar were checked.

        Raises:
            FormatError: a frame does not decompress to what the index says.
        """
        if self._frame is None:
            return 0  # the index and the seek table follow the last frame; the blob's digest covers them
        self._left += chunk
        done, checked = 0, 0
        while self._frame is not None and len(self._left) - done >= self._frame.size:
            data = bytes(self._left[done : done + self._frame.size])
            self._tar.update(decode_frame(self._frame, data, self._decompressor))
            done += self._frame.size
            checked += self._frame.length
            self._frame = next(self._frames, None)
        del self._left[:done]
        return checked

    def finish(self) -> None:
        """All bytes were fed.

        Raises:
            FormatError: frames are missing, or the tar is not the one of the diff id.
        """
        if self._frame is not None:
            raise FormatError(f"layer {self._ref.digest}: ends before frame {self._frame.number}")
        found = f"sha256:{self._tar.hexdigest()}"
        if found != self._ref.diff_id:
            raise FormatError(f"layer {self._ref.digest}: its tar is {found}, its descriptor says {self._ref.diff_id}")
