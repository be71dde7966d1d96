"""What the kernel shows of a converted layer is what extracting the source's tar gives: every type, every attribute."""

import io
import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from converter.tarlayer import PaddedTar
from fetcher.kernel import mount, mounted_erofs, umount
from layerformat.erofs_write import build_metadata
from tests.harness.trees import Node, describe, differences
from tests.unit.converter.archives import (
    entry,
    gnu_tar,
    member,
    padded,
    pax_entry,
    python_tar,
    rich_members,
    sparse_tree,
    with_field,
)

pytestmark = pytest.mark.root

CAPABILITY = "\x01\x00\x00\x02\x00\x04" + "\x00" * 14  # VFS_CAP_REVISION_2, cap_net_bind_service: capabilities(7)
UNTIMED = {stat.S_IFDIR, stat.S_IFLNK}
NOBODY = 0xFFFFFFFF
# linux/posix_acl_xattr.h: version, then tag, permissions, id of: owner rw, user 7 rw, group r, mask rw, other r.
ACL = struct.pack("<I" + "HHI" * 5, 2, *(1, 6, NOBODY), *(2, 6, 7), *(4, 4, NOBODY), *(16, 6, NOBODY), *(32, 4, NOBODY))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def show(stack: ExitStack, top: Path, source: bytes) -> Path:
    """Convert a layer and mount it."""
    top.mkdir()
    tar, entries = padded(source)
    (top / "tar").write_bytes(tar)
    (top / "meta").write_bytes(build_metadata(entries, device_bytes=len(tar)))
    (top / "fs").mkdir()
    return stack.enter_context(mounted_erofs(top / "meta", [top / "tar"], top / "fs"))


def extract(top: Path, source: bytes) -> Path:
    """The source by GNU tar, with everything it can restore."""
    top.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-p", "--delay-directory-restore"]
    subprocess.run(["tar", "-C", str(top), *options, "-xf", "-"], input=source, check=True)
    return top


def without_root(tree: dict[str, Node]) -> dict[str, Node]:
    """The root is the mount's own affair: extractors do not take its attributes from a layer."""
    return {name: node for name, node in tree.items() if name}


def full_members() -> list[tuple[tarfile.TarInfo, bytes]]:
    """`rich_members`, with attributes that only a privileged extractor can set."""
    rows = [row for row in rich_members() if row[0].name not in ("etc/pax", "etc/longlink")]
    attributes = {"SCHILY.xattr.user.colour": "green", "SCHILY.xattr.security.capability": CAPABILITY}
    return [
        *rows,
        (member("etc/capable", mode=0o755, pax_headers=attributes), b"#!"),
        (member("etc/sym", kind=tarfile.SYMTYPE, linkname="t" * 300, mode=0o777), b""),
        (member("etc/dir", kind=tarfile.DIRTYPE, mode=0o2775, pax_headers={"SCHILY.xattr.user.d": "1"}), b""),
        (member("etc/nanos", pax_headers={"mtime": "1600000000.123456789"}), b"n"),
        (member("etc/link-to-big", kind=tarfile.LNKTYPE, linkname="etc/big"), b""),
        (member("dev/sticky", kind=tarfile.DIRTYPE, mode=0o1777), b""),
        # Parents last: what is extracted into a directory changes its time.
        (member("deep", kind=tarfile.DIRTYPE, mode=0o700), b""),
    ]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_every_inode_type_as_gnu_tar_extracts_it(tmp_path: Path, stack: ExitStack, form: int) -> None:
    rows = full_members()
    # Directories that no entry names get the time of the extraction: name them all.
    parents = sorted({str(parent) for info, _ in rows for parent in Path(info.name).parents if str(parent) != "."})
    rows = [(member(parent, kind=tarfile.DIRTYPE, mode=0o755), b"") for parent in parents] + rows
    source = python_tar(rows, form)
    shown = describe(show(stack, tmp_path / "shown", source))
    extracted = describe(extract(tmp_path / "extracted", source))
    assert differences(without_root(shown), without_root(extracted)) == []
    assert len(shown) > 25


def test_acls(tmp_path: Path, stack: ExitStack) -> None:
    source = pax_entry([(b"SCHILY.xattr.system.posix_acl_access", ACL)]) + with_field(
        entry(b"f", b"x"), 100, 108, 0o664
    )
    shown = show(stack, tmp_path / "shown", source) / "f"
    extracted = extract(tmp_path / "extracted", source) / "f"
    assert os.getxattr(shown, "system.posix_acl_access") == os.getxattr(extracted, "system.posix_acl_access") == ACL


