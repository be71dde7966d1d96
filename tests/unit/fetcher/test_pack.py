"""Packs: the table, where frames are in it, which of them one request brings, and what the registry may say."""

import json
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fetcher.layers.layer import Layer
from fetcher.model import GovernorConfig
from fetcher.profiles import packs
from fetcher.profiles.document import MAX_ROWS, ProfileError
from fetcher.profiles.pack import (
    DATA_TYPE,
    MEDIA_TYPE,
    Pack,
    Range,
    decode_pack,
    encode_pack,
    frames_to_pack,
    pack_of,
)
from fetcher.profiles.profile import Profile, Read
from fetcher.registry import OCI_MANIFEST, Origin, RegistryClient, Unauthorized, Unavailable
from fetcher.scheduler.packed import TRIES, PackBlob, Place, Wanted, take_packed
from fetcher.scheduler.queues import LayerQueue
from layerformat.digest import DiffID, Digest, sha256_digest
from layerformat.frames import FrameTable
from tests.harness.fake_registry import FakeRegistry, Fault
from tests.harness.layers import TestLayer, make_layer

FRAME = 16 << 10
ORIGIN = Origin(host="registry.example", repository="team/app")
DIGESTS = (sha256_digest(b"lower"), sha256_digest(b"upper"))
REPOSITORY = "team/app"


def made(seed: int) -> TestLayer:
    return make_layer({"data": random.Random(seed).randbytes(12 * FRAME)}, frame_bytes=FRAME)


LOWER, UPPER = made(1), made(2)
TABLES = (LOWER.index.frames, UPPER.index.frames)


def pack(*frames: tuple[int, int]) -> Pack:
    """Of these frames of the two layers."""
    return pack_of(DIGESTS, [(layer, TABLES[layer][number]) for layer, number in frames])


def test_neighbours_are_one_range_and_every_frame_is_found() -> None:
    frames = [(0, 3), (0, 4), (1, 0), (0, 5), (0, 0)]
    made = pack(*frames)
    assert [row.layer for row in made.ranges] == [0, 1, 0, 0]
    assert made.size == sum(TABLES[layer][number].size for layer, number in frames)
    places = made.places()
    position = 0
    for layer, number in frames:
        frame = TABLES[layer][number]
        assert places.find(DIGESTS[layer], frame) == position
        position += frame.size
    absent = {(layer, number) for layer in (0, 1) for number in range(len(TABLES[layer]))} - set(frames)
    assert all(places.find(DIGESTS[layer], TABLES[layer][number]) is None for layer, number in absent)
    assert places.find(sha256_digest(b"another"), TABLES[0][3]) is None


def test_a_frame_that_is_in_a_pack_in_part_is_not_found() -> None:
    frame = TABLES[0][2]
    for cut in (Range(0, frame.offset + 1, frame.size), Range(0, frame.offset, frame.size - 1)):
        assert Pack(layers=DIGESTS, ranges=(cut,)).places().find(DIGESTS[0], frame) is None


def test_what_a_profile_names_in_its_order() -> None:
    profile = Profile(
        layers=(LOWER.ref.diff_id, UPPER.ref.diff_id),
        reads=(Read(1, 2 * FRAME + 5, FRAME), Read(0, 0, 1), Read(1, 0, 1)),
        recorded_at=datetime.now(UTC),
        duration_ms=1,
    )
    layers = [(LOWER.ref, TABLES[0]), (UPPER.ref, TABLES[1])]
    found = frames_to_pack(profile, layers)
    assert [(layer, frame.number) for layer, frame in found] == [(1, 2), (1, 3), (0, 0), (1, 0)]
    with pytest.raises(ProfileError, match="nothing"):
        frames_to_pack(profile, [(made(3).ref, FrameTable.from_sizes([(10, 4096, bytes(32))]))])


