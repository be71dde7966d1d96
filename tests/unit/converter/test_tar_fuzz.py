"""Whatever bytes come in: a padded tar that Python can read comes out, or MalformedLayer; never anything else."""

import io
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import MalformedLayer
from converter.tarheader import BLOCK, with_checksum
from layerformat.erofs_read import validate_metadata
from layerformat.erofs_write import build_metadata
from layerformat.errors import FormatError
from tests.unit.converter.archives import END, PAGE, entry, member, padded, pax_entry, python_tar

SPARSE = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9000")]
SEED = b"".join(
    (
        python_tar([(member("d", kind=tarfile.DIRTYPE), b""), (member("d/f", pax_headers={"k": "v"}), b"x" * 700)])[
            :3072
        ],
        pax_entry([(b"linkpath", b"d/f")]) + entry(b"d/link", typeflag=b"1"),
        pax_entry([(b"mtime", b"12.5"), (b"SCHILY.xattr.user.a", b"b"), (b"path", b"d/long")]),
        entry(b"f", b"y" * 10),
        pax_entry(SPARSE),
        entry(b"s", b"2\n0\n4\n8000\n4\n".ljust(512, b"\0") + b"head" + b"tail"),
        entry(b".wh.gone"),
        pax_entry([(b"linkpath", b"d")]) + entry(b"l", typeflag=b"2"),
        END,
    )
)
edits = st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), max_size=12)


def mutated(changes: list[tuple[int, int]], mend: bool) -> bytes:
    """The seed with bytes changed; with `mend`, the checksums of all blocks that look like headers made right again."""
    data = bytearray(SEED)
    for position, value in changes:
        data[position] = value
    if mend:
        for at in range(0, len(data), BLOCK):
            if data[at + 257 : at + 262] == b"ustar":
                data[at : at + BLOCK] = with_checksum(bytes(data[at : at + BLOCK]))
    return bytes(data)


def check(source: bytes) -> None:
    try:
        out, entries = padded(source)
        metadata = build_metadata(entries, device_bytes=len(out))
    except (MalformedLayer, FormatError):
        return
    assert len(out) % PAGE == 0
    validate_metadata(metadata, device_bytes=len(out))
    assert padded(out) == (out, entries)


@settings(max_examples=400, deadline=None)
@given(edits, st.booleans(), st.integers(0, len(SEED)))
def test_changed_archives(changes: list[tuple[int, int]], mend: bool, cut: int) -> None:
    check(mutated(changes, mend))
    check(mutated(changes, mend)[:cut])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=30), st.binary(max_size=30)), max_size=4), st.sampled_from(b"0123567Sg"))
def test_any_records(records: list[tuple[bytes, bytes]], typeflag: int) -> None:
    check(pax_entry(records) + entry(b"f", b"data", bytes([typeflag])) + END)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=3000))
def test_noise(noise: bytes) -> None:
    check(noise)
    check(with_checksum(noise[:BLOCK].ljust(BLOCK, b"\0")) + noise[BLOCK:])


def test_the_seed_itself_is_an_archive() -> None:
    out, entries = padded(SEED)
    assert [one.path for one in entries] == [b"d", b"d/f", b"d/link", b"d/long", b"gone", b"l", b"s"]
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert len(archive.getmembers()) == 7
