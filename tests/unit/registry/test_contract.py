"""The contract, against the fake: a current registry, one without referrers API, behind redirects, behind tokens."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fetcher.registry import Credentials, Origin, RegistryClient, RegistryConfig
from layerformat.digest import Digest
from tests.harness.fake_registry import FakeAuth, FakeRegistry
from tests.unit.registry.contract import RegistryContract


class _OnTheFake(RegistryContract):
    @pytest.fixture(autouse=True)
    def _remember(self, fake: FakeRegistry) -> None:
        self.server = fake

    async def spoil(self, origin: Origin, digest: Digest) -> None:
        data = bytearray(self.server.blobs[digest])
        data[1000] ^= 1
        self.server.blobs[digest] = bytes(data)


class TestCurrentRegistry(_OnTheFake):
    pass


class TestWithoutReferrersApi(_OnTheFake):
    @pytest.fixture
    async def fake(self) -> AsyncIterator[FakeRegistry]:
        async with FakeRegistry(referrers_api=False) as registry:
            yield registry


class TestRedirecting(_OnTheFake):
    @pytest.fixture
    async def fake(self) -> AsyncIterator[FakeRegistry]:
        async with FakeRegistry(redirect=True) as registry:
            yield registry


class TestBehindTokens(_OnTheFake):
    @pytest.fixture
    async def fake(self) -> AsyncIterator[FakeRegistry]:
        async with FakeRegistry(auth=FakeAuth(users={"ann": "secret"}), redirect=True) as registry:
            yield registry

    @pytest.fixture
    async def client(self, fake: FakeRegistry, config: RegistryConfig) -> AsyncIterator[RegistryClient]:
        known = {fake.host: Credentials(username="ann", password="secret")}
        async with RegistryClient(replace(config, credentials=known)) as client:
            yield client
