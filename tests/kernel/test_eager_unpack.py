"""Unpacking, judged by the kernel: the files are those that EROFS shows of the same metadata and tar."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fetcher.kernel import mounted_erofs
from fetcher.planes.eager_unpack import MAX_DEPTH, unpack
from layerformat.entries import Entry
from layerformat.erofs_write import build_metadata
from tests.unit.layerformat.corpus import make_corpus

pytestmark = pytest.mark.root

Row = tuple[object, ...]


def describe(top: Path) -> dict[bytes, Row]:
    """Every attribute of every path below ``top``; hard links as the first of an inode's names."""
    paths = [os.fsencode(top)]
    for directory, names, files in os.walk(os.fsencode(top)):
        paths += [os.path.join(directory, name) for name in (*names, *files)]
    first: dict[int, bytes] = {}
    rows: dict[bytes, Row] = {}
    for path in sorted(paths):
        status = os.lstat(path)
        name = os.path.relpath(path, os.fsencode(top))
        xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in _xattrs(path)}
        shown = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev)
        inode = name if stat.S_ISDIR(status.st_mode) else first.setdefault(status.st_ino, name)
        rows[name] = (*shown, _content(path, status.st_mode), xattrs, inode)
    return rows


def _xattrs(path: bytes) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def _content(path: bytes, mode: int) -> bytes:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    return Path(os.fsdecode(path)).read_bytes() if stat.S_ISREG(mode) else b""


def _fit(entry: Entry) -> Entry:
    """What ext4 can hold of an entry: times until 2446, and attributes that take less than a block."""
    room, kept = 2500, {}
    for name, value in entry.xattrs.items():
        room -= len(name) + len(value) + 40
        if room < 0:
            break
        kept[name] = value
    # An access control list's mask is the mode's group bits; EROFS shows whatever the metadata say.
    mode = entry.mode | (0o070 if b"system.posix_acl_access" in kept else 0)
    return replace(entry, mode=mode, xattrs=kept, mtime_ns=max(-(1 << 31) * 10**9, min(entry.mtime_ns, 10**19)))


def run(metadata: Path, tar: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "fetcher.planes.eager_unpack", str(metadata), str(tar), str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_equals_what_erofs_shows(tmp_path: Path) -> None:
    corpus = make_corpus()
    corpus.entries = [_fit(entry) for entry in corpus.entries if entry.path.count(b"/") <= MAX_DEPTH]
    metadata, tar, target, mount_point = (tmp_path / name for name in ("meta.erofs", "tar", "fs", "erofs"))
    metadata.write_bytes(build_metadata(corpus.entries, device_bytes=corpus.device_bytes))
    tar.write_bytes(corpus.device)
    mount_point.mkdir()
    done = run(metadata, tar, target)
    assert (done.returncode, done.stderr) == (0, "")
    with mounted_erofs(metadata, [tar], mount_point):
        expected = describe(mount_point)
    found = describe(target)
    assert sorted(found) == sorted(expected)
    for path, row in expected.items():
        assert found[path] == row, path


def test_a_short_layer_file_is_an_error(tmp_path: Path) -> None:
    entry = Entry(path=b"f", mode=stat.S_IFREG | 0o644, uid=0, gid=0, mtime_ns=0, size=8192, data_offset=0)
    (tmp_path / "meta.erofs").write_bytes(build_metadata([entry], device_bytes=8192))
    (tmp_path / "tar").write_bytes(bytes(4096))
    done = run(tmp_path / "meta.erofs", tmp_path / "tar", tmp_path / "fs")
    assert done.returncode == errno.EIO
    assert "too short" in done.stderr
    assert done.stderr.count("\n") == 1


def test_malformed_metadata_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "meta.erofs").write_bytes(bytes(8192))
    (tmp_path / "tar").write_bytes(bytes(4096))
    done = run(tmp_path / "meta.erofs", tmp_path / "tar", tmp_path / "fs")
    assert done.returncode == errno.EIO
    assert "EROFS super block" in done.stderr


def test_too_deep_a_tree_is_refused(tmp_path: Path) -> None:
    entry = Entry(path=b"/".join([b"d"] * (MAX_DEPTH + 2)), mode=stat.S_IFDIR | 0o755, uid=0, gid=0, mtime_ns=0)
    (tmp_path / "meta.erofs").write_bytes(build_metadata([entry], device_bytes=4096))
    (tmp_path / "tar").write_bytes(bytes(4096))
    done = run(tmp_path / "meta.erofs", tmp_path / "tar", tmp_path / "fs")
    assert done.returncode == errno.ENAMETOOLONG
    shutil.rmtree(tmp_path / "fs")


def test_paths_as_long_as_they_may_be(tmp_path: Path) -> None:
    """Longer than PATH_MAX with the target's own path in front."""
    path = b"/".join([b"d" * 200] * 20)
    entry = Entry(path=path, mode=stat.S_IFLNK | 0o777, uid=1, gid=2, mtime_ns=5, target=b"t")
    target = tmp_path / "fs"
    tar = os.open(tmp_path, os.O_RDONLY)
    try:
        assert unpack(build_metadata([entry], device_bytes=4096), tar, target) == 21
    finally:
        os.close(tar)
    root = os.open(target, os.O_RDONLY)
    try:
        assert os.readlink(path, dir_fd=root) == b"t"
        assert os.stat(path, dir_fd=root, follow_symlinks=False).st_gid == 2
    finally:
        os.close(root)
