"""The padded tar is the same archive to every reader, and its data is aligned."""

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from converter.errors import MalformedLayer
from converter.pax import parse_records
from tests.unit.converter.archives import (
    END,
    PAGE,
    by_path,
    entry,
    gnu_tar,
    member,
    padded,
    pax_entry,
    python_members,
    python_tar,
    rich_members,
    sparse_tree,
    with_field,
)

FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


def assert_same_archive(source: bytes) -> None:
    out, entries = padded(source)
    assert len(out) % PAGE == 0
    assert out.endswith(END)
    assert python_members(out) == python_members(source)
    for one in entries:
        if one.link is None and stat.S_ISREG(one.mode) and one.size:
            assert one.data_offset is not None and one.data_offset % PAGE == 0
    assert padded(out) == (out, entries), "a padded tar must come out as it is"


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_every_type_of_entry(form: int) -> None:
    assert_same_archive(python_tar(rich_members(), form))


@pytest.mark.parametrize("chunk", [1, 511, 512, 513, 4096, 1 << 20])
def test_chunks_of_any_size_give_the_same(chunk: int) -> None:
    source = python_tar([(member("a"), b"a" * 5000), (member("b", pax_headers={"x": "y"}), b"b"), (member("c"), b"")])
    assert padded(source, chunk) == padded(source)


def test_entries_point_at_their_data() -> None:
    contents = {info.name: data for info, data in rich_members() if info.isreg()}
    source = python_tar([(info, contents[info.name]) for info, _ in rich_members() if info.isreg()])
    out, entries = padded(source)
    table = by_path(entries)
    for name, data in contents.items():
        one = table[os.fsencode(name)]
        assert one.size == len(data)
        start = one.data_offset or 0
        assert out[start : start + one.size] == data


