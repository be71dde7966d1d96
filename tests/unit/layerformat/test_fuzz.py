"""Whatever the bytes, the readers return or raise FormatError. Any other exception is a failure of the reader."""

import stat
import string
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerformat.annotations import KEYS, LayerRef
from layerformat.digest import sha256_digest
from layerformat.entries import Entry
from layerformat.erofs import BLOCK, EROFS_SUPER_OFFSET, checksum
from layerformat.erofs_read import read_metadata, validate_metadata
from layerformat.erofs_write import build_metadata
from layerformat.errors import FormatError
from layerformat.frames import decode_seek_table, encode_tail
from layerformat.index import decode_index, encode_index
from tests.unit.layerformat.corpus import make_corpus
from tests.unit.layerformat.test_index import small_index

DEVICE_BYTES = 64 * BLOCK
NUMBERS = [0, 1, 2, 11, 12, 13, 31, 32, 63, 64, 127, 128, 255, 4095, 4096, 4097, 2**16 - 1, 2**31, 2**32 - 1]
# No deadline: a busy machine is no failure. The same examples in every run: neither is a lucky one.
FUZZ = settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def rich_image() -> bytes:
    """Small (so that mutations hit something), yet with every structure."""
    fields: dict[str, Any] = {"uid": 1, "gid": 2, "mtime_ns": 3}
    entries = [
        Entry(path=b"a", mode=0o100644, size=5000, data_offset=BLOCK, **fields),
        Entry(path=b"b", mode=0o100755, size=1, data_offset=8 * BLOCK, xattrs={b"user.x": b"abc"}, **fields),
        Entry(path=b"c", mode=0, link=b"a", **fields),
        Entry(path=b"d/e/f", mode=0o040755, xattrs={b"trusted.overlay.opaque": b"y"}, **fields),
        Entry(path=b"l", mode=0o120777, target=b"target", **fields),
        Entry(path=b"ll", mode=0o120777, target=b"t" * 4090, **fields),
        Entry(path=b"n", mode=stat.S_IFCHR, **fields),
        *(Entry(path=b"big/" + b"%03d" % n + b"x" * 60, mode=0o100644, **fields) for n in range(100)),
    ]
    return build_metadata(entries, device_bytes=DEVICE_BYTES)


IMAGE = rich_image()
CORPUS = make_corpus()
CORPUS_IMAGE = build_metadata(CORPUS.entries, device_bytes=CORPUS.device_bytes)
INDEX = encode_index(small_index())
INTERESTING = sorted({at for at in range(1024, len(IMAGE), 4) if any(IMAGE[at : at + 4])})


def mend(image: bytearray) -> bytes:
    """With the right checksum: otherwise that is all a mutation in the first block would test."""
    if len(image) >= BLOCK:
        image[EROFS_SUPER_OFFSET + 4 : EROFS_SUPER_OFFSET + 8] = checksum(image).to_bytes(4, "little")
    return bytes(image)


def read_all(image: bytes, device_bytes: int) -> None:
    try:
        validate_metadata(image, device_bytes=device_bytes)
    except FormatError as error:
        assert str(error)
        return
    entries = list(read_metadata(image))
    # What passes is something the writer takes too, so nothing got through that it could not have meant.
    again = build_metadata(entries, device_bytes=device_bytes)
    assert list(read_metadata(again)) == entries


edits = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(INTERESTING), st.integers(1024, len(IMAGE) - 8)),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.builds(
                lambda n, size: (n % 256**size).to_bytes(size, "little"),
                st.sampled_from(NUMBERS),
                st.sampled_from([1, 2, 4, 8]),
            ),
        ),
    ),
    min_size=1,
    max_size=4,
)


@FUZZ
@given(edits=edits)
def test_edited_image(edits: list[tuple[int, bytes]]) -> None:
    image = bytearray(IMAGE)
    for at, data in edits:
        image[at : at + len(data)] = data
    read_all(mend(image[: len(IMAGE)]), DEVICE_BYTES)


