"""Pushing through trouble: every byte arrives once, in bounded memory, and nothing is claimed that is not so."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fetcher.registry import (
    OCI_MANIFEST,
    DigestMismatch,
    Origin,
    Reference,
    RegistryClient,
    RegistryConfig,
    Rejected,
    UploadLost,
    encode_json,
    is_transient,
)
from layerformat.digest import sha256_digest
from tests.harness.fake_registry import FakeRegistry, Fault
from tests.harness.referrers import attach
from tests.unit.registry.contract import CHUNK_BYTES, DATA, pieces, push_image

DIGEST = sha256_digest(DATA)
CHUNKS = len(DATA) // CHUNK_BYTES


@pytest.mark.parametrize(
    "fault",
    [
        Fault(method="PATCH", status=500, times=2),
        Fault(method="PATCH", skip=1, accept_bytes=10_000),
        Fault(method="PATCH", accept_bytes=CHUNK_BYTES - 1),
        Fault(method="PATCH", skip=3, lose_answer=True),
        Fault(method="PATCH", lose_answer=True),
        Fault(method="PATCH", skip=2, reset=True),
        Fault(method="PUT", path="/uploads/", status=503),
        Fault(method="PUT", path="/uploads/", lose_answer=True, times=2),
        Fault(method="POST", status=502),
        Fault(method="PATCH", delay_s=3.0),
    ],
    ids=lambda fault: f"{fault.method} {fault.status or ''} skip {fault.skip} keep {fault.accept_bytes}",
)
async def test_uploads_resume(client: RegistryClient, fake: FakeRegistry, origin: Origin, fault: Fault) -> None:
    fake.fault(fault)
    assert await client.push_blob(origin, pieces(DATA)) == (DIGEST, len(DATA))
    assert fake.blobs[DIGEST] == DATA
    sent = [seen for seen in fake.seen("PATCH") if seen.status == 202]
    assert len(sent) <= CHUNKS + 1  # what had arrived was not sent again


async def test_a_forgotten_upload_is_lost(client: RegistryClient, fake: FakeRegistry, origin: Origin) -> None:
    fake.fault(Fault(method="PATCH", skip=2, reset=True))
    fake.on_request = lambda request: fake.uploads.clear() if len(fake.seen("PATCH")) == 3 else None
    with pytest.raises(UploadLost) as caught:
        await client.push_blob(origin, pieces(DATA))
    assert is_transient(caught.value)


async def test_corruption_on_the_way_is_not_stored(client: RegistryClient, fake: FakeRegistry, origin: Origin) -> None:
    def spoil(request: object) -> None:
        for held in fake.uploads.values():
            if len(held) == len(DATA):
                held[0] ^= 1

    fake.on_request = spoil
    with pytest.raises(Rejected, match="DIGEST_INVALID"):
        await client.push_blob(origin, pieces(DATA))
    assert DIGEST not in fake.blobs


async def test_a_registry_that_stores_something_else(
    client: RegistryClient, fake: FakeRegistry, origin: Origin
) -> None:
    other = {"Docker-Content-Digest": sha256_digest(b"else")}
    fake.fault(Fault(method="PUT", path="/manifests/", status=201, headers=other, times=None))
    with pytest.raises(DigestMismatch):
        await client.push_manifest(origin, "v1", b'{"layers":[]}', OCI_MANIFEST)


async def test_what_is_there_is_not_sent(client: RegistryClient, fake: FakeRegistry, origin: Origin) -> None:
    fake.add_blob("team/app", DATA)
    assert await client.push_blob_bytes(origin, DATA) == DIGEST
    assert [seen.method for seen in fake.requests] == ["HEAD"]


async def test_the_source_is_read_two_chunks_ahead_at_most(
    client: RegistryClient, fake: FakeRegistry, origin: Origin
) -> None:
    ahead: list[int] = []

    async def source() -> AsyncIterator[bytes]:
        for number in range(64):
            taken = (number + 1) * CHUNK_BYTES // 4
            ahead.append(taken - sum(len(held) for held in fake.uploads.values()))
            yield bytes([number]) * (CHUNK_BYTES // 4)

    await client.push_blob(origin, source())
    assert max(ahead) <= 2 * CHUNK_BYTES + CHUNK_BYTES // 4


async def test_a_source_that_fails_leaves_no_blob(client: RegistryClient, fake: FakeRegistry, origin: Origin) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield DATA[: 3 * CHUNK_BYTES]
        raise RuntimeError("the compressor died")

    with pytest.raises(RuntimeError, match="compressor"):
        await client.push_blob(origin, source())
    assert not fake.blobs


async def test_a_source_that_fails_while_it_is_streamed(
    config: RegistryConfig, fake: FakeRegistry, origin: Origin
) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield DATA[: 3 * CHUNK_BYTES]
        raise RuntimeError("the compressor died")

    async with RegistryClient(replace(config, unchunked_hosts=("127.0.0.*",))) as client:
        with pytest.raises(RuntimeError, match="compressor"):
            await client.push_blob(origin, source())
    assert not fake.blobs


async def test_a_source_slower_than_any_deadline(config: RegistryConfig, fake: FakeRegistry, origin: Origin) -> None:
    async def source() -> AsyncIterator[bytes]:
        for start in range(0, len(DATA), CHUNK_BYTES):
            await asyncio.sleep(0.7)  # more than between_bytes_s
            yield DATA[start : start + CHUNK_BYTES]

    async with RegistryClient(replace(config, unchunked_hosts=("127.0.0.*",))) as client:
        assert await client.push_blob(origin, source()) == (DIGEST, len(DATA))


async def test_registries_that_take_no_chunks(config: RegistryConfig, fake: FakeRegistry, origin: Origin) -> None:
    fake.chunked = False
    async with RegistryClient(replace(config, unchunked_hosts=("127.0.0.*",))) as client:
        assert await client.push_blob(origin, pieces(DATA)) == (DIGEST, len(DATA))
    assert fake.blobs[DIGEST] == DATA
    assert len(fake.seen("PATCH")) == 1


@pytest.mark.parametrize("setting", ["chunked", "max_chunk_bytes", "min_chunk_bytes"])
async def test_registries_that_refuse_our_chunks(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, setting: str
) -> None:
    setattr(fake, setting, {"chunked": False, "max_chunk_bytes": 1000, "min_chunk_bytes": 10 * CHUNK_BYTES}[setting])
    assert await client.push_blob(origin, pieces(DATA)) == (DIGEST, len(DATA))
    assert fake.blobs[DIGEST] == DATA


async def test_a_range_that_does_not_move(client: RegistryClient, fake: FakeRegistry, origin: Origin) -> None:
    fake.stale_range = True
    assert await client.push_blob(origin, pieces(DATA)) == (DIGEST, len(DATA))
    assert fake.blobs[DIGEST] == DATA


async def test_a_broken_stream_is_lost(config: RegistryConfig, fake: FakeRegistry, origin: Origin) -> None:
    fake.fault(Fault(method="PATCH", accept_bytes=100_000))
    async with RegistryClient(replace(config, unchunked_hosts=("127.0.0.*",))) as client:
        with pytest.raises(UploadLost):
            await client.push_blob(origin, pieces(DATA))


async def test_mount_refused_cancels_the_session(client: RegistryClient, fake: FakeRegistry, origin: Origin) -> None:
    digest = await client.push_blob_bytes(origin, DATA)
    fake.mounts = False
    other = Origin(host=origin.host, repository="other")
    assert await client.mount_blob(other, digest, origin) is False
    assert not fake.uploads


async def test_no_mount_between_registries(client: RegistryClient, fake: FakeRegistry, origin: Origin) -> None:
    elsewhere = Origin(host="elsewhere.example", repository="team/app")
    assert await client.mount_blob(origin, DIGEST, elsewhere) is False
    assert not fake.requests


async def test_referrers_by_pages(client: RegistryClient, fake: FakeRegistry, origin: Origin) -> None:
    await push_image(client, origin)
    subject = await client.resolve(Reference.parse(f"{origin}:v1"))
    for number in range(5):
        await attach(client, origin, subject, "a/b", b"%d" % number, {})
    fake.referrers_page = 2
    assert len(await client.referrers(origin, subject.digest)) == 5
    assert len(fake.seen("GET", "/referrers/")) == 3
    assert not [reference for _, reference in fake.manifests if reference.startswith("sha256-")]


async def test_fallback_tag_keeps_what_others_wrote(fake: FakeRegistry, client: RegistryClient, origin: Origin) -> None:
    fake.referrers_api = False
    await push_image(client, origin)
    subject = await client.resolve(Reference.parse(f"{origin}:v1"))
    row = {"mediaType": OCI_MANIFEST, "digest": DIGEST, "size": 3, "artifactType": "other/tool", "future": [1]}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [row]}
    tag = subject.digest.replace(":", "-")
    fake.add_manifest("team/app", index | {"annotations": {"kept": "yes"}}, tag)
    made = await attach(client, origin, subject, "a/b", b"x", {})
    found = await client.manifest(origin, tag)
    assert found.document["annotations"] == {"kept": "yes"}
    assert found.document["manifests"][0] == row
    assert [one.digest for one in found.manifests] == [DIGEST, made.digest]


async def test_lost_update_of_the_fallback_tag_is_repaired(
    fake: FakeRegistry, client: RegistryClient, origin: Origin
) -> None:
    fake.referrers_api = False
    await push_image(client, origin)
    subject = await client.resolve(Reference.parse(f"{origin}:v1"))
    tag = subject.digest.replace(":", "-")
    overwritten = False

    def overwrite(request: object) -> None:
        # Another writer's index replaces ours between our PUT and our check.
        nonlocal overwritten
        if not overwritten and ("team/app", tag) in fake.manifests:
            overwritten = True
            empty = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
            fake.add_manifest("team/app", empty, tag)

    fake.on_request = overwrite
    made = await attach(client, origin, subject, "a/b", b"x", {})
    assert overwritten
    assert [one.digest for one in await client.referrers(origin, subject.digest)] == [made.digest]


async def test_manifest_at_a_wrong_digest(client: RegistryClient, fake: FakeRegistry, origin: Origin) -> None:
    with pytest.raises(ValueError, match="the manifest's digest is"):
        await client.push_manifest(origin, DIGEST, encode_json({}), OCI_MANIFEST)
    assert not fake.requests