@pytest.mark.parametrize("options", [("--format=gnu", "-S"), ("--format=posix", "-S"), ("--format=posix", "--xattrs")])
def test_a_real_tree_by_gnu_tar(tmp_path: Path, stack: ExitStack, options: tuple[str, ...]) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    sparse_tree(tree)
    subprocess.run(["cp", "-a", "/etc/alternatives", "/usr/lib/python3/dist-packages", str(tree)], check=False)
    os.setxattr(tree / "dense", "user.a", bytes(range(256)))
    os.link(tree / "dense", tree / "dense-too")
    source = gnu_tar(tree, *options)
    shown = describe(show(stack, tmp_path / "shown", source))
    extracted = describe(extract(tmp_path / "extracted", source))
    assert differences(without_root(shown), without_root(extracted)) == []
    assert shown["middle"].content == describe(tree)["middle"].content


def test_whiteouts_and_opaque_directories_under_overlayfs(tmp_path: Path, stack: ExitStack) -> None:
    lower = python_tar(
        [
            (member("d", kind=tarfile.DIRTYPE, mode=0o755), b""),
            (member("d/gone"), b"1"),
            (member("d/stays"), b"2"),
            (member("o", kind=tarfile.DIRTYPE, mode=0o755), b""),
            (member("o/hidden"), b"3"),
            (member("x/below"), b"4"),
        ]
    )
    upper = python_tar(
        [
            (member("d", kind=tarfile.DIRTYPE, mode=0o700), b""),
            (member("d/.wh.gone"), b""),
            (member("o", kind=tarfile.DIRTYPE, mode=0o755), b""),
            (member("o/.wh..wh..opq"), b""),
            (member("o/new"), b"5"),
            (member(".wh.x"), b""),
            (member("x", kind=tarfile.DIRTYPE, mode=0o755), b""),
            (member("x/above"), b"6"),
        ]
    )
    lowers = [show(stack, tmp_path / "upper", upper), show(stack, tmp_path / "lower", lower)]
    merged = tmp_path / "merged"
    merged.mkdir()
    mount("overlay", merged, "overlay", data="lowerdir=" + ":".join(map(str, lowers)))
    stack.callback(umount, merged)
    found = sorted(str(path.relative_to(merged)) for path in merged.rglob("*"))
    assert found == ["d", "d/stays", "o", "o/new", "x", "x/above"]
    assert (merged / "d").stat().st_mode & 0o777 == 0o700


def test_a_file_of_more_than_four_gigabytes(tmp_path: Path, stack: ExitStack) -> None:
    """Sparse on the way in, so that the archive stays small; the tar device is written with holes as well."""
    size = (4 << 30) + 12_345
    with (tmp_path / "big").open("wb") as file:
        os.truncate(file.fileno(), size)
        os.pwrite(file.fileno(), b"end", size - 3)
        os.pwrite(file.fileno(), b"middle", 3 << 30)
    source = subprocess.run(
        ["tar", "-C", str(tmp_path), "--format=posix", "-Scf", "-", "big"], capture_output=True, check=True
    ).stdout
    tar = PaddedTar(iter([source, b""]).__next__)
    zeros = bytes(1 << 20)
    with (tmp_path / "tar").open("wb") as out:
        for piece in tar:
            if bytes(piece.data) != zeros[: len(piece.data)]:
                out.write(piece.data)
            else:
                out.seek(len(piece.data), os.SEEK_CUR)
        out.truncate(tar.size)
    (tmp_path / "meta").write_bytes(build_metadata(tar.tree.entries(), device_bytes=tar.size))
    (tmp_path / "fs").mkdir()
    shown = stack.enter_context(mounted_erofs(tmp_path / "meta", [tmp_path / "tar"], tmp_path / "fs")) / "big"
    assert shown.stat().st_size == size
    with shown.open("rb") as file:
        assert os.pread(file.fileno(), 10, size - 3) == b"end"
        assert os.pread(file.fileno(), 6, 3 << 30) == b"middle"
        assert os.pread(file.fileno(), 4096, 2 << 30) == bytes(4096)


def test_python_extracts_the_padded_tar_to_the_same_tree(tmp_path: Path) -> None:
    source = python_tar([row for row in full_members() if "xattr" not in str(row[0].pax_headers)])
    trees = []
    for number, data in enumerate((source, padded(source)[0])):
        with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
            # The attribute and not the argument: Debian 12's Python has no filters, and wants none.
            archive.extraction_filter = lambda member, _path: member
            archive.extractall(tmp_path / str(number), numeric_owner=True)
        tree = without_root(describe(tmp_path / str(number)))
        # It leaves the times of symbolic links, and of directories it fills later, to the clock.
        trees.append({name: node for name, node in tree.items() if stat.S_IFMT(node.mode) not in UNTIMED})
    assert differences(*trees) == []
