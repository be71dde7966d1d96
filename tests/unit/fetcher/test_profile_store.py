"""Profiles in files, and beside their images in registries."""

import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fetcher.profiles import referrers
from fetcher.profiles.document import MAX_BYTES
from fetcher.profiles.profile import MEDIA_TYPE, Read
from fetcher.profiles.store import ProfileStore, load_sound
from fetcher.registry import OCI_MANIFEST, NotFound, Origin, RegistryClient, encode_json
from layerformat.digest import Digest, sha256_digest
from tests.harness.fake_registry import FakeRegistry
from tests.harness.fake_server import Fault
from tests.unit.fetcher.test_profile import LAYERS, WHEN, diff_id, profile

MANIFEST = sha256_digest(b"an image")
REPOSITORY = "team/app"
ONE = profile(Read(0, 0, 4096), Read(1, 8192, 100))


def test_kept_replaced_and_removed(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path / "profiles")
    assert store.load(MANIFEST) is None
    assert store.manifests() == []
    store.save(MANIFEST, ONE)
    (tmp_path / "profiles" / ".new-left").write_text("by a crash")
    other = profile(Read(2, 0, 1))
    store.save(MANIFEST, other)
    assert store.load(MANIFEST) == other
    assert store.manifests() == [MANIFEST]
    assert os.listdir(tmp_path / "profiles") == [f"{MANIFEST.removeprefix('sha256:')}.json"]
    assert store.remove(MANIFEST)
    assert not store.remove(MANIFEST)


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ProfileStore(tmp_path)
    store.save(MANIFEST, ONE)

    def full(_fd: int) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match="no space"):
        store.save(MANIFEST, profile(Read(2, 0, 1)))
    assert store.load(MANIFEST) == ONE
    assert len(os.listdir(tmp_path)) == 1


def test_a_damaged_file_is_told_and_harmless(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path)
    path = tmp_path / f"{MANIFEST.removeprefix('sha256:')}.json"
    path.write_bytes(b"{" + b" " * MAX_BYTES * 2)
    assert load_sound(store, MANIFEST) == (None, f"is larger than {MAX_BYTES} bytes")
    path.unlink()
    path.mkdir()
    found, problem = load_sound(store, MANIFEST)
    assert found is None
    assert problem


def test_the_oldest_files_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fetcher.profiles.store.MAX_FILES", 3)
    store = ProfileStore(tmp_path)
    manifests = [sha256_digest(str(number).encode()) for number in range(5)]
    for age, manifest in enumerate(manifests):
        store.save(manifest, ONE)
        path = tmp_path / f"{manifest.removeprefix('sha256:')}.json"
        os.utime(path, (1000 + age, 1000 + age))
    assert set(store.manifests()) == set(manifests[2:])


# Registries


@pytest.fixture(params=[True, False], ids=["api", "fallback tag"])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry(referrers_api=request.param) as served:
        yield served


def origin(registry: FakeRegistry) -> Origin:
    return Origin(host=registry.host, repository=REPOSITORY)


def image(registry: FakeRegistry) -> Digest:
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}
    return Digest(registry.add_manifest(REPOSITORY, document, "tag"))


async def test_pushed_pulled_and_removed(client: RegistryClient, registry: FakeRegistry) -> None:
    at, manifest = origin(registry), image(registry)
    assert await referrers.pull(client, at, manifest, LAYERS) is None
    await referrers.push(client, at, manifest, ONE)
    await referrers.push(client, at, manifest, ONE)  # the same bytes are the same referrer
    assert await referrers.pull(client, at, manifest, LAYERS) == ONE
    assert (await client.manifest(at, "tag")).descriptor.digest == manifest
    assert await referrers.remove(client, at, manifest) == 1
    assert await referrers.pull(client, at, manifest, LAYERS) is None


async def test_what_several_nodes_pushed_is_merged(client: RegistryClient, registry: FakeRegistry) -> None:
    at, manifest = origin(registry), image(registry)
    for number in range(3):
        later = profile(Read(0, number * 8192, 100))
        later = type(later)(
            layers=later.layers, reads=later.reads, recorded_at=WHEN + timedelta(days=number), duration_ms=1
        )
        await referrers.push(client, at, manifest, later)
    merged = await referrers.pull(client, at, manifest, LAYERS)
    assert merged is not None
    assert merged.recordings == 3
    assert {read.offset for read in merged.reads} == {0, 8192, 16384}
    newest = (await referrers.listed(client, at, manifest))[0]
    assert newest.annotations[referrers.CREATED].startswith("2026-03-03")


def attach(registry: FakeRegistry, manifest: Digest, body: bytes, **changes: Any) -> None:
    """A referrer made by somebody else."""
    blob = registry.add_blob(REPOSITORY, body)
    layer = {"mediaType": MEDIA_TYPE, "digest": blob, "size": len(body)} | changes
    referrer = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": MEDIA_TYPE,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": blob, "size": len(body)},
        "layers": [layer],
        "subject": {"mediaType": OCI_MANIFEST, "digest": manifest, "size": 1},
    }
    registry.add_manifest(REPOSITORY, encode_json(referrer))


async def test_bad_ones_are_left_out_one_by_one(client: RegistryClient, capsys: pytest.CaptureFixture[str]) -> None:
    async with FakeRegistry() as registry:
        at, manifest = origin(registry), image(registry)
        foreign = profile(Read(0, 0, 1), layers=(diff_id(99),))
        attach(registry, manifest, b"{}")
        attach(registry, manifest, b"[" * 5000)
        attach(registry, manifest, b"huge", size=MAX_BYTES + 1)
        attach(registry, manifest, b"a picture", mediaType="image/png")
        await referrers.push(client, at, manifest, foreign)
        await referrers.push(client, at, manifest, ONE)
        assert await referrers.pull(client, at, manifest, LAYERS) == ONE
        told = capsys.readouterr().out
        assert told.count("profile_ignored") == 5
        assert "another image" in told


async def test_a_body_larger_than_it_says_is_not_read_to_its_end(client: RegistryClient) -> None:
    async with FakeRegistry() as registry:
        at, manifest = origin(registry), image(registry)
        attach(registry, manifest, b" " * (MAX_BYTES * 4), size=100)
        assert await referrers.pull(client, at, manifest, LAYERS) is None
        assert registry.bytes_sent("/blobs/") < MAX_BYTES * 4


async def test_an_image_that_is_not_there(client: RegistryClient, registry: FakeRegistry) -> None:
    with pytest.raises(NotFound):
        await referrers.push(client, origin(registry), MANIFEST, ONE)


async def test_a_blob_with_wrong_bytes_is_ignored(client: RegistryClient, registry: FakeRegistry) -> None:
    at, manifest = origin(registry), image(registry)
    await referrers.push(client, at, manifest, ONE)
    registry.fault(Fault(path="/blobs/", corrupt_at=10, times=None))
    assert await referrers.pull(client, at, manifest, LAYERS) is None


def test_digests_do_not_become_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="digest"):
        ProfileStore(tmp_path).load(Digest("sha256:../../etc/passwd"))
