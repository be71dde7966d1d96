"""Tar archives to convert: from Python's tarfile, from GNU tar, and made by hand for what neither writes."""

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from converter.pax import format_records
from converter.tarheader import BLOCK, meta_header, padding, with_checksum, with_number
from converter.tarlayer import PaddedTar
from layerformat.entries import Entry

PAGE = 4096
END = bytes(2 * BLOCK)


def member(name: str, *, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    """A TarInfo with distinct owner and time, and whatever `fields` say."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid, info.mtime = kind, 0o644, 1000, 100, 1_600_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def python_tar(members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive by Python's tarfile."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def entry(name: bytes, data: bytes = b"", typeflag: bytes = b"0", size: int | None = None) -> bytes:
    """One hand-made entry with its data."""
    block = meta_header(name, typeflag, len(data) if size is None else size)
    return block + data + bytes(padding(len(data)))


def pax_entry(records: Iterable[tuple[bytes, bytes]], typeflag: bytes = b"x") -> bytes:
    """One hand-made extended header."""
    return entry(b"pax", format_records(records), typeflag)


def with_field(data: bytes, start: int, end: int, value: int) -> bytes:
    """The first header of an entry with one numeric field set."""
    return with_checksum(with_number(data[:BLOCK], start, end, value)) + data[BLOCK:]


def in_chunks(data: bytes, size: int) -> Callable[[], bytes]:
    """A `read()` over `data`."""
    pieces = iter([data[at : at + size] for at in range(0, len(data), size)])
    return lambda: next(pieces, b"")


def padded(data: bytes, chunk: int = 70_001) -> tuple[bytes, list[Entry]]:
    """The padded tar and the entries of `data`."""
    tar = PaddedTar(in_chunks(data, chunk))
    out = b"".join(piece.data for piece in tar)
    assert tar.size == len(out)
    return out, tar.tree.entries()


def by_path(entries: Iterable[Entry]) -> dict[bytes, Entry]:
    """Entries by path, each path once."""
    table = {}
    for one in entries:
        assert one.path not in table
        table[one.path] = one
    return table


def python_members(data: bytes) -> list[tuple[object, ...]]:
    """Everything Python's tarfile sees in an archive that an extraction depends on."""
    found: list[tuple[object, ...]] = []
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        for info in archive:
            file = archive.extractfile(info) if info.isreg() else None
            records = {key: value for key, value in info.pax_headers.items() if key != "comment"}
            sparse = {key for key in records if key.startswith("GNU.sparse.")} | {"size"}
            kept = tuple(sorted((key, value) for key, value in records.items() if key not in sparse and key != "path"))
            fields = (info.name, info.mode, info.uid, info.gid, info.mtime, info.linkname, info.uname, info.gname)
            kind = tarfile.REGTYPE if info.isreg() else info.type
            found.append((*fields, kind, info.devmajor, info.devminor, kept, file.read() if file else b""))
    return found


def gnu_tar(top: Path, *options: str) -> bytes:
    """What GNU tar makes of a directory, sorted."""
    command = ["tar", "-C", str(top), "--sort=name", *options, "-cf", "-", "."]
    return subprocess.run(command, capture_output=True, check=True).stdout


def sparse_tree(top: Path) -> None:
    """Files with holes at either end, in the middle, everywhere and nowhere."""
    for name, size, parts in (
        ("middle", 3 << 20, ((0, b"head"), ((3 << 20) - 4, b"tail"))),
        ("leading", 1 << 20, (((1 << 20) - 5000, b"x" * 5000),)),
        ("trailing", 777_777, ((0, b"y" * 100),)),
        ("hole", 1 << 20, ()),
        ("many", 2 << 20, tuple((at, b"z" * 4096) for at in range(0, 2 << 20, 65536))),
    ):
        with (top / name).open("wb") as file:
            os.truncate(file.fileno(), size)
            for offset, data in parts:
                file.seek(offset)
                file.write(data)
    (top / "dense").write_bytes(os.urandom(10_000))


def rich_members() -> list[tuple[tarfile.TarInfo, bytes]]:
    """Every type of entry, long and odd names, owners, times and attributes that need PAX."""
    records = {"SCHILY.xattr.user.note": "grün", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02x"}
    long_name = "deep/" + "/".join(f"d{number}" + "x" * 40 for number in range(6)) + "/file"
    return [
        (member("etc", kind=tarfile.DIRTYPE, mode=0o755), b""),
        (member("etc/small"), b"small"),
        (member("etc/empty"), b""),
        (member("etc/block"), b"b" * BLOCK),
        (member("etc/page"), os.urandom(PAGE)),
        (member("etc/big"), os.urandom(600_000)),
        (member("etc/pax", pax_headers=dict(records)), b"with attributes"),
        (member("etc/setuid", mode=0o4755), b"#!"),
        (member("etc/hard", kind=tarfile.LNKTYPE, linkname="etc/small"), b""),
        (member("etc/soft", kind=tarfile.SYMTYPE, linkname="../etc/small", mode=0o777), b""),
        (member("dev", kind=tarfile.DIRTYPE, mode=0o755), b""),
        (member("dev/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666), b""),
        (member("dev/sda", kind=tarfile.BLKTYPE, devmajor=8, devminor=0), b""),
        (member("dev/fifo", kind=tarfile.FIFOTYPE), b""),
        (member("etc/time", mtime=1_600_000_000.123456789), b"t"),
        (member("etc/owner", uid=3_000_000, gid=4_000_000_000), b"o"),
        (member("etc/\udcff\udcfe"), b"bytes"),
        (member("n" * 255), b"255"),
        (member(long_name), os.urandom(5000)),
        (member("etc/longlink", kind=tarfile.SYMTYPE, linkname="t" * 300, mode=0o777), b""),
    ]
