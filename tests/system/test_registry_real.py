"""The client's contract against the distribution project's own registry, as Debian packages it."""

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fetcher.registry import Origin, RegistryClient, RegistryConfig
from layerformat.digest import Digest
from tests.unit.registry.contract import CHUNK_BYTES, RegistryContract

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed"),
]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write_config(root: Path, port: int) -> Path:
    # JSON is YAML.
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(root / "store")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    path = root / "config.yml"
    path.write_text(json.dumps(config))
    return path


@asynccontextmanager
async def _running(root: Path) -> AsyncIterator[str]:
    port = _free_port()
    with (root / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "docker-registry", "serve", str(_write_config(root, port)), stdout=log, stderr=log
        )
    try:
        await _until_listening(port)
        yield f"127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _until_listening(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            await writer.wait_closed()
            return


class TestDistribution(RegistryContract):
    @pytest.fixture
    async def host(self, tmp_path: Path) -> AsyncIterator[str]:
        self.root = tmp_path
        async with _running(tmp_path) as host:
            yield host

    @pytest.fixture
    async def client(self) -> AsyncIterator[RegistryClient]:
        async with RegistryClient(RegistryConfig(certs_dirs=(), upload_chunk_bytes=CHUNK_BYTES)) as client:
            yield client

    async def spoil(self, origin: Origin, digest: Digest) -> None:
        name = digest.removeprefix("sha256:")
        path = self.root / "store/docker/registry/v2/blobs/sha256" / name[:2] / name / "data"
        data = bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)
