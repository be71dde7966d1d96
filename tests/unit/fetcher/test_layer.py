"""A layer's directory, from the draft that frames are written to until it is loaded again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fetcher.layer import Layer, directory_name
from fetcher.registry import Origin
from layerformat.digest import Digest
from layerformat.errors import FormatError
from layerformat.index import decode_index
from tests.harness.layers import make_layer

MADE = make_layer({"file": bytes(range(256)) * 1000}, frame_bytes=64 << 10)
ORIGINS = [Origin(host="registry.test", repository="team/app")]


def test_frames_written_to_a_draft_are_the_layers(tmp_path: Path) -> None:
    draft = Layer.draft(tmp_path, MADE.ref, ORIGINS, MADE.payload)
    draft.sync_draft()
    draft.open_for_filling()
    for number in (0, 2):
        frame = draft.frames[number]
        draft.write_frame(frame, MADE.tar[frame.start : frame.start + frame.length])
        draft.mark_present(frame)
    draft.write_metadata(decode_index(MADE.payload))
    assert draft.directory.name.startswith(".new-")
    draft.publish()
    assert os.listdir(tmp_path) == [directory_name(MADE.ref.digest)] == [draft.directory.name]
    draft.mark_present(draft.frames[1])  # through the mapping that was made before
    draft.make_durable()
    draft.close()
    loaded = Layer.load(draft.directory)
    assert [number in loaded.present for number in range(4)] == [True, True, True, False]
    assert loaded.origins == ORIGINS
    assert loaded.metadata_path.read_bytes() == MADE.index.metadata
    assert (loaded.directory / "durable").exists()
    loaded.close()


def test_a_draft_is_no_layer(tmp_path: Path) -> None:
    draft = Layer.draft(tmp_path, MADE.ref, ORIGINS, MADE.payload)
    draft.close()
    with pytest.raises(OSError, match=r"ref\.json"):
        Layer.load(draft.directory)


def test_an_index_that_the_layer_does_not_name_makes_no_draft(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="digest"):
        Layer.draft(tmp_path, MADE.ref, ORIGINS, MADE.payload[:-1])
    with pytest.raises(FormatError, match="digest"):
        Layer.draft(tmp_path, replace(MADE.ref, index_digest=Digest("sha256:" + "0" * 64)), ORIGINS, MADE.payload)
    assert not os.listdir(tmp_path)
