"""What the client promises of any registry. Run against the fake (unit) and against a real one (system)."""

import hashlib
from collections.abc import AsyncIterator

import pytest

from fetcher.registry import (
    OCI_INDEX,
    OCI_MANIFEST,
    DigestMismatch,
    NotFound,
    Origin,
    Reference,
    RegistryClient,
    Rejected,
    encode_json,
)
from layerformat.digest import Digest, sha256_digest
from tests.harness.referrers import attach

CHUNK_BYTES = 64 << 10
DATA = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(8192))  # 256 KiB
ABSENT = sha256_digest(b"never pushed")


async def pieces(data: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def collect(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def push_image(client: RegistryClient, origin: Origin, tag: str = "v1") -> tuple[Digest, bytes]:
    """An image of one layer, pushed; its manifest's digest and body."""
    config = await client.push_blob_bytes(origin, b"{}")
    layer, size = await client.push_blob(origin, pieces(DATA))
    body = encode_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size}],
        }
    )
    return await client.push_manifest(origin, tag, body, OCI_MANIFEST), body


class RegistryContract:
    """Subclasses give the fixtures ``client`` (``upload_chunk_bytes`` = CHUNK_BYTES) and ``host``."""

    @pytest.fixture
    def origin(self, host: str) -> Origin:
        return Origin(host=host, repository="team/app")

    async def test_pushed_in_chunks_reads_back(self, client: RegistryClient, origin: Origin) -> None:
        digest, size = await client.push_blob(origin, pieces(DATA + b"tail"))
        assert (digest, size) == (sha256_digest(DATA + b"tail"), len(DATA) + 4)
        assert await client.blob_exists(origin, digest) == size
        assert await collect(client.pull_blob(origin, digest)) == DATA + b"tail"

    @pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
    async def test_push_at_the_edges_of_a_chunk(self, client: RegistryClient, origin: Origin, size: int) -> None:
        digest, pushed = await client.push_blob(origin, pieces(DATA[:size]))
        assert (digest, pushed) == (sha256_digest(DATA[:size]), size)
        assert await collect(client.pull_blob(origin, digest)) == DATA[:size]

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, 1), (0, len(DATA)), (1, len(DATA) - 1), (100_000, 50_000), (len(DATA) - 1, 1), (7, None), (0, None)],
    )
    async def test_ranges(self, client: RegistryClient, origin: Origin, offset: int, length: int | None) -> None:
        digest = await client.push_blob_bytes(origin, DATA)
        async with client.read_blob(origin, digest, offset=offset, length=length) as chunks:
            got = await collect(chunks)
        assert got == DATA[offset : None if length is None else offset + length]

    async def test_leaving_a_read_early_harms_nobody(self, client: RegistryClient, origin: Origin) -> None:
        digest = await client.push_blob_bytes(origin, DATA)
        for _ in range(5):
            async with client.read_blob(origin, digest) as chunks:
                assert DATA.startswith(await anext(chunks))
        assert await collect(client.pull_blob(origin, digest)) == DATA

    async def test_absent_blob(self, client: RegistryClient, origin: Origin) -> None:
        await client.push_blob_bytes(origin, b"so that the repository exists")
        assert await client.blob_exists(origin, ABSENT) is None
        with pytest.raises(NotFound, match=ABSENT):
            async with client.read_blob(origin, ABSENT, offset=10, length=10):
                pass

    async def test_image(self, client: RegistryClient, origin: Origin) -> None:
        digest, body = await push_image(client, origin)
        found = await client.resolve(Reference.parse(f"{origin}:v1"))
        assert (found.digest, found.media_type, found.size) == (digest, OCI_MANIFEST, len(body))
        manifest = await client.manifest(origin, digest)
        assert manifest.body == body
        assert [layer.digest for layer in manifest.layers] == [sha256_digest(DATA)]
        assert (await client.manifest(origin, "v1")).descriptor == found

    async def test_absent_manifest(self, client: RegistryClient, origin: Origin) -> None:
        await push_image(client, origin)
        for reference in ("no-such-tag", ABSENT):
            with pytest.raises(NotFound, match=reference):
                await client.manifest(origin, reference)
        with pytest.raises(NotFound):
            await client.resolve(Reference.parse(f"{origin}:no-such-tag"))

    async def test_manifest_of_an_absent_blob_is_refused(self, client: RegistryClient, origin: Origin) -> None:
        layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": ABSENT, "size": 12}
        config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": ABSENT, "size": 12}
        body = encode_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]})
        with pytest.raises((Rejected, NotFound)):
            await client.push_manifest(origin, "broken", body, OCI_MANIFEST)

    async def test_index_of_platforms(self, client: RegistryClient, origin: Origin) -> None:
        digest, body = await push_image(client, origin)
        row = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(body)}
        row["platform"] = {"os": "linux", "architecture": "arm64", "variant": "v8", "os.version": "6"}
        index = encode_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [row]})
        await client.push_manifest(origin, "multi", index, OCI_INDEX)
        manifest = await client.manifest(origin, "multi")
        assert manifest.is_index
        assert [one.to_json() for one in manifest.manifests] == [row]

    async def test_mount_from_another_repository(self, client: RegistryClient, origin: Origin, host: str) -> None:
        digest = await client.push_blob_bytes(origin, DATA)
        other = Origin(host=host, repository="other/place")
        assert await client.blob_exists(other, digest) is None
        assert await client.mount_blob(other, digest, origin) is True
        assert await client.blob_exists(other, digest) == len(DATA)
        assert await client.mount_blob(other, ABSENT, origin) is False

    async def test_referrers(self, client: RegistryClient, origin: Origin) -> None:
        await push_image(client, origin)
        subject = await client.resolve(Reference.parse(f"{origin}:v1"))
        assert await client.referrers(origin, subject.digest) == []
        made = [
            await attach(client, origin, subject, kind, kind.encode(), {"made.by": kind})
            for kind in ("application/vnd.test.a", "application/vnd.test.b")
        ]
        found = await client.referrers(origin, subject.digest)
        assert {one.digest for one in found} == {one.digest for one in made}
        only = await client.referrers(origin, subject.digest, "application/vnd.test.b")
        assert [(one.digest, dict(one.annotations)) for one in only] == [
            (made[1].digest, {"made.by": "application/vnd.test.b"})
        ]
        layer = (await client.manifest(origin, made[1].digest)).layers[0]
        assert await collect(client.pull_blob(origin, layer.digest)) == b"application/vnd.test.b"

    async def test_the_same_referrer_twice_is_one(self, client: RegistryClient, origin: Origin) -> None:
        await push_image(client, origin)
        subject = await client.resolve(Reference.parse(f"{origin}:v1"))
        for _ in range(2):
            await attach(client, origin, subject, "application/vnd.test.a", b"x", {})
        assert len(await client.referrers(origin, subject.digest)) == 1

    async def test_delete(self, client: RegistryClient, origin: Origin) -> None:
        digest, _ = await push_image(client, origin)
        await client.delete_manifest(origin, digest)
        with pytest.raises(NotFound):
            await client.manifest(origin, digest)

    async def test_whole_blob_is_verified(self, client: RegistryClient, origin: Origin) -> None:
        digest = await client.push_blob_bytes(origin, DATA)
        await self.spoil(origin, digest)
        with pytest.raises(DigestMismatch, match=digest):
            await collect(client.pull_blob(origin, digest))

    async def spoil(self, origin: Origin, digest: Digest) -> None:
        """Change a stored byte behind the registry's back."""
        raise NotImplementedError
