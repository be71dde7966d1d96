"""Which parts of which files are read ahead, and in what order."""

from pathlib import Path

import pytest

from fetcher.layers.extents import EXTENTS, ExtentMap, Piece, encode_extents
from fetcher.profiles.warmer import GAP_BYTES, Source, Step, plan
from layerformat.erofs_read import Extent
from layerformat.frames import FrameTable

BLOCK = 4096
FRAME = 16 * BLOCK


def extents(tmp_path: Path, *rows: tuple[int, int, int]) -> ExtentMap:
    (tmp_path / EXTENTS).write_bytes(encode_extents([Extent(*row) for row in rows]))
    return ExtentMap.load(tmp_path)


def source(tmp_path: Path, *rows: tuple[int, int, int], frames: int = 4) -> Source:
    table = FrameTable.from_sizes((100, FRAME, bytes(32)) for _ in range(frames))
    return Source(tmp_path, table, extents(tmp_path, *rows))


def test_a_range_is_cut_into_its_files(tmp_path: Path) -> None:
    files = extents(tmp_path, (1, 2, 40), (4, 1, 50), (5, 10, 60))
    assert list(files.pieces(0, BLOCK)) == []
    assert list(files.pieces(0, 6 * BLOCK)) == [
        Piece(40, BLOCK, BLOCK, 3 * BLOCK),
        Piece(50, 4 * BLOCK, 4 * BLOCK, 5 * BLOCK),
        Piece(60, 5 * BLOCK, 5 * BLOCK, 6 * BLOCK),
    ]
    assert list(files.pieces(7 * BLOCK, 8 * BLOCK)) == [Piece(60, 5 * BLOCK, 7 * BLOCK, 8 * BLOCK)]
    assert list(files.pieces(15 * BLOCK, 99 * BLOCK)) == []


def test_a_layer_without_files(tmp_path: Path) -> None:
    assert list(extents(tmp_path).pieces(0, 1 << 40)) == []


def test_a_list_that_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / EXTENTS).write_bytes(bytes(8 * 4))
    with pytest.raises(ValueError, match="4 numbers"):
        ExtentMap.load(tmp_path)


def test_frames_come_in_the_order_of_their_first_touch(tmp_path: Path) -> None:
    layer = source(tmp_path, (0, 64, 40))
    reads = [(0, 2 * FRAME, BLOCK), (0, 0, BLOCK), (0, 2 * FRAME + 2 * BLOCK, BLOCK)]
    assert list(plan(reads, {0: layer})) == [
        Step(0, 2, Piece(40, 0, 2 * FRAME, 2 * FRAME + 3 * BLOCK)),
        Step(0, 0, Piece(40, 0, 0, BLOCK)),
    ]


def test_what_is_far_apart_stays_apart(tmp_path: Path) -> None:
    layer = source(tmp_path, (0, 64, 40))
    far = BLOCK + GAP_BYTES + BLOCK
    steps = list(plan([(0, far, BLOCK), (0, 0, BLOCK)], {0: layer}))
    assert [(step.piece.start, step.piece.end) for step in steps] == [(0, BLOCK), (far, far + BLOCK)]


def test_a_read_over_frames_waits_for_each_of_them(tmp_path: Path) -> None:
    layer = source(tmp_path, (0, 64, 40))
    steps = list(plan([(0, FRAME - BLOCK, FRAME)], {0: layer}))
    assert [(step.frame, step.piece.start, step.piece.end) for step in steps] == [
        (0, FRAME - BLOCK, FRAME),
        (1, FRAME, 2 * FRAME - BLOCK),
    ]


def test_what_is_not_here_is_left_out(tmp_path: Path) -> None:
    layer = source(tmp_path, (0, 64, 40))
    assert list(plan([(1, 0, BLOCK), (0, 1 << 40, BLOCK)], {0: layer})) == []