@FUZZ
@given(
    at=st.integers(0, len(IMAGE) - 64), to=st.integers(0, len(IMAGE) - 64), size=st.sampled_from([4, 12, 32, 64, BLOCK])
)
def test_moved_pieces(at: int, to: int, size: int) -> None:
    image = bytearray(IMAGE)
    image[to : to + size] = image[at : at + size]
    image = image[: len(IMAGE)].ljust(len(IMAGE), b"\0")
    read_all(mend(image), DEVICE_BYTES)


@settings(FUZZ, max_examples=40)
@given(at=st.integers(1024, len(CORPUS_IMAGE) - 1), value=st.integers(0, 255))
def test_edited_corpus(at: int, value: int) -> None:
    image = bytearray(CORPUS_IMAGE)
    image[at] = value
    read_all(mend(image), CORPUS.device_bytes)


@FUZZ
@given(cut=st.integers(0, len(IMAGE)), tail=st.binary(max_size=100))
def test_cut_image(cut: int, tail: bytes) -> None:
    read_all(mend(bytearray(IMAGE[:cut] + tail)), DEVICE_BYTES)


@FUZZ
@given(edits=st.lists(st.tuples(st.integers(0, len(INDEX) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_edited_index(edits: list[tuple[int, int]]) -> None:
    data = bytearray(INDEX)
    for at, value in edits:
        data[at] = value
    try:
        decode_index(bytes(data))
    except FormatError as error:
        assert str(error)


@FUZZ
@given(data=st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda tail: INDEX[:96] + tail)))
def test_random_index(data: bytes) -> None:
    try:
        decode_index(data)
    except FormatError as error:
        assert str(error)


@FUZZ
@given(data=st.binary(max_size=200), keep=st.integers(0, 40))
def test_random_seek_table(data: bytes, keep: int) -> None:
    tail = encode_tail(small_index().frames, b"index")
    try:
        decode_seek_table(data + tail[len(tail) - keep :])
    except FormatError as error:
        assert str(error)


label_values = st.one_of(
    st.text(max_size=30),
    st.integers(-5, 2**70).map(str),
    st.just(sha256_digest(b"")),
    st.text(string.hexdigits, min_size=64, max_size=64).map("sha256:".__add__),
)


@FUZZ
@given(labels=st.dictionaries(st.sampled_from(KEYS), label_values), version=st.booleans())
def test_random_annotations(labels: Mapping[str, str], version: bool) -> None:
    if version:
        labels = {**labels, KEYS[0]: "1"}
    try:
        ref = LayerRef.from_annotations(labels)
    except FormatError as error:
        assert str(error)
    else:
        assert ref is None or LayerRef.from_annotations(ref.to_annotations()) == ref


names = st.binary(min_size=1, max_size=20).filter(lambda n: n not in (b".", b"..") and not set(n) & {0, 47})
kinds = st.sampled_from([0o100644, 0o040755, 0o120777, 0o020600, 0o060660, 0o010600, 0o140755])


@settings(FUZZ, max_examples=150)
@given(
    tree=st.dictionaries(
        st.lists(names, min_size=1, max_size=4).map(b"/".join), st.tuples(kinds, st.integers(0, 9000)), max_size=40
    )
)
def test_random_tree(tree: dict[bytes, tuple[int, int]]) -> None:
    """Any tree is either refused or written so that the reader gives back what was asked for."""
    entries, block = [], 0
    for path, (mode, size) in tree.items():
        fields: dict[str, Any] = {"mode": mode, "uid": size, "gid": 0, "mtime_ns": -size}
        if stat.S_ISREG(mode) and size:
            fields |= {"size": size, "data_offset": block * BLOCK}
            block += -(-size // BLOCK)
        elif stat.S_ISLNK(mode):
            fields["target"] = b"t" * (size % 4095 + 1)
        entries.append(Entry(path=path, **fields))
    device_bytes = max(block, 1) * BLOCK
    try:
        image = build_metadata(entries, device_bytes=device_bytes)
    except FormatError as error:
        assert "parent is not a directory" in str(error)
        return
    validate_metadata(image, device_bytes=device_bytes)
    found = {entry.path: entry for entry in read_metadata(image)}
    assert all(found[entry.path] == entry for entry in entries)
