"""Fixtures: a fake registry, and clients for it that do not wait long."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fetcher.registry import Origin, RegistryClient, RegistryConfig, RetryPolicy, Timeouts
from tests.harness.fake_registry import FakeRegistry
from tests.unit.registry.contract import CHUNK_BYTES

CONFIG = RegistryConfig(
    certs_dirs=(),
    upload_chunk_bytes=CHUNK_BYTES,
    read_buffer_bytes=64 << 10,
    timeouts=Timeouts(connect_s=2.0, first_byte_s=2.0, between_bytes_s=0.5, finish_s=2.0),
    retry=RetryPolicy(attempts=4, base_s=0.01, cap_s=0.05, deadline_s=10.0),
)


@pytest.fixture
async def fake() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def config() -> RegistryConfig:
    return CONFIG


@pytest.fixture
async def client(config: RegistryConfig) -> AsyncIterator[RegistryClient]:
    async with RegistryClient(config) as client:
        yield client
    leftovers = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in leftovers if "fetcher/registry" in repr(task.get_coro())]


@pytest.fixture
def host(fake: FakeRegistry) -> str:
    return fake.host


@pytest.fixture
def origin(host: str) -> Origin:
    return Origin(host=host, repository="team/app")


def once(config: RegistryConfig) -> RegistryConfig:
    """Without retries."""
    return replace(config, retry=replace(config.retry, attempts=1))
