"""Whole images through OCI layouts and archives."""

import asyncio
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.convert import convert_image
from converter.errors import ConvertError, DestinationError, MalformedInput, SourceNotFound, UsageError
from converter.options import ConvertOptions, ConvertResult, Profile
from fetcher.registry import Platform, RegistryClient, RegistryConfig
from layerformat.annotations import LayerRef
from layerformat.digest import DiffID, sha256_digest
from layerformat.erofs_read import read_metadata
from layerformat.frames import decode_seek_table
from layerformat.index import Index, open_index
from tests.unit.converter.archives import member, python_tar, rich_members
from tests.unit.converter.layouts import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Json, Layout, Written

LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
BASE = python_tar([*rich_members()[:12], (member("big"), os.urandom(1_500_000))])
TOP = python_tar(
    [(member("top", pax_headers={"SCHILY.xattr.user.a": "b"}), b"top" * 5000), (member("etc/.wh.small"), b"")]
)
EMPTY = bytes(1024)


async def convert(source: str, destination: str, **options: Any) -> ConvertResult:
    async with RegistryClient(RegistryConfig()) as client:
        return await convert_image(source, destination, ConvertOptions(**options), client=client)


def amd64(**options: Any) -> dict[str, Any]:
    return {"platforms": (Platform.parse("linux/amd64"),), **options}


def check_layer(written: Written, descriptor: Json, diff_id: str) -> Index:
    """A layer as every promise of the format has it."""
    assert descriptor["mediaType"] == LAYER_ZSTD
    ref = LayerRef.from_annotations(descriptor["annotations"])
    assert ref is not None
    blob = written.blob(descriptor["digest"])
    assert (ref.digest, ref.size, ref.diff_id) == (descriptor["digest"], len(blob), diff_id)
    index = open_index(blob[ref.index_offset : ref.index_offset + ref.index_size], ref)
    tar = subprocess.run(["zstd", "-dcq"], input=blob, capture_output=True, check=True).stdout
    assert f"sha256:{hashlib.sha256(tar).hexdigest()}" == diff_id
    assert len(tar) == index.frames.tar_size
    for frame in index.frames:
        assert hashlib.sha256(tar[frame.start : frame.end]).digest() == frame.sha256
    assert sum(size for size, _ in decode_seek_table(blob)) <= len(blob)
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
        contents = {
            info.name: file.read() for info in archive if not info.issym() and (file := archive.extractfile(info))
        }
    for one in read_metadata(index.metadata):
        if one.size and one.link is None:
            start = one.data_offset or 0
            assert tar[start : start + one.size] == contents[os.fsdecode(one.path)]
    return index


def check_image(written: Written, row: Json, source: Layout, layers: int) -> tuple[Json, Json]:
    """An image whose everything but its layers is what it was; its manifest and config."""
    assert row["mediaType"] == OCI_MANIFEST
    manifest = written.document(row)
    assert (manifest["mediaType"], manifest["config"]["mediaType"]) == (OCI_MANIFEST, OCI_CONFIG)
    config = written.document(manifest["config"])
    assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"]) == layers
    for descriptor, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        check_layer(written, descriptor, diff_id)
        assert descriptor["annotations"]["who"] == "me"
        assert descriptor["annotations"]["dev.fastpull.source"] in source.blobs
    return manifest, config


@pytest.mark.parametrize("how", ["gzip", "zstd", ""])
@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
async def test_a_single_image(tmp_path: Path, how: str, docker: bool) -> None:
    layout = Layout()
    root = layout.image([BASE, EMPTY, TOP], how=how, docker=docker, annotations={"k": "v"})
    result = await convert(layout.write(tmp_path / "in", root), f"oci:{tmp_path}/out:t")
    written = Written(tmp_path / "out")
    manifest, config = check_image(written, written.root(), layout, 3)
    assert manifest["annotations"] == {"k": "v"}
    before = json.loads(layout.blobs[json.loads(layout.blobs[root["digest"]])["config"]["digest"]])
    assert {**config, "rootfs": None} == {**before, "rootfs": None}
    assert result.digest == written.root()["digest"]
    assert [layer.action for layer in result.images[0].layers] == ["converted"] * 3


