"""OCI layouts: digests hold, compressions unpack to the same tar, the same input gives the same bytes."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from fastpull.lab.layout import Compression, ImageInput, LayerInput, Member, members, tree, write_layout

ENTRIES = [
    Member(name="d", mode=0o750, uid=3_000_000),
    Member(name="d/f", data=b"content" * 1000, mode=0o644, mtime=1.5),
    Member(name="d/s", kind=b"2", target="f"),
]


def blob(layout: Path, digest: str) -> bytes:
    data = (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
    return data


def documents(layout: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(layout, index["manifests"][0]["digest"]))
    return manifest, json.loads(blob(layout, manifest["config"]["digest"]))


def unpacked(data: bytes, media_type: str) -> bytes:
    if media_type.endswith("+gzip"):
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data) if media_type.endswith("+zstd") else data


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_descriptors_and_diff_ids_hold(tmp_path: Path, compression: Compression) -> None:
    layer = LayerInput(write=members(ENTRIES), compression=compression)
    write_layout(tmp_path / "l", "t", ImageInput(layers=[layer], command=["/x"], environment={"A": "b"}))
    manifest, config = documents(tmp_path / "l")
    (descriptor,) = manifest["layers"]
    data = blob(tmp_path / "l", descriptor["digest"])
    plain = unpacked(data, descriptor["mediaType"])
    assert descriptor["size"] == len(data)
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(plain).hexdigest()}"]
    assert config["config"]["Cmd"] == ["/x"]
    assert config["config"]["Env"] == ["A=b"]
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        assert archive.getnames() == ["d", "d/f", "d/s"]
        assert archive.getmember("d").uid == 3_000_000
        assert archive.getmember("d/f").mtime == 1.5


def test_the_same_input_gives_the_same_digest(tmp_path: Path) -> None:
    image = ImageInput(layers=[LayerInput(write=members(ENTRIES), compression="gzip")])
    assert write_layout(tmp_path / "a", "t", image) == write_layout(tmp_path / "b", "t", image)


def test_a_tree_is_archived_the_same_twice(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "file").write_bytes(b"1")
    first, second = io.BytesIO(), io.BytesIO()
    tree(top)(first)
    (top / "sub" / "file").read_bytes()
    tree(top)(second)
    assert first.getvalue() == second.getvalue()
    with tarfile.open(fileobj=io.BytesIO(first.getvalue())) as archive:
        assert archive.getnames() == [".", "./sub", "./sub/file"]