@pytest.mark.parametrize("gap", range(0, PAGE, 512))
@pytest.mark.parametrize("has_pax", [False, True], ids=["plain", "pax"])
def test_any_distance_to_the_next_page_is_bridged(gap: int, has_pax: bool) -> None:
    headers = {"SCHILY.xattr.user.a": "b"} if has_pax else {}
    filler = [(member(f"d{number}", kind=tarfile.DIRTYPE), b"") for number in range(gap // 512)]
    assert_same_archive(python_tar([*filler, (member("f", pax_headers=headers), b"data"), (member("g"), b"more")]))


@pytest.mark.parametrize(
    "options",
    [
        ("--format=gnu", "-S"),
        ("--format=posix", "-S", "--sparse-version=0.0"),
        ("--format=posix", "-S", "--sparse-version=0.1"),
        ("--format=posix", "-S", "--sparse-version=1.0"),
        ("--format=ustar",),
        ("--format=v7",),
    ],
    ids=lambda options: options[-1] if options[-1] != "-S" else "old-gnu",
)
def test_gnu_tar_with_sparse_files(tmp_path: Path, options: tuple[str, ...]) -> None:
    sparse_tree(tmp_path)
    out, entries = padded(gnu_tar(tmp_path, *options))
    table = by_path(entries)
    for path in tmp_path.iterdir():
        one = table[os.fsencode(path.name)]
        data = path.read_bytes()
        start = one.data_offset or 0
        assert start % PAGE == 0
        assert out[start : start + one.size] == data
    target = tmp_path / "out"
    target.mkdir()
    subprocess.run(["tar", "-C", str(target), "-xf", "-"], input=out, check=True)
    for path in target.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
        assert path.stat().st_mtime_ns // 10**9 == (tmp_path / path.name).stat().st_mtime_ns // 10**9
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert not any(info.issparse() for info in archive)


def test_more_sparse_extents_than_one_extension_block_holds(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        for number in range(200):
            file.seek(number * 20_000)
            file.write(b"%04d" % number)
    out, entries = padded(gnu_tar(tmp_path, "--format=gnu", "-S"))
    start = by_path(entries)[b"f"].data_offset or 0
    data = (tmp_path / "f").read_bytes()
    assert out[start : start + len(data)] == data


def test_gnu_tar_extracts_the_same_tree(tmp_path: Path) -> None:
    # Special files have a test of their own, with a kernel.
    source = python_tar([row for row in rich_members() if not row[0].isdev() and "owner" not in row[0].name])
    listings = []
    for number, data in enumerate((source, padded(source)[0])):
        command = ["tar", "--full-time", "--numeric-owner", "-tvf", "-"]
        listed = subprocess.run(command, input=data, capture_output=True, check=True)
        listings.append((listed.stdout, listed.stderr))
        target = tmp_path / str(number)
        target.mkdir()
        subprocess.run(["tar", "-C", str(target), "--no-same-owner", "-xf", "-"], input=data, check=True)
    assert listings[0] == listings[1]
    subprocess.run(["diff", "-r", "--no-dereference", str(tmp_path / "0"), str(tmp_path / "1")], check=True)


def test_headers_are_passed_through() -> None:
    # Nothing has to move: directories, and a file whose data is on a page boundary as it is.
    source = b"".join(entry(b"d%d/" % number, typeflag=b"5") for number in range(7)) + entry(b"f", b"x" * 5000) + END
    out, _ = padded(source)
    assert out[: len(source)] == source
    assert not any(out[len(source) :])


def test_padding_is_one_comment_record_in_the_headers_own_pax_header() -> None:
    out, _ = padded(pax_entry([(b"SCHILY.xattr.user.k", b"\xff\x00\xfe")]) + entry(b"f", b"data") + END)
    size = int(out[124:135], 8)
    records = dict(parse_records(out[512 : 512 + size]))
    assert records[b"SCHILY.xattr.user.k"] == b"\xff\x00\xfe"
    assert set(records) == {b"SCHILY.xattr.user.k", b"comment"}
    assert out[PAGE : PAGE + 4] == b"data"
    assert [out[at + 156 : at + 157] for at in (0, PAGE - 512)] == [b"x", b"0"]


def test_global_headers_are_kept_and_mean_nothing() -> None:
    source = pax_entry([(b"mtime", b"12345"), (b"comment", b"of git archive")], b"g") + entry(b"f", b"data") + END
    out, entries = padded(source)
    assert out.startswith(source[:1024])
    assert by_path(entries)[b"f"].mtime_ns == 0


def test_numbers_in_base_256() -> None:
    data = with_field(entry(b"f", b"data"), 136, 148, -5)
    data = with_field(data, 108, 116, 2**31 + 7)
    (one,) = padded(data + END)[1]
    assert (one.uid, one.mtime_ns) == (2**31 + 7, 0)  # before 1970: extractors set 0


def test_negative_owners_wrap_as_in_chown() -> None:
    minus_two = with_field(entry(b"f"), 108, 116, -2)
    assert padded(minus_two + END)[1][0].uid == 2**32 - 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"1.5", 1_500_000_000),
        (b"1.123456789987", 1_123_456_789),
        (b"1", 1_000_000_000),
        (b"1.", 1_000_000_000),
        (b"-3.5", 0),
        (b"9999999999999", 0),
    ],
)
def test_times(value: bytes, expected: int) -> None:
    (one,) = padded(pax_entry([(b"mtime", value)]) + entry(b"f") + END)[1]
    assert one.mtime_ns == expected


def test_contiguous_files_become_regular_ones() -> None:
    out, entries = padded(entry(b"f", b"data", b"7") + END)
    assert entries[0].mode == stat.S_IFREG | 0o644
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert [info.type for info in archive] == [tarfile.REGTYPE]


def test_an_old_archive_marks_directories_by_a_slash() -> None:
    _, entries = padded(entry(b"d/", typeflag=b"\0") + entry(b"d/f", b"x", b"\0") + END)
    assert [stat.S_IFMT(one.mode) for one in entries] == [stat.S_IFDIR, stat.S_IFREG]


def test_sizes_of_entries_without_data_are_ignored() -> None:
    _, entries = padded(entry(b"d/", typeflag=b"5", size=4096) + entry(b"f", b"x") + END)
    assert [one.path for one in entries] == [b"d", b"f"]


def test_what_follows_the_end_is_dropped() -> None:
    source = entry(b"f", b"x" * 100) + END
    assert padded(source + b"garbage" * 10_000) == padded(source)


