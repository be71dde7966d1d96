"""The client's contract against the distribution project's own registry, as Debian packages it."""

from collections.abc import AsyncIterator

import pytest

from fastpull.lab.registry import Registry
from fastpull.lab.workspace import Workspace
from fetcher.registry import Origin, RegistryClient, RegistryConfig
from layerformat.digest import Digest
from tests.unit.registry.contract import CHUNK_BYTES, RegistryContract

pytestmark = pytest.mark.system


class TestDistribution(RegistryContract):
    storage = False

    @pytest.fixture
    async def host(self, workspace: Workspace) -> AsyncIterator[str]:
        with Registry(workspace, storage=self.storage) as registry:
            self.store = registry.store
            yield registry.host

    @pytest.fixture
    async def client(self) -> AsyncIterator[RegistryClient]:
        async with RegistryClient(RegistryConfig(certs_dirs=(), upload_chunk_bytes=CHUNK_BYTES)) as client:
            yield client

    async def spoil(self, origin: Origin, digest: Digest) -> None:
        name = digest.removeprefix("sha256:")
        path = self.store / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"
        data = bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)


class TestDistributionWithStorage(TestDistribution):
    """Blobs read from nginx, as the benchmarks have them."""

    storage = True
