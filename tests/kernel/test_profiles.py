"""Profiles over a real kernel: recorded on one node, replayed on another; no start fails or waits for one."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fetcher import profile_registry
from fetcher.model import FetcherConfig, GovernorConfig, ImageHint, LayerState, ProfilesConfig
from fetcher.node import Fetcher
from fetcher.profile import MEDIA_TYPE, Profile, ProfileError, Read, encode_profile, wanted_frames
from fetcher.profile_store import ProfileStore
from fetcher.registry import OCI_MANIFEST, Origin, RegistryConfig, encode_json
from fetcher.teardown import teardown
from layerformat.digest import DiffID, Digest
from tests.harness.fake_registry import FakeRegistry
from tests.harness.fake_server import Fault
from tests.harness.layers import TestLayer, make_layer

pytestmark = pytest.mark.root

REPOSITORY = "team/app"
FRAME = 64 << 10
NAMES = ("upper:dir/17", "lower:dir/150", "upper:big", "lower:dir/3")
"""What a start reads: layer and file, in order."""


@dataclass(frozen=True)
class Image:
    """Two layers, and their manifest in a registry."""

    layers: dict[str, TestLayer]
    manifest: Digest
    registry: FakeRegistry

    @property
    def origin(self) -> Origin:
        return Origin(host=self.registry.host, repository=REPOSITORY)

    @property
    def hint(self) -> ImageHint:
        refs = tuple(layer.ref for layer in self.layers.values())
        return ImageHint(name="app", manifest_digest=self.manifest, layers=refs, origins=(self.origin,))

    def frames(self, profile: Profile) -> list[tuple[str, int]]:
        """Layer digest and frame number of what a profile names, in order."""
        tables = {layer.ref.diff_id: layer.index.frames for layer in self.layers.values()}
        digests = {layer.ref.diff_id: layer.ref.digest for layer in self.layers.values()}
        return [(digests[diff_id], number) for diff_id, number in wanted_frames(profile, tables)]

    def compressed_bytes(self, profile: Profile) -> int:
        tables = {layer.ref.digest: layer.index.frames for layer in self.layers.values()}
        return sum(tables[Digest(digest)][number].size for digest, number in self.frames(profile))

    def requests(self) -> list[tuple[str, int]]:
        """Layer digest and first frame of every request for data so far, in order."""
        found = []
        for layer in self.layers.values():
            starts = {frame.offset: frame.number for frame in layer.index.frames}
            for position, seen in enumerate(self.registry.requests):
                first = int((seen.range or "bytes=-1-").removeprefix("bytes=").split("-")[0] or -1)
                if seen.method == "GET" and seen.path.endswith(layer.ref.digest) and first in starts:
                    found.append((position, (layer.ref.digest, starts[first])))
        return [what for _, what in sorted(found)]


@pytest.fixture(scope="module")
def layers() -> dict[str, TestLayer]:
    noise = random.Random(11)

    def some(count: int, big: int) -> dict[str, bytes]:
        files = {f"dir/{number}": noise.randbytes(noise.randrange(5000, 20000)) for number in range(count)}
        return files | {"big": noise.randbytes(big)}

    return {"lower": make_layer(some(300, 1 << 20), frame_bytes=FRAME), "upper": make_layer(some(50, 3 << 20))}


@pytest.fixture
async def image(layers: dict[str, TestLayer]) -> AsyncIterator[Image]:
    async with FakeRegistry() as registry:
        yield served(registry, layers)


def served(registry: FakeRegistry, layers: dict[str, TestLayer]) -> Image:
    for layer in layers.values():
        registry.add_blob(REPOSITORY, layer.blob)
    rows = [{"mediaType": "x/y", "digest": layer.ref.digest, "size": layer.ref.size} for layer in layers.values()]
    manifest = registry.add_manifest(
        REPOSITORY, encode_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": rows})
    )
    return Image(layers, Digest(manifest), registry)


@pytest.fixture(params=["fanotify", "fuse"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> FetcherConfig:
    return node_config(tmp_path / "a", str(request.param))


def node_config(top: Path, plane: str) -> FetcherConfig:
    top.mkdir()
    return FetcherConfig(
        root=top / "root",
        run=top / "run",
        registry=RegistryConfig(),
        data_plane=plane,
        background_fill=False,
        governor=GovernorConfig(fault_deadline_s=3, retry_interval_s=0.1, streams=1, prefetch_streams=1),
        profiles=ProfilesConfig(lookup_timeout_s=2),
    )


def another(config: FetcherConfig) -> FetcherConfig:
    """Another node."""
    return node_config(config.root.parent.with_name("b"), config.data_plane)


@asynccontextmanager
async def node(config: FetcherConfig) -> AsyncIterator[Fetcher]:
    """A fetcher; all that outlives it is taken away at the end."""
    try:
        async with Fetcher(config) as fetcher:
            yield fetcher
    finally:
        await asyncio.to_thread(teardown, config.root, config.run)


async def pulled(fetcher: Fetcher, image: Image) -> None:
    """What the snapshotter does for each layer of a pull."""
    for layer in image.layers.values():
        fetcher.announce(image.hint)
        await fetcher.admit(layer.ref, [image.origin])
        await fetcher.retain(layer.ref.digest)


async def start(fetcher: Fetcher, image: Image) -> None:
    """A container that reads NAMES."""
    paths = {name: await fetcher.mount(layer.ref.digest) for name, layer in image.layers.items()}
    for name in NAMES:
        which, _, file = name.partition(":")
        assert await asyncio.to_thread((paths[which] / file).read_bytes) == image.layers[which].files[file]


async def recorded(config: FetcherConfig, image: Image) -> Profile:
    async with node(config) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        profile = await fetcher.profiles.stop(image.manifest)
        assert profile is not None
        return profile


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def prefetched(fetcher: Fetcher) -> int:
    return fetcher.status().fetched_bytes["prefetch"]


# Recording


async def test_the_first_start_is_recorded_in_its_order(config: FetcherConfig, image: Image) -> None:
    profile = await recorded(config, image)
    assert profile.layers == tuple(layer.ref.diff_id for layer in image.layers.values())
    expected = [(name.partition(":")[0], tar_range(image, name)) for name in NAMES]
    names = list(image.layers)
    firsts = [
        next(
            number
            for number, read in enumerate(profile.reads)
            if names[read.layer] == which and read.offset <= start < read.end
        )
        for which, (start, _) in expected
    ]
    assert firsts == sorted(firsts)
    for which, (start, end) in expected:
        covered = sum(
            max(0, min(end, read.end) - max(start, read.offset)) for read in profile.reads if names[read.layer] == which
        )
        assert covered == end - start
    assert profile.touched_bytes < 0.8 * sum(len(layer.tar) for layer in image.layers.values())
    assert ProfileStore(config.root / "profiles").load(image.manifest) == profile


def tar_range(image: Image, name: str) -> tuple[int, int]:
    which, _, file = name.partition(":")
    data = image.layers[which].files[file]
    at = image.layers[which].tar.index(data)
    return at, at + len(data)


async def test_layers_that_become_complete_meanwhile_are_recorded_to_the_end(
    config: FetcherConfig, image: Image
) -> None:
    async with node(replace(config, background_fill=True)) as fetcher:
        await pulled(fetcher, image)
        upper = image.layers["upper"]
        files = await fetcher.mount(upper.ref.digest)
        assert await asyncio.to_thread((files / "dir/1").read_bytes) == upper.files["dir/1"]
        await until(lambda: all(layer.state is LayerState.COMPLETE for layer in fetcher.status().layers))
        await start(fetcher, image)
        profile = await fetcher.profiles.stop(image.manifest)
        assert profile is not None
        for name in NAMES:
            begin, end = tar_range(image, name)
            layer = list(image.layers).index(name.partition(":")[0])
            assert any(read.layer == layer and read.offset <= begin < read.end for read in profile.reads), name
            assert any(read.layer == layer and read.offset < end <= read.end for read in profile.reads), name
        # The marks are gone with the recording, and what was written is all there.
        events = fetcher.status().events
        path = await fetcher.mount(upper.ref.digest) / "dir/40"
        assert await asyncio.to_thread(path.read_bytes) == upper.files["dir/40"]
        if config.data_plane == "fanotify":
            assert fetcher.status().events == events
        assert all(layer.fill_fd < 0 for layer in fetcher._layers.values())


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)  # FUSE's file stays in the page cache
async def test_a_complete_layer_is_recorded_when_it_is_mounted_anew(config: FetcherConfig, image: Image) -> None:
    async with node(replace(config, background_fill=True, profiles=ProfilesConfig(record="off"))) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        await until(lambda: all(layer.state is LayerState.COMPLETE for layer in fetcher.status().layers))
        told = fetcher.profiles.start(image.manifest, None)
        assert (told.layers, told.mounted, told.silent) == (2, 2, 2)
        for layer in image.layers.values():
            await fetcher.release(layer.ref.digest)
        # Nobody uses the image any more: there is no start to record.
        await until(lambda: not fetcher.profiles.wants(image.layers["lower"].ref.digest))
        assert fetcher.profiles.start(image.manifest, None).mounted == 0
        await pulled(fetcher, image)
        await start(fetcher, image)
        profile = await fetcher.profiles.stop(image.manifest)
        assert profile is not None
        assert profile.touched_bytes >= sum(end - begin for begin, end in (tar_range(image, name) for name in NAMES))


async def test_a_second_recording_is_merged_with_the_first(config: FetcherConfig, image: Image) -> None:
    first = await recorded(config, image)
    async with node(config) as fetcher:
        fetcher.profiles.start(image.manifest, image.hint)
        with pytest.raises(ProfileError, match="already"):
            fetcher.profiles.start(image.manifest, image.hint)
        await pulled(fetcher, image)
        await start(fetcher, image)
        second = await fetcher.profiles.stop(image.manifest)
    assert second is not None
    assert second.recordings == 2
    assert set(image.frames(second)) >= set(image.frames(first))


async def test_the_window_ends_a_recording(config: FetcherConfig, image: Image) -> None:
    async with node(replace(config, profiles=ProfilesConfig(window_s=0.3))) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        store = ProfileStore(config.root / "profiles")
        await until(lambda: store.load(image.manifest) is not None)
        with pytest.raises(ProfileError, match="no recording"):
            await fetcher.profiles.stop(image.manifest)


async def test_a_recording_is_kept_when_the_daemon_stops(config: FetcherConfig, image: Image) -> None:
    async with node(config) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
    assert ProfileStore(config.root / "profiles").load(image.manifest) is not None


async def test_an_image_with_a_profile_is_not_recorded_unasked(config: FetcherConfig, image: Image) -> None:
    profile = await recorded(config, image)
    async with node(config) as fetcher:
        await pulled(fetcher, image)
        await until(lambda: prefetched(fetcher) == 0 and image.manifest in fetcher.profiles._images)
        await start(fetcher, image)
        with pytest.raises(ProfileError, match="no recording"):
            await fetcher.profiles.stop(image.manifest)
    assert ProfileStore(config.root / "profiles").load(image.manifest) == profile


async def test_nothing_is_recorded_when_it_is_off(config: FetcherConfig, image: Image) -> None:
    async with node(replace(config, profiles=ProfilesConfig(record="off"))) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        with pytest.raises(ProfileError, match="no recording"):
            await fetcher.profiles.stop(image.manifest)


async def test_what_was_recorded_is_pushed_if_allowed(config: FetcherConfig, image: Image) -> None:
    async with node(replace(config, profiles=ProfilesConfig(push=True))) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        profile = await fetcher.profiles.stop(image.manifest)
        await until(lambda: any("manifests" in seen.path and seen.method == "PUT" for seen in image.registry.requests))
        layers = profile.layers if profile is not None else ()
        await asyncio.sleep(0.1)
        assert await profile_registry.pull(fetcher.client, image.origin, image.manifest, layers) == profile


async def test_a_push_that_fails_is_one_line(
    config: FetcherConfig, image: Image, capsys: pytest.CaptureFixture[str]
) -> None:
    image.registry.fault(Fault(method="POST", path="uploads", status=403, times=None))
    async with node(replace(config, profiles=ProfilesConfig(push=True))) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        assert await fetcher.profiles.stop(image.manifest) is not None
        told = ""
        async with asyncio.timeout(20):
            while "profile_not_pushed" not in (told := told + capsys.readouterr().out):
                await asyncio.sleep(0.05)
        assert told.count("profile_not_pushed") == 1


# Replaying


async def test_replayed_on_another_node_before_anyone_asks(config: FetcherConfig, image: Image) -> None:
    profile = await recorded(config, image)
    async with node(another(config)) as fetcher:
        await profile_registry.push(fetcher.client, image.origin, image.manifest, profile)
        del image.registry.requests[:]
        fetcher.announce(image.hint)
        await until(lambda: prefetched(fetcher) == image.compressed_bytes(profile))
        order = {what: number for number, what in enumerate(image.frames(profile))}
        requests = image.requests()
        assert [order[what] for what in requests] == sorted(order[what] for what in requests)
        await pulled(fetcher, image)
        await start(fetcher, image)
        status = fetcher.status()
        assert status.faults == 0
        assert sum(status.fetched_bytes.values()) == image.compressed_bytes(profile)
        assert (await fetcher.profiles.status())[0].source == "registry"


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_the_profile_comes_before_the_rest(config: FetcherConfig, image: Image) -> None:
    profile = await recorded(config, image)
    other = replace(another(config), background_fill=True)
    ProfileStore(other.root / "profiles").save(image.manifest, profile)
    async with node(other) as fetcher:
        del image.registry.requests[:]
        fault = image.registry.fault(Fault(path="/blobs/", delay_s=0.05, times=None))
        await pulled(fetcher, image)
        await until(lambda: prefetched(fetcher) > 0.9 * image.compressed_bytes(profile))
        image.registry.faults.remove(fault)
        await start(fetcher, image)
        await until(lambda: all(layer.state is LayerState.COMPLETE for layer in fetcher.status().layers), 60)
        named = set(image.frames(profile))
        kinds = [what in named for what in image.requests()]
        # Filling may have begun before the profile was found, by one request.
        assert sorted(kinds[1:], reverse=True) == kinds[1:]


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_a_registry_without_the_referrers_api(config: FetcherConfig, layers: dict[str, TestLayer]) -> None:
    async with FakeRegistry(referrers_api=False) as registry:
        image = served(registry, layers)
        profile = await recorded(config, image)
        async with node(another(config)) as fetcher:
            await profile_registry.push(fetcher.client, image.origin, image.manifest, profile)
            fetcher.announce(image.hint)
            await until(lambda: prefetched(fetcher) == image.compressed_bytes(profile))


def changed(profile: Profile, what: str) -> bytes:
    """A profile that is no good."""
    document = json.loads(encode_profile(profile))
    match what:
        case "corrupt":
            return encode_profile(profile)[:-100]
        case "foreign":
            document["layers"][0] = "sha256:" + "0" * 64
        case "later":
            document["version"] = 2
        case "stale":
            document["reads"] = [[0, 1 << 40, 4096]]
    return json.dumps(document).encode()


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
@pytest.mark.parametrize("what", ["corrupt", "foreign", "later", "stale"])
@pytest.mark.parametrize("where", ["local", "registry"])
async def test_a_profile_that_is_no_good_is_ignored_with_one_line(
    config: FetcherConfig, image: Image, what: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = changed(any_profile(image), what)
    if where == "local":
        directory = config.root / "profiles"
        directory.mkdir(parents=True)
        (directory / f"{image.manifest.removeprefix('sha256:')}.json").write_bytes(body)
    async with node(replace(config, profiles=ProfilesConfig(record="off"))) as fetcher:
        if where == "registry":
            subject = (await fetcher.client.manifest(image.origin, image.manifest)).descriptor
            await fetcher.client.push_referrer(image.origin, subject, MEDIA_TYPE, body, MEDIA_TYPE, {})
        await pulled(fetcher, image)
        await until(lambda: not fetcher.profiles._images[image.manifest].following)
        assert capsys.readouterr().out.count("profile_ignored") == 1
        assert prefetched(fetcher) == 0
        await start(fetcher, image)


def any_profile(image: Image) -> Profile:
    layers = tuple(layer.ref.diff_id for layer in image.layers.values())
    reads = (Read(0, 0, FRAME), Read(1, 0, 10))
    return Profile(layers=layers, reads=reads, recorded_at=datetime.now(UTC), duration_ms=1)


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_a_start_does_not_wait_for_a_slow_registry(config: FetcherConfig, image: Image) -> None:
    image.registry.fault(Fault(path="/referrers/", delay_s=30, times=None))
    quick = replace(config, profiles=ProfilesConfig(lookup_timeout_s=1))
    async with asyncio.timeout(15), node(quick) as fetcher:
        await pulled(fetcher, image)
        await start(fetcher, image)
        await until(lambda: not fetcher.profiles._images[image.manifest].following)
        assert await fetcher.profiles.stop(image.manifest) is not None


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_an_image_that_is_not_used_after_all_is_given_up(config: FetcherConfig, image: Image) -> None:
    impatient = replace(config, profiles=ProfilesConfig(unused_timeout_s=0.3))
    everything = tuple(Read(number, 0, len(layer.tar)) for number, layer in enumerate(image.layers.values()))
    profile = replace(any_profile(image), reads=everything)
    ProfileStore(config.root / "profiles").save(image.manifest, profile)
    async with node(impatient) as fetcher:
        image.registry.fault(Fault(path="/blobs/", skip=2, times=None, piece_bytes=8192, piece_delay_s=0.05))
        fetcher.announce(image.hint)
        await until(lambda: prefetched(fetcher) > 0)
        await until(lambda: not fetcher.profiles._images[image.manifest].following)
        received = prefetched(fetcher)
        await asyncio.sleep(0.4)
        assert prefetched(fetcher) == received < image.compressed_bytes(profile)
        # Pulled again, it is what it would have been.
        image.registry.faults.clear()
        await pulled(fetcher, image)
        await until(lambda: prefetched(fetcher) >= received + 1000)
        await start(fetcher, image)


@pytest.mark.parametrize("config", ["fanotify"], indirect=True)
async def test_a_layer_that_cannot_be_had_does_not_hold_up_the_other(config: FetcherConfig, image: Image) -> None:
    lower = image.layers["lower"].ref
    lost = replace(lower, digest=Digest("sha256:" + "1" * 64), diff_id=DiffID("sha256:" + "2" * 64))
    hint = replace(image.hint, layers=(lost, image.layers["upper"].ref))
    profile = replace(any_profile(image), layers=(lost.diff_id, image.layers["upper"].ref.diff_id))
    ProfileStore(config.root / "profiles").save(image.manifest, profile)
    async with node(config) as fetcher:
        fetcher.announce(hint)
        await until(lambda: prefetched(fetcher) > 0)