@pytest.mark.parametrize("cut", [0, 512, 1024])
def test_the_end_may_be_missing(cut: int) -> None:
    source = entry(b"f", b"x" * 100)
    assert padded(source + END[:cut]) == padded(source + END)


def test_the_last_padding_may_be_missing() -> None:
    source = entry(b"f", b"x" * 100)
    assert padded(source[:-412]) == padded(source + END)


def test_nothing_at_all_is_an_empty_layer() -> None:
    assert padded(b"") == (bytes(PAGE), [])


GOOD = entry(b"file", b"x" * 600)
SPARSE = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"100")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"not a tar" * 100, "checksum|number"),
        (os.urandom(2048), "checksum|number"),
        (GOOD[:300], "middle of an entry"),
        (GOOD[:600], "middle of an entry"),
        (GOOD[:512] + END[:512], "middle of an entry"),
        (GOOD + bytes(512) + GOOD, "lone zero block"),
        (pax_entry([(b"path", b"x")]), "extended header"),
        (entry(b"pax", b"9 path=x", b"x") + GOOD, "pax header"),
        (entry(b"pax", b"999 path=x\n", b"x") + GOOD, "pax header"),
        (entry(b"pax", b"x path=x\n", b"x") + GOOD, "pax header"),
        (pax_entry([(b"path", b"a\0b")]) + GOOD, "NUL"),
        (pax_entry([(b"size", b"-1")]) + GOOD, "size"),
        (pax_entry([(b"mtime", b"soon")]) + GOOD, "mtime"),
        (pax_entry([(b"uid", b"9" * 19)]) + GOOD, "owner"),
        (entry(b"pax", b"", b"x", size=2 << 20) + GOOD, "metadata entry"),
        (entry(b"v", typeflag=b"V"), "type b'V'"),
        (entry(b"m", typeflag=b"M"), "type b'M'"),
        (with_field(entry(b"f"), 124, 136, -1), "size"),
        (entry(b"link", typeflag=b"1"), "hard link"),
        (pax_entry(SPARSE) + entry(b"s", b"1\n0\n200\n".ljust(512, b"\0") + b"d" * 200) + END, "extents"),
        (pax_entry(SPARSE) + entry(b"s", b"99999999\n".ljust(512, b"\0")) + END, "extents"),
        (pax_entry(SPARSE) + entry(b"s", b"x\n".ljust(512, b"\0")) + END, "not a number"),
        (pax_entry([(b"GNU.sparse.map", b"0,5,3,5"), (b"GNU.sparse.size", b"9")]) + entry(b"s", b"d" * 10), "extents"),
        (pax_entry([(b"path", b"n" * 256)]) + GOOD, "more than 255"),
    ],
)
def test_damage_is_one_clear_error(source: bytes, message: str) -> None:
    with pytest.raises(MalformedLayer, match=message):
        padded(source)


@pytest.mark.parametrize("size", [512, 1024, 4096 - 512, 4096 + 512])
@pytest.mark.parametrize(
    "following",
    [
        entry(b"d/", typeflag=b"5"),
        entry(b"g", b"data"),
        entry(b"empty", b""),
        pax_entry([(b"SCHILY.xattr.user.k", b"v")]) + entry(b"g", b"data"),
        pax_entry([(b"comment", b"global")], b"g") + entry(b"p", typeflag=b"6"),
        entry(b"././@LongLink", b"n" * 120 + b"\0", typeflag=b"L") + entry(b"n" * 100, b"data"),
    ],
)
def test_a_file_that_ends_inside_a_page_is_followed_by_nul(size: int, following: bytes) -> None:
    """Who maps it as text finds its end there: the page holds the next header's first byte."""
    out, entries = padded(entry(b"f", b"x" * size) + following + END)
    (first,) = [one for one in entries if one.path == b"f"]
    assert first.data_offset is not None
    assert out[first.data_offset + size] == 0
    again, same = padded(out)
    assert again == out, "padding a padded tar changes nothing"
    assert same == entries
    listed = subprocess.run(["tar", "-tf", "-"], input=out, capture_output=True, check=True)
    assert not listed.stderr
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert len(archive.getnames()) == 2