def test_equal_packs_are_equal_bytes() -> None:
    made = pack((0, 3), (1, 0))
    data = encode_pack(made)
    assert decode_pack(data) == made
    first, second = made.ranges
    assert data.decode() == (
        f'{{"format":"fastpull-pack","layers":["{DIGESTS[0]}","{DIGESTS[1]}"],'
        f'"ranges":[[0,{first.offset},{first.length}],[1,{second.offset},{second.length}]],"version":1}}\n'
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "fastpull-profile"},
        {"version": 2},
        {"version": True},
        {"layers": []},
        {"layers": ["sha256:1"]},
        {"layers": [DIGESTS[0], DIGESTS[0]]},
        {"ranges": None},
        {"ranges": [[0, 0, 1]] * (MAX_ROWS + 1)},
        {"ranges": [[0, 0, 0]]},
        {"ranges": [[0, -1, 5]]},
        {"ranges": [[2, 0, 5]]},
        {"ranges": [[0, 0]]},
        {"ranges": [[0, 0, 5, 1]]},
        {"ranges": [[0, 0, 5.0]]},
        {"ranges": [[0, 0, 1 << 60]]},
        {"ranges": [[0, 0, 5], [1, 0, 5], [0, 4, 1]]},
    ],
)
def test_what_is_refused(changes: dict[str, Any]) -> None:
    document = json.loads(encode_pack(pack((0, 3), (1, 0)))) | changes
    with pytest.raises(ProfileError):
        decode_pack(json.dumps(document).encode())


# What one request brings.


@pytest.fixture
def queues(tmp_path: Path) -> Iterator[tuple[LayerQueue, LayerQueue]]:
    drafts = []
    for layer in (LOWER, UPPER):
        index = layer.blob[layer.ref.index_offset : layer.ref.index_offset + layer.ref.index_size]
        drafts.append(Layer.draft(tmp_path, layer.ref, [], index))
    yield LayerQueue(drafts[0], GovernorConfig()), LayerQueue(drafts[1], GovernorConfig())
    for draft in drafts:
        draft.close()


FRAMES = [(0, 3), (1, 0), (1, 1), (0, 9), (1, 7), (0, 1)]


def wanted(queues: tuple[LayerQueue, LayerQueue], blob: PackBlob) -> Wanted:
    found: Wanted = OrderedDict()
    position = 0
    for layer, number in FRAMES:
        found[queues[layer].layer.digest, number] = Place(blob, position)
        position += TABLES[layer][number].size
    return found


def by_digest(queues: tuple[LayerQueue, LayerQueue]) -> dict[str, LayerQueue]:
    return {queue.layer.digest: queue for queue in queues}


def test_neighbours_of_a_pack_are_one_request(queues: tuple[LayerQueue, LayerQueue]) -> None:
    blob = PackBlob(ORIGIN, sha256_digest(b"pack"))
    left = wanted(queues, blob)
    run = take_packed(left, by_digest(queues), 1 << 30)
    assert run is not None and not left
    assert (run.offset, run.size) == (0, sum(TABLES[layer][number].size for layer, number in FRAMES))
    assert [(queues.index(piece.queue), piece.frame.number) for piece in run.pieces] == FRAMES
    assert not any(queues[layer].is_free(number) for layer, number in FRAMES)
    share = run.shares[queues[0]]
    assert share.bytes_before(9) == sum(TABLES[layer][number].size for layer, number in FRAMES[:3])
    run.note_received(1000)
    assert share.bytes_before(3) == -1000
    for queue, share in run.shares.items():
        queue.give_back(share)
    assert all(queues[layer].is_free(number) for layer, number in FRAMES)


def test_a_request_ends_where_the_next_frame_is_not_to_be_had(queues: tuple[LayerQueue, LayerQueue]) -> None:
    blob = PackBlob(ORIGIN, sha256_digest(b"pack"))
    left = wanted(queues, blob)
    queues[1].layer.mark_present(TABLES[1][1])
    run = take_packed(left, by_digest(queues), 1 << 30)
    assert run is not None and len(run.pieces) == 2
    assert take_packed(left, by_digest(queues), 1 << 30) is None  # the one that is here
    del left[queues[1].layer.digest, 1]
    run = take_packed(left, by_digest(queues), TABLES[0][9].size + TABLES[1][7].size)
    assert run is not None and len(run.pieces) == 2  # and not more bytes than that
    left[queues[0].layer.digest, 1] = Place(PackBlob(ORIGIN, sha256_digest(b"another")), 0)
    run = take_packed(left, {}, 1 << 30)
    assert run is None


