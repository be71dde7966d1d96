"""How a layer comes to be known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fetcher.layers.admission import Admissions
from fetcher.layers.layer import Layer
from fetcher.model import LayerUnavailable
from fetcher.registry import Origin, RegistryClient, RegistryConfig
from layerformat.errors import FormatError
from tests.harness.fake_registry import FakeRegistry
from tests.harness.layers import TestLayer, make_layer, with_spoiled_metadata

LAYER = make_layer({"dir/a": b"a" * 5000, "dir/b": b"b"})
BAD = with_spoiled_metadata(LAYER)


@dataclass
class Node:
    """What is told of by the admissions of a directory."""

    layers_dir: Path
    registry: FakeRegistry
    client: RegistryClient
    admitted: list[Layer] = field(default_factory=list)
    withdrawn: list[Layer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.admissions = Admissions(
            self.client, self.layers_dir, index_timeout_s=5, admitted=self.admitted.append, withdraw=self.withdraw
        )

    async def withdraw(self, draft: Layer) -> None:
        assert draft.directory.exists() and not draft.closed
        self.withdrawn.append(draft)

    def origin(self, repository: str, layer: TestLayer, blob: bytes | None = None) -> Origin:
        self.registry.add_blob(repository, layer.blob)
        if blob is not None:
            self.registry.blobs[layer.ref.digest] = blob
        return Origin(host=self.registry.host, repository=repository)

    def names(self) -> list[str]:
        return [directory.name for directory in self.layers_dir.iterdir()]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with FakeRegistry() as registry, RegistryClient(RegistryConfig()) as client:
        node = Node(tmp_path, registry, client)
        yield node
        await node.admissions.close()
        for layer in node.admitted:
            layer.close()


async def test_its_frames_are_known_before_its_metadata_are_checked(node: Node) -> None:
    origins = [node.origin("app", LAYER)]
    async with node.admissions._turn:
        draft = await node.admissions.draft(LAYER.ref, origins)
        whole = asyncio.ensure_future(node.admissions.layer(LAYER.ref, origins))
        await asyncio.sleep(0.05)
        assert draft.frames == LAYER.index.frames and draft.tar_path.stat().st_size == len(LAYER.tar)
        assert not whole.done() and not node.admitted and LAYER.ref.digest in node.admissions
        assert all(name.startswith(".") for name in node.names())
        draft.open_for_filling()
        draft.write_frame(draft.frames[0], [LAYER.tar[: draft.frames[0].end]])
        draft.mark_present(draft.frames[0])
    assert await whole is draft and node.admitted == [draft] and not node.withdrawn
    await asyncio.sleep(0)
    assert LAYER.ref.digest not in node.admissions
    assert (draft.directory / "meta.erofs").read_bytes() == LAYER.index.metadata
    # What was fetched into the draft is there for a later daemon, too.
    draft.make_durable()
    later = Layer.load(draft.directory)
    assert 0 in later.present and node.names() == [draft.directory.name]
    later.close()


async def test_all_who_ask_share_one_download(node: Node) -> None:
    origins = [node.origin("app", LAYER)]
    ask = node.admissions.layer
    layers = await asyncio.gather(*(ask(LAYER.ref, origins) for _ in range(5)))
    assert len(set(map(id, layers))) == 1 and len(node.registry.seen("GET", "/blobs/")) == 1


async def test_metadata_that_are_no_good_end_the_draft(node: Node) -> None:
    origins = [node.origin("app", BAD)]
    draft = await node.admissions.draft(BAD.ref, origins)
    with pytest.raises(LayerUnavailable) as caught:
        await node.admissions.layer(BAD.ref, origins)
    assert isinstance(caught.value.__cause__, FormatError)
    assert node.withdrawn == [draft] and draft.closed and not node.admitted and not node.names()


async def test_an_index_that_does_not_verify_is_sought_elsewhere(tmp_path: Path, node: Node) -> None:
    wrong = bytearray(LAYER.blob)
    wrong[LAYER.ref.index_offset + 10] ^= 1
    bad = node.origin("app", LAYER, bytes(wrong))
    async with FakeRegistry() as other:
        other.add_blob("mirror", LAYER.blob)
        good = Origin(host=other.host, repository="mirror")
        layer = await node.admissions.layer(LAYER.ref, [bad, good])
    assert layer.origins == [bad, good] and node.admitted == [layer]


async def test_where_no_origin_has_it_nobody_waits_for_a_draft(node: Node) -> None:
    wrong = node.origin("app", LAYER, LAYER.blob[: LAYER.ref.index_offset] + bytes(LAYER.ref.index_size))
    for ask in (node.admissions.draft, node.admissions.layer):
        with pytest.raises(LayerUnavailable, match="index is not"):
            await ask(LAYER.ref, [wrong])
    assert not node.names()


async def test_closing_leaves_no_draft(node: Node) -> None:
    origins = [node.origin("app", LAYER)]
    async with node.admissions._turn:
        draft = await node.admissions.draft(LAYER.ref, origins)
        whole = asyncio.ensure_future(node.admissions.layer(LAYER.ref, origins))
        await asyncio.sleep(0)
        await node.admissions.close()
        with pytest.raises(asyncio.CancelledError):
            await whole
    assert node.withdrawn == [draft] and draft.closed and not node.names()
