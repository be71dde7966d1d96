"""Pieces of the padded tar in, the bytes of whole frames out."""

from collections.abc import Iterable, Iterator

from converter.cuts import CutPlan, Cutter
from converter.tarlayer import Piece


def frames_of(pieces: Iterable[Piece], plan: CutPlan) -> Iterator[bytes]:
    """The uncompressed bytes of each frame, in order. Holds one frame and one piece at a time."""
    cutter = Cutter(plan)
    frame: list[memoryview] = []
    for piece in pieces:
        if piece.file_size and cutter.begin_file(piece.file_size):
            yield b"".join(frame)
            frame = []
        view = memoryview(piece.data)
        while view:
            part, view = view[: cutter.room()], view[cutter.room() :]
            frame.append(part)
            if cutter.advance(len(part)):
                yield b"".join(frame)
                frame = []
    if frame:
        yield b"".join(frame)
