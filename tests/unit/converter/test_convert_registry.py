"""Conversions between repositories: what goes over the wire, and what a registry's misbehaviour leads to."""

import asyncio
import json
import os
import re
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from converter.convert import convert_image
from converter.errors import (
    AuthError,
    ConvertError,
    DestinationUnavailable,
    MalformedInput,
    SourceNotFound,
    SourceUnavailable,
)
from converter.options import ConvertOptions, ConvertResult
from fetcher.registry import Credentials, RegistryClient, RegistryConfig, RetryPolicy, Timeouts
from tests.harness.fake_registry import FakeAuth, FakeRegistry
from tests.harness.fake_server import Fault
from tests.unit.converter.archives import member, python_tar
from tests.unit.converter.layouts import Json, Layout

CONFIG = RegistryConfig(
    certs_dirs=(),
    upload_chunk_bytes=256 << 10,
    timeouts=Timeouts(connect_s=2.0, first_byte_s=2.0, between_bytes_s=1.0),
    retry=RetryPolicy(attempts=3, base_s=0.01, cap_s=0.05, deadline_s=10.0),
)
BIG = python_tar([(member("big"), os.urandom(3_000_000))])
SMALL = python_tar([(member("small"), b"small" * 1000)])


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as served:
        yield served


def serve(registry: FakeRegistry, layout: Layout, root: Json, repository: str = "src") -> str:
    """Put an image into the registry; its name."""
    for data in layout.blobs.values():
        is_manifest = data[:1] == b"{" and ("layers" in (document := json.loads(data)) or "manifests" in document)
        registry.add_manifest(repository, data) if is_manifest else registry.add_blob(repository, data)
    registry.add_manifest(repository, layout.blobs[root["digest"]], "t")
    return f"{registry.host}/{repository}:t"


async def convert(source: str, destination: str, config: RegistryConfig = CONFIG, **options: Any) -> ConvertResult:
    async with RegistryClient(config) as client:
        return await convert_image(source, destination, ConvertOptions(**options), client=client)


def image(registry: FakeRegistry, tars: list[bytes], repository: str = "src") -> str:
    layout = Layout()
    return serve(registry, layout, layout.image(tars), repository)


def writes(registry: FakeRegistry) -> list[str]:
    return [f"{seen.method} {seen.path}" for seen in registry.requests if seen.method not in ("GET", "HEAD")]


async def test_a_second_run_costs_only_manifests(registry: FakeRegistry) -> None:
    source = image(registry, [BIG, SMALL])
    destination = f"{registry.host}/dst:new"
    first = await convert(source, destination)
    assert ("dst", "new") in registry.manifests
    registry.requests.clear()
    again = await convert(source, destination)
    assert (again.digest, again.changed) == (first.digest, False)
    assert writes(registry) == []
    reads = [seen.path for seen in registry.requests]
    assert len([path for path in reads if "/blobs/" in path]) == 1, "the source's config, and nothing else"
    assert len(reads) == 3
    assert registry.bytes_sent() < 20_000


async def test_blobs_are_streamed_in_one_pass(registry: FakeRegistry) -> None:
    source = image(registry, [BIG])
    result = await convert(source, f"{registry.host}/dst:t")
    layer = result.images[0].layers[0]
    reads = [seen for seen in registry.seen("GET", f"/blobs/{layer.source}")]
    assert [seen.sent_bytes for seen in reads] == [layer.source_size]
    assert registry.blobs[layer.digest]
    assert not registry.uploads


async def test_a_converted_image_is_mounted_from_the_other_repository(registry: FakeRegistry) -> None:
    first = await convert(image(registry, [BIG, SMALL]), f"{registry.host}/one:t")
    registry.requests.clear()
    second = await convert(f"{registry.host}/one:t", f"{registry.host}/two:t")
    assert second.digest == first.digest
    assert [layer.action for layer in second.images[0].layers] == ["mounted"] * 2
    assert registry.bytes_sent() < 50_000
    registry.mounts = False
    third = await convert(f"{registry.host}/one:t", f"{registry.host}/three:t")
    assert [layer.action for layer in third.images[0].layers] == ["copied"] * 2


async def test_only_what_is_new_is_converted(registry: FakeRegistry) -> None:
    await convert(image(registry, [BIG, SMALL]), f"{registry.host}/dst:t")
    registry.requests.clear()
    newer = python_tar([(member("newer"), b"n" * 9000)])
    result = await convert(image(registry, [BIG, newer]), f"{registry.host}/dst:t")
    assert [layer.action for layer in result.images[0].layers] == ["reused", "converted"]
    assert registry.bytes_sent(result.images[0].layers[0].source) == 0