def test_what_did_not_come_is_wanted_again_first(queues: tuple[LayerQueue, LayerQueue]) -> None:
    blob = PackBlob(ORIGIN, sha256_digest(b"pack"))
    left = wanted(queues, blob)
    before = left.copy()
    run = take_packed(left, by_digest(queues), 1 << 30)
    assert run is not None
    left[queues[0].layer.digest, 11] = None
    queues[0].layer.mark_present(TABLES[0][3])
    run.put_back(left)
    del before[queues[0].layer.digest, 3]
    assert list(left.items()) == [*before.items(), ((queues[0].layer.digest, 11), None)]
    queues[0].withdrawn = True
    left.clear()
    run.put_back(left)
    assert {digest for digest, _ in left} == {queues[1].layer.digest}
    assert [queue for queue, _ in run.wanted_shares()] == [queues[1]]
    queues[1].withdrawn = True
    assert not run.wanted_shares()


def test_a_pack_is_given_up_after_some_failures_or_one_for_good(capsys: pytest.CaptureFixture[str]) -> None:
    blob = PackBlob(ORIGIN, sha256_digest(b"pack"))
    for _ in range(TRIES):
        assert blob.usable
        blob.failed(Unavailable("busy"))
    assert not blob.usable
    blob.failed(Unavailable("busy"))
    assert capsys.readouterr().out.count("pack_ignored") == 1
    refused = PackBlob(ORIGIN, sha256_digest(b"pack"))
    refused.failed(Unauthorized("no"))
    assert not refused.usable


# In a registry.


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


def subject(registry: FakeRegistry) -> tuple[Origin, Digest]:
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}
    return Origin(host=registry.host, repository=REPOSITORY), Digest(registry.add_manifest(REPOSITORY, document))


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_pushed_and_found(client: RegistryClient, registry: FakeRegistry) -> None:
    at, manifest = subject(registry)
    assert await packs.find(client, at, manifest, DIGESTS) is None
    old, new = pack((0, 3)), pack((0, 3), (1, 0))
    await packs.push(client, at, manifest, new, once(bytes(new.size)), "2026-01-02T00:00:00Z")
    await packs.push(client, at, manifest, old, once(bytes(old.size)), "2026-01-01T00:00:00Z")
    found = await packs.find(client, at, manifest, DIGESTS)
    assert found is not None
    assert found.blob.digest == sha256_digest(bytes(new.size))
    assert found.place(DIGESTS[1], TABLES[1][0]) == Place(found.blob, TABLES[0][3].size)
    assert found.place(DIGESTS[1], TABLES[1][1]) is None


async def test_those_that_are_no_good_are_left_out_one_by_one(
    client: RegistryClient, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    at, manifest = subject(registry)
    good = pack((0, 3))
    foreign = Pack(layers=(sha256_digest(b"another"),), ranges=(Range(0, 0, 10),))
    await packs.push(client, at, manifest, good, once(bytes(good.size)), "2026-01-01T00:00:00Z")
    await packs.push(client, at, manifest, foreign, once(bytes(10)), "2026-01-02T00:00:00Z")
    await packs.push(client, at, manifest, good, once(bytes(good.size - 1)), "2026-01-03T00:00:00Z")
    manifests = await client.referrers(at, manifest, MEDIA_TYPE)
    table, data = (await client.manifest(at, manifests[0].digest)).layers
    assert (table.media_type, data.media_type) == (MEDIA_TYPE, DATA_TYPE)
    target = (await client.manifest(at, manifest)).descriptor
    await client.push_referrer(at, target, MEDIA_TYPE, [table], {"org.opencontainers.image.created": "2026-01-04"})
    garbage = await client.push_layer_bytes(at, b"[" * 5000, MEDIA_TYPE)
    await client.push_referrer(at, target, MEDIA_TYPE, [garbage, data], {})
    found = await packs.find(client, at, manifest, DIGESTS)
    assert found is not None and found.blob.digest == sha256_digest(bytes(good.size))
    told = capsys.readouterr().out
    assert told.count("pack_ignored") == 3 and "another image" in told and "names no pack" in told


async def test_a_table_that_cannot_be_had_is_no_pack(client: RegistryClient, registry: FakeRegistry) -> None:
    at, manifest = subject(registry)
    good = pack((0, 3))
    await packs.push(client, at, manifest, good, once(bytes(good.size)), "2026-01-01T00:00:00Z")
    registry.fault(Fault(path="/blobs/", status=403, times=None))
    assert await packs.find(client, at, manifest, DIGESTS) is None


def test_diff_ids_name_no_layers_of_a_pack() -> None:
    """A pack is about blobs: the same tar cut differently has other bytes."""
    places = pack((0, 3)).places()
    assert places.find(Digest(DiffID(LOWER.ref.diff_id)), TABLES[0][3]) is None