async def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    layout = Layout()
    source = layout.write(tmp_path / "in", layout.image([BASE, TOP, BASE]))
    outputs = []
    for number, jobs in enumerate((1, 2, 7)):
        old = os.umask(0o077 if number else 0o022)
        try:
            await convert(source, f"oci:{tmp_path}/{number}:t", jobs=jobs)
        finally:
            os.umask(old)
        outputs.append(Written(tmp_path / str(number)).snapshot())
    assert outputs[0] == outputs[1] == outputs[2]


async def test_equal_layers_are_converted_once(tmp_path: Path) -> None:
    layout = Layout()
    result = await convert(
        layout.write(tmp_path / "in", layout.image([BASE, EMPTY, BASE, EMPTY])), f"oci:{tmp_path}/out:t"
    )
    digests = [layer.digest for layer in result.images[0].layers]
    assert digests[:2] == digests[2:]
    assert len(Written(tmp_path / "out").snapshot()) == 2 + 2 + 2  # layers, documents, oci-layout and index.json


@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
async def test_what_was_done_is_not_done_again(tmp_path: Path, kind: str) -> None:
    layout = Layout()
    source = layout.write(tmp_path / "in", layout.image([BASE, TOP]))
    destination = f"{kind}:{tmp_path}/out:t"
    first = await convert(source, destination)
    again = await convert(source, destination)
    assert (again.digest, again.changed) == (first.digest, False)
    assert [layer.action for layer in again.images[0].layers] == ["reused"] * 2
    other = await convert(source, destination, frame_size=64 << 10)
    assert [layer.action for layer in other.images[0].layers] == ["converted"] * 2
    assert other.changed
    grown = layout.write(tmp_path / "in", layout.image([BASE, TOP, EMPTY]))
    third = await convert(grown, destination, frame_size=64 << 10)
    assert [layer.action for layer in third.images[0].layers] == ["reused", "reused", "converted"]


async def test_a_converted_image_is_taken_over(tmp_path: Path) -> None:
    layout = Layout()
    first = await convert(layout.write(tmp_path / "in", layout.image([BASE, TOP])), f"oci:{tmp_path}/a:t")
    second = await convert(f"oci:{tmp_path}/a:t", f"oci:{tmp_path}/b:t", level=9)
    assert second.digest == first.digest
    assert [layer.action for layer in second.images[0].layers] == ["copied"] * 2


async def test_a_layer_that_only_says_it_is_ours_is_converted(tmp_path: Path) -> None:
    layout = Layout()
    await convert(layout.write(tmp_path / "in", layout.image([BASE])), f"oci:{tmp_path}/a:t")
    written = Written(tmp_path / "a")
    manifest = written.document(written.root())
    config = written.document(manifest["config"])
    liar = Layout()
    # A proper zstd layer of the same tar, under the annotations of another.
    tar = subprocess.run(
        ["zstd", "-dcq"], input=written.blob(manifest["layers"][0]["digest"]), capture_output=True
    ).stdout
    plain = liar.add(subprocess.run(["zstd", "-cq"], input=tar, capture_output=True).stdout, LAYER_ZSTD)
    notes = {
        **manifest["layers"][0]["annotations"],
        "containerd.io/snapshot/fastpull.digest": plain["digest"],
        "containerd.io/snapshot/fastpull.size": str(plain["size"]),
    }
    row = {**plain, "annotations": notes}
    made = liar.document({**manifest, "layers": [row], "config": liar.document(config, OCI_CONFIG)}, OCI_MANIFEST)
    result = await convert(liar.write(tmp_path / "liar", made), f"oci:{tmp_path}/b:t")
    assert result.images[0].layers[0].action == "converted"
    assert result.images[0].layers[0].digest == manifest["layers"][0]["digest"]