async def test_other_platforms_of_an_index_are_mounted(registry: FakeRegistry) -> None:
    layout = Layout()
    amd = layout.image([SMALL])
    arm = layout.image([BIG], architecture="arm64")
    note = layout.attestation(amd)
    source = serve(registry, layout, layout.index([amd, arm, note]))
    from fetcher.registry import Platform

    result = await convert(source, f"{registry.host}/dst:t", platforms=(Platform.parse("linux/amd64"),))
    _, body = registry.manifests["dst", "t"]
    assert json.loads(body)["manifests"][1:] == [arm, note]
    assert ("dst", arm["digest"]) in registry.manifests
    assert registry.bytes_sent("/blobs/") < 20_000 + len(SMALL)
    registry.requests.clear()
    again = await convert(source, f"{registry.host}/dst:t", platforms=(Platform.parse("linux/amd64"),))
    assert (again.digest, writes(registry)) == (result.digest, [])


async def test_with_tokens(registry: FakeRegistry) -> None:
    source = image(registry, [SMALL])
    registry.auth = FakeAuth(users={"me": "secret"})
    with pytest.raises(AuthError) as refused:
        await convert(source, f"{registry.host}/dst:t")
    assert refused.value.exit_code == 4
    known = RegistryConfig(
        certs_dirs=(), retry=CONFIG.retry, credentials={registry.host: Credentials(username="me", password="secret")}
    )
    await convert(source, f"{registry.host}/dst:t", known)
    assert ("dst", "t") in registry.manifests


async def fails(registry: FakeRegistry, source: str, error: type[ConvertError]) -> None:
    """Converting fails so, and publishes nothing."""
    with pytest.raises(error) as caught:
        await convert(source, f"{registry.host}/dst:t")
    assert caught.value.hint
    assert not [key for key in registry.manifests if key[0] == "dst"]
    assert not re.search("Bearer|Basic|state=", str(caught.value))


async def test_what_is_not_there(registry: FakeRegistry) -> None:
    await fails(registry, f"{registry.host}/nothing:t", SourceNotFound)


async def test_a_connection_that_breaks_is_resumed(registry: FakeRegistry) -> None:
    source = image(registry, [BIG])
    registry.fault(Fault(path="/blobs/", skip=1, truncate_at=1_000_000))
    result = await convert(source, f"{registry.host}/dst:t")
    assert len(registry.seen("GET", f"/blobs/{result.images[0].layers[0].source}")) == 2


async def test_bytes_that_are_not_the_blobs(registry: FakeRegistry) -> None:
    source = image(registry, [BIG])
    registry.fault(Fault(path="/blobs/", skip=1, corrupt_at=1_000_000, times=None))
    await fails(registry, source, MalformedInput)


async def test_a_source_that_stops_answering(registry: FakeRegistry) -> None:
    source = image(registry, [BIG])
    registry.fault(Fault(path="/src/blobs/", skip=1, status=503, times=None))
    await fails(registry, source, SourceUnavailable)


async def test_a_destination_that_stops_answering(registry: FakeRegistry) -> None:
    source = image(registry, [BIG])
    registry.fault(Fault(method="PATCH", skip=1, status=503, times=None))
    await fails(registry, source, DestinationUnavailable)


async def test_a_manifest_that_is_refused(registry: FakeRegistry) -> None:
    source = image(registry, [SMALL])
    registry.fault(Fault(method="PUT", path="/manifests/", status=403, times=None))
    await fails(registry, source, AuthError)


async def test_an_upload_that_the_registry_forgot_is_made_again(registry: FakeRegistry) -> None:
    source = image(registry, [BIG])

    async def forget() -> None:
        while not any(len(held) for held in registry.uploads.values()):
            await asyncio.sleep(0.001)
        registry.uploads.clear()

    async with asyncio.TaskGroup() as group:
        group.create_task(forget())
        done = group.create_task(convert(source, f"{registry.host}/dst:t"))
    assert done.result().images[0].layers[0].action == "converted"
    assert ("dst", "t") in registry.manifests


@pytest.mark.parametrize("where", ["/src/blobs/", "/dst/blobs/uploads/"], ids=["reading", "writing"])
async def test_cancelling_leaves_nothing_behind(registry: FakeRegistry, where: str) -> None:
    source = image(registry, [SMALL, BIG, BIG[:-10240] + bytes(20480)])
    registry.fault(Fault(method="", path=where, skip=2, times=None, delay_s=30.0, piece_delay_s=30.0))
    for method in ("GET", "PATCH", "POST", "PUT"):
        registry.fault(Fault(method=method, path=where, skip=1, times=None, delay_s=30.0))
    before = set(threading.enumerate())
    task = asyncio.ensure_future(convert(source, f"{registry.host}/dst:t"))
    await asyncio.sleep(0.4)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert not [key for key in registry.manifests if key[0] == "dst"]
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not [name for name in left if name.startswith(("compress", "layer"))]
