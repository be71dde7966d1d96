"""Reading through trouble: what is retried, what is noticed, where secrets go, and what a read costs."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from fetcher.registry import (
    DigestMismatch,
    NotFound,
    Origin,
    ProtocolViolation,
    RateLimited,
    Reference,
    RegistryClient,
    RegistryConfig,
    RegistryError,
    ShortBody,
    Unavailable,
    is_transient,
)
from layerformat.digest import Digest, parse_digest
from tests.harness.fake_registry import FakeAuth, FakeRegistry, Fault
from tests.unit.registry.conftest import once
from tests.unit.registry.contract import DATA, collect


@pytest.fixture
def digest(fake: FakeRegistry) -> Digest:
    return parse_digest(fake.add_blob("team/app", DATA))


async def read(client: RegistryClient, origin: Origin, digest: Digest, offset: int, length: int) -> bytes:
    async with client.read_blob(origin, digest, offset=offset, length=length) as chunks:
        return await collect(chunks)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(path="/blobs/", status=500, times=3),
        Fault(path="/blobs/", status=503, headers={"Retry-After": "0"}, times=2),
        Fault(path="/blobs/", reset=True, times=2),
        Fault(path="/blobs/", delay_s=3.0),
        Fault(path="/blobs/", status=408),
    ],
    ids=["500", "503", "reset", "no first byte", "408"],
)
async def test_trouble_before_the_body_is_retried_unseen(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest, fault: Fault
) -> None:
    times = fault.times or 0
    fake.fault(fault)
    assert await read(client, origin, digest, 1000, 5000) == DATA[1000:6000]
    assert len(fake.seen("GET", "/blobs/")) >= times + 1 - (fault.delay_s > 0)


async def test_retry_after_is_honoured(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    fake.fault(Fault(path="/blobs/", status=429, headers={"Retry-After": "1"}))
    start = time.monotonic()
    await read(client, origin, digest, 0, 10)
    assert 1.0 <= time.monotonic() - start < 2.0


async def test_rate_limit_that_lasts_is_reported(
    config: RegistryConfig, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    fake.fault(Fault(path="/blobs/", status=429, headers={"Retry-After": "7"}, times=None))
    async with RegistryClient(once(config)) as client:
        with pytest.raises(RateLimited) as caught:
            await read(client, origin, digest, 0, 10)
    assert caught.value.retry_after_s == 7
    assert is_transient(caught.value)


async def test_not_found_is_not_retried(client: RegistryClient, fake: FakeRegistry, origin: Origin) -> None:
    with pytest.raises(NotFound):
        await client.manifest(origin, "absent")
    assert len(fake.requests) == 1


async def test_nobody_listens(config: RegistryConfig, digest: Digest, fake: FakeRegistry) -> None:
    async with RegistryClient(config) as client:
        with pytest.raises(Unavailable, match=r"cannot connect to 127\.0\.0\.1:9"):
            await read(client, Origin(host="127.0.0.1:9", repository="a"), digest, 0, 1)


async def test_the_deadline_is_over_all_retries(
    config: RegistryConfig, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    fake.fault(Fault(path="/blobs/", delay_s=30, times=None))
    hasty = replace(config, retry=replace(config.retry, deadline_s=0.4, attempts=100))
    async with RegistryClient(hasty) as client:
        start = time.monotonic()
        with pytest.raises(Unavailable, match="no success within"):
            await read(client, origin, digest, 0, 1)
        assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("given", [0, 1, 70_000])
async def test_short_body_is_a_transient_error(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest, given: int
) -> None:
    fake.fault(Fault(path="/blobs/", truncate_at=given))
    got = bytearray()
    with pytest.raises(Unavailable) as caught:
        async with client.read_blob(origin, digest, offset=5, length=100_000) as chunks:
            async for chunk in chunks:
                got += chunk
    assert is_transient(caught.value)
    assert DATA[5:].startswith(got)
    assert len(got) <= given


async def test_a_body_that_stalls_ends(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    fake.fault(Fault(path="/blobs/", piece_bytes=1000, piece_delay_s=3.0))
    start = time.monotonic()
    with pytest.raises(Unavailable, match="timed out"):
        await read(client, origin, digest, 0, 100_000)
    assert time.monotonic() - start < 2


async def test_a_slow_body_that_goes_on_is_read(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    fake.fault(Fault(path="/blobs/", piece_bytes=2000, piece_delay_s=0.1))
    assert await read(client, origin, digest, 0, 12_000) == DATA[:12_000]


async def test_whole_blobs_resume_where_they_broke(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    fake.fault(Fault(path="/blobs/", truncate_at=100_000, times=2))
    assert await collect(client.pull_blob(origin, digest)) == DATA
    ranges = [seen.range for seen in fake.seen("GET", "/blobs/")]
    assert ranges[0] is None
    assert len(ranges) == 3
    assert all(one and one.endswith("-") for one in ranges[1:])


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_a_whole_blob_is_right_or_an_error(config: RegistryConfig, seed: int) -> None:
    dice = random.Random(seed)
    troubles: list[dict[str, Any]] = [
        {"status": 500},
        {"status": 403},
        {"status": 404},
        {"status": 200, "body": b"<html>login</html>"},
        {"status": 206, "body": b"x"},
        {"reset": True},
        {"truncate_at": dice.randrange(len(DATA))},
        {"corrupt_at": dice.randrange(len(DATA))},
        {"ignore_range": True},
        {"shift_range": 1},
    ]
    async with FakeRegistry(redirect=bool(seed % 2)) as registry, RegistryClient(config) as client:
        digest = parse_digest(registry.add_blob("a", DATA))
        for server in (registry, registry.storage):
            for _ in range(4):
                server.fault(Fault(path=digest.partition(":")[2], skip=dice.randrange(3), **dice.choice(troubles)))
        for _ in range(4):
            try:
                got = await collect(client.pull_blob(Origin(host=registry.host, repository="a"), digest))
            except RegistryError:
                continue
            assert got == DATA


async def test_corrupt_bytes_never_pass_a_whole_blob(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    fake.fault(Fault(path="/blobs/", corrupt_at=12345))
    with pytest.raises(DigestMismatch, match=digest):
        await collect(client.pull_blob(origin, digest))


async def test_corrupt_manifest_is_fetched_again(client: RegistryClient, fake: FakeRegistry, origin: Origin) -> None:
    pinned = fake.add_manifest("team/app", {"schemaVersion": 2, "layers": []})
    fake.fault(Fault(path="/manifests/", corrupt_at=3))
    manifest = await client.manifest(origin, pinned)
    assert manifest.descriptor.digest == pinned
    assert len(fake.requests) == 2


async def test_200_in_place_of_206_near_the_start(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    fake.fault(Fault(path="/blobs/", ignore_range=True, times=None))
    assert await read(client, origin, digest, 100_000, 50_000) == DATA[100_000:150_000]


async def test_200_in_place_of_206_far_from_the_start(
    client: RegistryClient, fake: FakeRegistry, origin: Origin
) -> None:
    large = parse_digest(fake.add_blob("team/app", bytes(3 << 20)))
    fake.fault(Fault(path="/blobs/", ignore_range=True, times=None))
    with pytest.raises(ProtocolViolation, match="ignores Range"):
        await read(client, origin, large, 2 << 20, 1000)
    assert len(fake.requests) == 1


async def test_another_range_than_asked(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    fake.fault(Fault(path="/blobs/", shift_range=1))
    with pytest.raises(ProtocolViolation, match=r"bytes 11-20 for 10-19"):
        await read(client, origin, digest, 10, 10)


async def test_range_beyond_the_end(client: RegistryClient, origin: Origin, digest: Digest) -> None:
    with pytest.raises(ProtocolViolation):
        await read(client, origin, digest, len(DATA) - 10, 20)


async def test_connections_are_used_again(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    ports = set()
    fake.on_request = lambda request: ports.add(request.get_extra_info("peername")[1])
    for number in range(10):
        await read(client, origin, digest, number, 1000)
    assert len(ports) == 1


async def test_cancelled_reads_leave_the_client_usable(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    fake.fault(Fault(path="/blobs/", piece_bytes=1000, piece_delay_s=0.05, times=20))
    reads = [asyncio.ensure_future(read(client, origin, digest, 0, 100_000)) for _ in range(20)]
    await asyncio.sleep(0.2)
    for one in reads:
        one.cancel()
    outcome = await asyncio.gather(*reads, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in outcome)
    fake.faults.clear()
    assert await read(client, origin, digest, 0, 100_000) == DATA[:100_000]


# Redirects


@pytest.fixture
async def redirecting() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry(redirect=True, auth=FakeAuth(anonymous_pull=True)) as registry:
        yield registry


async def test_authorization_stays_with_the_registry(client: RegistryClient, redirecting: FakeRegistry) -> None:
    digest = parse_digest(redirecting.add_blob("team/app", DATA))
    origin = Origin(host=redirecting.host, repository="team/app")
    assert await read(client, origin, digest, 10, 20) == DATA[10:30]
    assert any("Authorization" in seen.headers for seen in redirecting.seen("GET", "/blobs/"))
    (stored,) = redirecting.storage.requests
    assert "Authorization" not in stored.headers
    assert stored.range == "bytes=10-29"


async def test_the_target_is_asked_directly_next_time(client: RegistryClient, redirecting: FakeRegistry) -> None:
    digest = parse_digest(redirecting.add_blob("team/app", DATA))
    origin = Origin(host=redirecting.host, repository="team/app")
    for number in range(5):
        await read(client, origin, digest, number, 20)
    assert len([seen for seen in redirecting.seen("GET", "/blobs/") if seen.status == 307]) == 1
    assert len(redirecting.storage.requests) == 5


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
async def test_a_target_that_died_is_replaced(client: RegistryClient, redirecting: FakeRegistry, status: int) -> None:
    digest = parse_digest(redirecting.add_blob("team/app", DATA))
    origin = Origin(host=redirecting.host, repository="team/app")
    await read(client, origin, digest, 0, 20)
    redirecting.storage.fault(Fault(status=status))
    assert await read(client, origin, digest, 7, 20) == DATA[7:27]


async def test_expired_signatures_are_renewed_and_never_shown(
    client: RegistryClient, redirecting: FakeRegistry
) -> None:
    digest = parse_digest(redirecting.add_blob("team/app", DATA))
    origin = Origin(host=redirecting.host, repository="team/app")
    await read(client, origin, digest, 0, 20)
    redirecting.storage.revoke()
    with structlog.testing.capture_logs() as logs:
        assert await read(client, origin, digest, 1, 20) == DATA[1:21]
        redirecting.storage.fault(Fault(status=403, body=b"https://x/?X-Signature=leak", times=None))
        with pytest.raises(Unavailable) as caught:
            await read(client, origin, digest, 2, 20)
    assert "Signature" not in f"{logs}{caught.value}{caught.value.__context__}"


async def test_redirect_loops_end(client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest) -> None:
    fake.fault(Fault(path="/blobs/", status=302, headers={"Location": f"/v2/team/app/blobs/{digest}"}, times=None))
    with pytest.raises(ProtocolViolation, match="redirects"):
        await read(client, origin, digest, 0, 1)


@pytest.mark.parametrize("location", ["", "ftp://127.0.0.1/x", "http://user:pw@127.0.0.1/x", "file:///etc/passwd"])
async def test_redirects_to_nowhere(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest, location: str
) -> None:
    fake.fault(Fault(path="/blobs/", status=307, headers={"Location": location} if location else {}))
    with pytest.raises(ProtocolViolation, match="redirected"):
        await read(client, origin, digest, 0, 1)


# Mirrors


def mirrored(config: RegistryConfig, root: Path, upstream: FakeRegistry, *mirrors: str) -> RegistryConfig:
    """hosts.toml for a registry of the name ``registry.test``."""
    directory = root / "registry.test"
    directory.mkdir()
    tables = "".join(f'[host."{url}"]\ncapabilities = ["pull", "resolve"]\n' for url in mirrors)
    (directory / "hosts.toml").write_text(f'server = "{upstream.url}"\n{tables}')
    return replace(config, certs_dirs=(root,))


@pytest.fixture
async def mirror() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


UPSTREAM = Origin(host="registry.test", repository="team/app")


async def test_the_mirror_is_asked_first_and_told_for_whom(
    config: RegistryConfig, tmp_path: Path, fake: FakeRegistry, mirror: FakeRegistry, digest: Digest
) -> None:
    mirror.add_blob("team/app", DATA)
    async with RegistryClient(mirrored(config, tmp_path, fake, mirror.url)) as client:
        assert await read(client, UPSTREAM, digest, 5, 5) == DATA[5:10]
    assert not fake.requests
    assert [seen.query for seen in mirror.requests] == [{"ns": "registry.test"}]


@pytest.mark.parametrize("fault", [None, Fault(path="/blobs/", status=500), Fault(path="/blobs/", reset=True, times=2)])
async def test_what_the_mirror_cannot_give_comes_from_upstream(
    config: RegistryConfig,
    tmp_path: Path,
    fake: FakeRegistry,
    mirror: FakeRegistry,
    digest: Digest,
    fault: Fault | None,
) -> None:
    if fault:
        mirror.add_blob("team/app", DATA)
        mirror.fault(fault)
    async with RegistryClient(mirrored(config, tmp_path, fake, mirror.url)) as client:
        assert await read(client, UPSTREAM, digest, 5, 5) == DATA[5:10]
    assert len(fake.requests) == 1
    assert 1 <= len(mirror.requests) <= 2  # aiohttp itself repeats a GET whose connection was reset


async def test_a_dead_mirror_is_not_asked_every_time(
    config: RegistryConfig, tmp_path: Path, fake: FakeRegistry, mirror: FakeRegistry, digest: Digest
) -> None:
    mirror.fault(Fault(path="/blobs/", status=502, times=None))
    async with RegistryClient(mirrored(config, tmp_path, fake, mirror.url)) as client:
        for number in range(5):
            await read(client, UPSTREAM, digest, number, 5)
    assert (len(mirror.requests), len(fake.requests)) == (1, 5)


async def test_upstream_has_the_last_word(
    config: RegistryConfig, tmp_path: Path, fake: FakeRegistry, mirror: FakeRegistry
) -> None:
    mirror.fault(Fault(path="/manifests/", status=500, times=None))
    async with RegistryClient(mirrored(config, tmp_path, fake, mirror.url)) as client:
        with pytest.raises(NotFound):
            await client.manifest(UPSTREAM, "absent")
    assert len(mirror.requests) == 1


async def test_a_caller_may_choose_the_endpoint(
    config: RegistryConfig, tmp_path: Path, fake: FakeRegistry, mirror: FakeRegistry, digest: Digest
) -> None:
    mirror.add_blob("team/app", DATA)
    async with RegistryClient(mirrored(config, tmp_path, fake, mirror.url)) as client:
        first, second = await client.endpoints(UPSTREAM)
        for endpoint in (second, first, second):
            async with client.read_blob(UPSTREAM, digest, offset=1, length=9, via=endpoint) as chunks:
                assert await collect(chunks) == DATA[1:10]
    assert (len(mirror.requests), len(fake.requests)) == (1, 2)


async def test_pushes_go_past_mirrors(
    config: RegistryConfig, tmp_path: Path, fake: FakeRegistry, mirror: FakeRegistry
) -> None:
    async with RegistryClient(mirrored(config, tmp_path, fake, mirror.url)) as client:
        await client.push_blob_bytes(UPSTREAM, b"new")
    assert not [seen for seen in mirror.requests if seen.method in ("POST", "PUT", "PATCH")]
    assert fake.seen("PUT")


async def test_resolve_without_head(client: RegistryClient, fake: FakeRegistry, origin: Origin) -> None:
    pinned = fake.add_manifest("team/app", {"schemaVersion": 2, "layers": []}, "v1")
    fake.fault(Fault(method="HEAD", path="/manifests/", status=405))
    assert (await client.resolve(Reference.parse(f"{origin}:v1"))).digest == pinned


async def test_short_body_tells_what_came(
    client: RegistryClient, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    fake.fault(Fault(path="/blobs/", truncate_at=70_000))
    with pytest.raises(ShortBody) as caught:
        await read(client, origin, digest, 0, 100_000)
    assert 0 < caught.value.received_bytes <= 70_000