def multi_platform(layout: Layout, *, docker: bool = False) -> tuple[Json, Json, Json, Json]:
    amd = layout.image([BASE, TOP], docker=docker)
    arm = layout.image([python_tar([(member("arm"), b"arm" * 5000)])], architecture="arm64", docker=docker)
    note = layout.attestation(amd)
    return amd, arm, note, layout.index([amd, arm, note], docker=docker, annotations={"a": "b"})


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
async def test_one_platform_of_an_index(tmp_path: Path, docker: bool) -> None:
    layout = Layout()
    _, arm, note, root = multi_platform(layout, docker=docker)
    result = await convert(layout.write(tmp_path / "in", root), f"oci:{tmp_path}/out:t", **amd64())
    written = Written(tmp_path / "out")
    assert written.root()["mediaType"] == OCI_INDEX
    index = written.document(written.root())
    assert index["annotations"] == {"a": "b"}
    assert index["manifests"][1:] == [arm, note]
    check_image(written, index["manifests"][0], layout, 2)
    for kept in (arm, note):
        manifest = written.document(kept)
        for blob in (manifest["config"], *manifest["layers"]):
            written.blob(blob["digest"])
    assert [image.platform for image in result.images] == ["linux/amd64"]


async def test_all_platforms_of_an_index(tmp_path: Path) -> None:
    layout = Layout()
    amd, arm, note, root = multi_platform(layout)
    result = await convert(layout.write(tmp_path / "in", root), f"oci:{tmp_path}/out:t", all_platforms=True)
    index = Written(tmp_path / "out").document(Written(tmp_path / "out").root())
    assert [image.platform for image in result.images] == ["linux/amd64", "linux/arm64"]
    assert [row["digest"] in (amd["digest"], arm["digest"]) for row in index["manifests"]] == [False, False, False]
    assert index["manifests"][2] == note


async def test_a_platform_that_is_not_there(tmp_path: Path) -> None:
    layout = Layout()
    *_, root = multi_platform(layout)
    wanted = (Platform.parse("linux/riscv64"),)
    with pytest.raises(SourceNotFound, match="linux/riscv64") as caught:
        await convert(layout.write(tmp_path / "in", root), f"oci:{tmp_path}/out:t", platforms=wanted)
    assert "linux/amd64, linux/arm64" in caught.value.hint
    single = layout.write(tmp_path / "single", layout.image([BASE]))
    with pytest.raises(SourceNotFound, match="the image is for linux/amd64"):
        await convert(single, f"oci:{tmp_path}/out:t", platforms=wanted)


async def test_an_archive_holds_the_same_image(tmp_path: Path) -> None:
    layout = Layout()
    source = layout.write(tmp_path / "in", layout.image([BASE, TOP]))
    result = await convert(source, f"oci-archive:{tmp_path}/out.tar:t")
    with tarfile.open(tmp_path / "out.tar") as archive:
        archive.extractall(tmp_path / "out")
    written = Written(tmp_path / "out")
    check_image(written, written.root(), layout, 2)
    back = await convert(f"oci-archive:{tmp_path}/out.tar", f"oci:{tmp_path}/back:t")
    assert back.digest == result.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "in", "out", "out.tar"]


