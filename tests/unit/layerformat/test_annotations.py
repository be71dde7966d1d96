from dataclasses import replace
from typing import Any

import pytest

from layerformat import annotations
from layerformat.annotations import LayerRef
from layerformat.digest import DiffID, sha256_digest
from layerformat.errors import FormatError

REF = LayerRef(
    version=1,
    digest=sha256_digest(b"blob"),
    size=10_000,
    index_offset=9_000,
    index_size=1_000,
    index_digest=sha256_digest(b"index"),
    diff_id=DiffID(sha256_digest(b"tar")),
)


def test_round_trip_among_other_labels() -> None:
    labels = {**REF.to_annotations(), "containerd.io/snapshot.ref": "x", annotations.PREFIX + "something-else": "y"}
    assert LayerRef.from_annotations(labels) == REF


def test_keys_are_what_containerd_hands_on() -> None:
    assert set(REF.to_annotations()) == set(annotations.KEYS)
    assert all(key.startswith("containerd.io/snapshot/fastpull.") for key in annotations.KEYS)
    assert all(len(key) + len(value) <= 4096 for key, value in REF.to_annotations().items())


@pytest.mark.parametrize("labels", [{}, {"a": "b"}, {annotations.DIGEST_KEY: REF.digest}])
def test_not_ours(labels: dict[str, str]) -> None:
    assert LayerRef.from_annotations(labels) is None


@pytest.mark.parametrize("key", annotations.KEYS[1:])
def test_missing_annotation_is_named(key: str) -> None:
    labels = REF.to_annotations()
    del labels[key]
    with pytest.raises(FormatError, match=key.rsplit(".", 1)[1]):
        LayerRef.from_annotations(labels)


@pytest.mark.parametrize("key", [annotations.VERSION_KEY, annotations.SIZE_KEY, annotations.INDEX_OFFSET_KEY])
@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", "0x1", "01", " 1", "1_0", "٣", "9" * 20, "²"])
def test_numbers_are_canonical(key: str, text: str) -> None:
    with pytest.raises(FormatError, match="decimal"):
        LayerRef.from_annotations({**REF.to_annotations(), key: text})


def test_newer_version_is_named_before_anything_else() -> None:
    with pytest.raises(FormatError, match="version is 2"):
        LayerRef.from_annotations({annotations.VERSION_KEY: "2"})


@pytest.mark.parametrize("key", [annotations.DIGEST_KEY, annotations.INDEX_DIGEST_KEY, annotations.DIFF_ID_KEY])
def test_malformed_digest(key: str) -> None:
    with pytest.raises(FormatError, match="digest"):
        LayerRef.from_annotations({**REF.to_annotations(), key: "sha256:abc"})


@pytest.mark.parametrize(
    "change", [{"index_size": 1_001}, {"size": 0}, {"index_offset": 0}, {"size": 2**63}, {"version": 2}]
)
def test_impossible_reference(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        replace(REF, **change)