def docker_archive(path: Path, tars: list[bytes], *, links: bool = False) -> None:
    """As docker save wrote it for years: plain layers in directories, repeated ones as links."""
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [sha256_digest(tar) for tar in tars]}}
    with tarfile.open(path, "w") as archive:

        def put(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        layers = [f"{number}/layer.tar" for number in range(len(tars))]
        for name, tar in zip(layers, tars, strict=True):
            if links and name != layers[0]:
                archive.addfile(member(name, kind=tarfile.SYMTYPE, linkname="../0/layer.tar"))
            else:
                put(name, tar)
        put("c.json", json.dumps(config).encode())
        put("manifest.json", json.dumps([{"Config": "c.json", "RepoTags": ["app:1"], "Layers": layers}]).encode())


async def test_a_docker_archive(tmp_path: Path) -> None:
    docker_archive(tmp_path / "a.tar", [BASE, TOP])
    docker_archive(tmp_path / "b.tar", [BASE, BASE], links=True)
    result = await convert(f"docker-archive:{tmp_path}/a.tar", f"oci:{tmp_path}/out:t")
    assert [layer.source for layer in result.images[0].layers] == [sha256_digest(BASE), sha256_digest(TOP)]
    named = await convert(f"docker-archive:{tmp_path}/a.tar:docker.io/library/app:1", f"oci:{tmp_path}/out:t")
    assert named.digest == result.digest
    twice = await convert(f"docker-archive:{tmp_path}/b.tar", f"oci:{tmp_path}/twice:t")
    assert len({layer.digest for layer in twice.images[0].layers}) == 1
    with pytest.raises(SourceNotFound, match="0 images match"):
        await convert(f"docker-archive:{tmp_path}/a.tar:other:1", f"oci:{tmp_path}/out:t")


async def test_directories_without_an_entry_look_like_those_below(tmp_path: Path) -> None:
    base = python_tar([(member("tmp", kind=tarfile.DIRTYPE, mode=0o1777, uid=5), b""), (member("tmp/a"), b"a")])
    top = python_tar([(member("tmp/b"), b"b")])
    layout = Layout()
    destination = f"oci:{tmp_path}/out:t"
    await convert(layout.write(tmp_path / "in", layout.image([base, top, EMPTY])), destination)
    written = Written(tmp_path / "out")
    manifest, config = check_image(written, written.root(), layout, 3)
    index = check_layer(written, manifest["layers"][1], config["rootfs"]["diff_ids"][1])
    (found,) = [one for one in read_metadata(index.metadata) if one.path == b"tmp"]
    assert (found.mode & 0o7777, found.uid) == (0o1777, 5)
    again = await convert(layout.write(tmp_path / "in", layout.image([base, top])), destination)
    assert [layer.action for layer in again.images[0].layers] == ["reused"] * 2
    # On top of something else it is another layer.
    other = await convert(layout.write(tmp_path / "in", layout.image([EMPTY, top])), destination)
    assert [layer.action for layer in other.images[0].layers] == ["converted"] * 2
    # The layer below may have been reused or taken over: its files are then read from its index.
    taken = await convert(layout.write(tmp_path / "in", layout.image([base, top, top])), f"oci:{tmp_path}/2:t")
    assert [layer.action for layer in taken.images[0].layers] == ["converted"] * 3


async def test_a_profile_cuts_along_its_ranges(tmp_path: Path) -> None:
    layout = Layout()
    await convert(layout.write(tmp_path / "in", layout.image([BASE])), f"oci:{tmp_path}/a:t")
    written = Written(tmp_path / "a")
    manifest = written.document(written.root())
    diff_id = DiffID(written.document(manifest["config"])["rootfs"]["diff_ids"][0])
    profile = Profile(ranges={diff_id: ((40_960, 49_152), (1_000_000, 1_004_000))})
    result = await convert(f"oci:{tmp_path}/a:t", f"oci:{tmp_path}/b:t", profile=profile)
    assert result.images[0].layers[0].action == "converted"
    written = Written(tmp_path / "b")
    manifest = written.document(written.root())
    index = check_layer(written, manifest["layers"][0], diff_id)
    ends = {frame.end for frame in index.frames}
    assert {40_960, 49_152, 999_424, 1_007_616} <= ends
    again = await convert(f"oci:{tmp_path}/a:t", f"oci:{tmp_path}/b:t", profile=profile)
    assert [layer.action for layer in again.images[0].layers] == ["reused"]


def damaged(layout: Layout, root: Json, number: int, data: bytes) -> None:
    """Another content under a layer's digest."""
    layout.blobs[json.loads(layout.blobs[root["digest"]])["layers"][number]["digest"]] = data


async def assert_nothing_published(source: str, directory: Path, error: type[ConvertError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        await convert(source, f"oci:{directory}:t")
    assert caught.value.hint
    assert not (directory / "index.json").exists()
    assert not [path for path in directory.rglob("*") if path.name.startswith(".")]


Spoil = Callable[[bytes], bytes]
DAMAGE: list[tuple[str, Spoil, str]] = [
    ("gzip", lambda data: data[:-100], "truncated|damaged"),
    ("gzip", lambda data: data[:9000] + bytes(99) + data[9099:], "gzip|damaged|tar"),
    ("zstd", lambda data: data[:-100], "damaged|middle|config says"),
    ("", lambda data: data.replace(b"small", b"SMALL"), "damaged|checksum"),
    ("", lambda data: data[:5000], "damaged|middle"),
    ("", lambda data: b"", "damaged|config says"),
]


@pytest.mark.parametrize(("how", "spoil", "message"), DAMAGE)
async def test_a_damaged_layer_publishes_nothing(tmp_path: Path, how: str, spoil: Spoil, message: str) -> None:
    layout = Layout()
    root = layout.image([EMPTY, BASE], how=how)
    layer = json.loads(layout.blobs[root["digest"]])["layers"][1]["digest"]
    damaged(layout, root, 1, spoil(layout.blobs[layer]))
    await assert_nothing_published(layout.write(tmp_path / "in", root), tmp_path / "out", MalformedInput, message)


async def test_an_image_that_lies_about_itself(tmp_path: Path) -> None:
    layout = Layout()
    cases = [
        (layout.image([BASE], diff_ids=["sha256:" + "0" * 64]), "config says"),
        (layout.image([BASE, TOP], diff_ids=[sha256_digest(BASE)]), "2 layers, but its config 1 diff ids"),
        (layout.image([BASE], diff_ids=["nonsense"]), "digest"),
    ]
    for number, (root, message) in enumerate(cases):
        source = layout.write(tmp_path / f"in{number}", root)
        await assert_nothing_published(source, tmp_path / f"out{number}", MalformedInput, message)


async def test_what_is_no_image(tmp_path: Path) -> None:
    layout = Layout()
    config = layout.document({}, "application/vnd.example+json")
    root = layout.document({"schemaVersion": 2, "config": config, "layers": []}, OCI_MANIFEST)
    source = layout.write(tmp_path / "in", root)
    await assert_nothing_published(source, tmp_path / "out", MalformedInput, "not a container image")
    with pytest.raises(SourceNotFound, match="no OCI image layout"):
        await convert(f"oci:{tmp_path}/nowhere", f"oci:{tmp_path}/out:t")
    with pytest.raises(SourceNotFound, match="no such file"):
        await convert(f"docker-archive:{tmp_path}/nowhere", f"oci:{tmp_path}/out:t")
    with pytest.raises(SourceNotFound, match="no image other"):
        await convert(f"oci:{tmp_path}/in:other", f"oci:{tmp_path}/out:t")
    (tmp_path / "junk.tar.gz").write_bytes(b"\x1f\x8b" + bytes(1000))
    with pytest.raises(MalformedInput, match="not a tar archive"):
        await convert(f"oci-archive:{tmp_path}/junk.tar.gz", f"oci:{tmp_path}/out:t")


@pytest.mark.parametrize("destination", ["oci:", "docker-archive:/tmp/x", "UPPER/x:y:z", "h/r@sha256:" + "0" * 64])
async def test_destinations_that_make_no_sense(tmp_path: Path, destination: str) -> None:
    layout = Layout()
    with pytest.raises(UsageError):
        await convert(layout.write(tmp_path / "in", layout.image([EMPTY])), destination)


async def test_a_destination_that_cannot_be_written(tmp_path: Path) -> None:
    layout = Layout()
    source = layout.write(tmp_path / "in", layout.image([BASE]))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DestinationError):
        await convert(source, f"oci:{tmp_path}/file:t")
    with pytest.raises(DestinationError):
        await convert(source, f"oci-archive:{tmp_path}/no/such/dir.tar:t")


async def test_foreign_layers_stay_where_they_are(tmp_path: Path) -> None:
    layout = Layout()
    root = layout.image([BASE, TOP])
    manifest = json.loads(layout.blobs[root["digest"]])
    foreign = manifest["layers"][0]
    foreign["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    foreign["urls"] = ["https://example.com/x"]
    del layout.blobs[foreign["digest"]]
    root = layout.document(manifest, OCI_MANIFEST)
    result = await convert(layout.write(tmp_path / "in", root), f"oci:{tmp_path}/out:t")
    written = Written(tmp_path / "out")
    assert written.document(written.root())["layers"][0] == foreign
    assert [layer.action for layer in result.images[0].layers] == ["kept", "converted"]


async def test_other_images_of_a_layout_stay(tmp_path: Path) -> None:
    layout = Layout()
    source = layout.write(tmp_path / "in", layout.image([BASE]))
    await asyncio.gather(*(convert(source, f"oci:{tmp_path}/out:{tag}") for tag in ("a", "b", "c")))
    written = Written(tmp_path / "out")
    assert len({written.root(tag)["digest"] for tag in ("a", "b", "c")}) == 1
