"""The EROFS writer, judged by the kernel: what is mounted equals what was asked for, in every attribute."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fetcher.kernel import mount, mounted_erofs, umount
from layerformat.entries import Entry
from layerformat.erofs_write import build_metadata
from tests.unit.layerformat.corpus import BLOCK, Corpus, make_corpus

pytestmark = pytest.mark.root


@contextmanager
def mounted(corpus: Corpus, directory: Path) -> Iterator[Path]:
    """The corpus, mounted straight from two files below `directory`."""
    metadata, device, target = directory / "meta.erofs", directory / "tar", directory / "fs"
    metadata.write_bytes(build_metadata(corpus.entries, device_bytes=corpus.device_bytes))
    device.write_bytes(corpus.device)
    target.mkdir()
    with mounted_erofs(metadata, [device], target):
        yield target


def inodes(corpus: Corpus) -> dict[bytes, Entry]:
    """Every name with the entry that holds its inode, whose path is kept."""
    by_path = {entry.path: entry for entry in corpus.entries}

    def resolve(entry: Entry) -> Entry:
        return entry if entry.link is None else resolve(by_path[entry.link])

    return {path: resolve(entry) for path, entry in by_path.items()}


def at(top: Path, path: bytes) -> bytes:
    return os.path.join(os.fsencode(top), path) if path else os.fsencode(top)


def xattrs(path: bytes) -> dict[bytes, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def walk(top: Path) -> Iterator[bytes]:
    """Every path below `top`, without recursion."""
    stack = [b""]
    while stack:
        directory = stack.pop()
        with os.scandir(at(top, directory)) as found:
            for item in found:
                path = directory + b"/" + item.name if directory else item.name
                yield path
                if item.is_dir(follow_symlinks=False):
                    stack.append(path)


def check_attributes(top: Path, path: bytes, entry: Entry) -> None:
    found = os.lstat(at(top, path))
    assert found.st_mode == entry.mode, path
    assert (found.st_uid, found.st_gid) == (entry.uid, entry.gid), path
    assert found.st_mtime_ns == entry.mtime_ns, path
    assert xattrs(at(top, path)) == entry.xattrs, path
    if stat.S_ISLNK(entry.mode):
        assert os.readlink(at(top, path)) == entry.target, path
    elif stat.S_ISREG(entry.mode):
        assert found.st_size == entry.size, path
    elif not stat.S_ISDIR(entry.mode):
        assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == entry.rdev, path


def test_corpus_in_every_attribute(tmp_path: Path) -> None:
    corpus = make_corpus()
    with mounted(corpus, tmp_path) as top:
        expected = inodes(corpus)
        for path, entry in expected.items():
            check_attributes(top, path, entry)
        assert set(expected) - {b""} <= set(walk(top))


def test_names_and_contents(tmp_path: Path) -> None:
    corpus = make_corpus()
    with mounted(corpus, tmp_path) as top:
        given = {entry.path for entry in corpus.entries}
        parents = {path[:n] for path in given for n in range(len(path)) if path[n : n + 1] == b"/"}
        assert set(walk(top)) == (given | parents) - {b""}
        for path, entry in inodes(corpus).items():
            if stat.S_ISREG(entry.mode) and entry.path in corpus.contents:
                assert Path(os.fsdecode(at(top, path))).read_bytes() == corpus.contents[entry.path], path


def test_names_are_found_one_by_one(tmp_path: Path) -> None:
    """Lookup is a binary search over blocks and names: a wrong order would lose some that readdir still shows."""
    corpus = make_corpus()
    with mounted(corpus, tmp_path) as top:
        for number in range(3000):
            assert os.path.lexists(at(top, b"dirs/3000/%04d" % number))
        for missing in (b"!", b"0000x", b"00", b"1499~", b"2999x", b"3000", b"~", b"\xff" * 255):
            assert not os.path.lexists(at(top, b"dirs/3000/" + missing))


def test_hard_links_share_an_inode(tmp_path: Path) -> None:
    corpus = make_corpus()
    with mounted(corpus, tmp_path) as top:
        names = [b"links/z-original", b"links/a-first", b"links/zz-last", b"other/elsewhere", b"links/to-a-link"]
        found = [os.lstat(at(top, name)) for name in names]
        assert len({node.st_ino for node in found}) == 1 and {node.st_nlink for node in found} == {5}
        assert os.lstat(at(top, b"links/fifo")).st_ino == os.lstat(at(top, b"links/fifo-too")).st_ino
        assert os.lstat(at(top, b"links/symlink-hard")).st_nlink == 2
        assert os.lstat(at(top, b"dirs/sub")).st_nlink == 42


def test_file_of_five_gib(tmp_path: Path) -> None:
    size = (5 << 30) + 123
    first = 7 * BLOCK
    marks = {0: b"first", (4 << 30) - 3: b"across", size - 4: b"last"}
    device_bytes = first + size + -size % BLOCK
    entry = Entry(path=b"large", mode=0o100644, uid=0, gid=0, mtime_ns=0, size=size, data_offset=first)
    (tmp_path / "meta").write_bytes(build_metadata([entry], device_bytes=device_bytes))
    with (tmp_path / "tar").open("wb") as device:
        device.truncate(device_bytes)
        for offset, mark in marks.items():
            device.seek(first + offset)
            device.write(mark)
    (tmp_path / "fs").mkdir()
    with mounted_erofs(tmp_path / "meta", [tmp_path / "tar"], tmp_path / "fs") as top:
        assert (top / "large").stat().st_size == size
        with (top / "large").open("rb") as large:
            for offset, mark in marks.items():
                large.seek(offset)
                assert large.read(len(mark)) == mark
            large.seek(size - 4)
            assert large.read() == b"last"


def test_hundred_thousand_names(tmp_path: Path) -> None:
    corpus = Corpus()
    for number in range(100_000):
        corpus.add(b"d/%06d" % number, stat.S_IFREG | 0o644, mtime_ns=number)
    with mounted(corpus, tmp_path) as top:
        assert len(names_in(top / "d")) == 100_000
        for number in range(0, 100_000, 997):
            assert (top / "d" / f"{number:06d}").stat().st_mtime_ns == number


def test_root_with_attributes_and_thousands_of_names(tmp_path: Path) -> None:
    corpus = Corpus()
    attributes = {b"user.%d" % n: b"x" * 60_000 for n in range(4)}
    corpus.add(b"", stat.S_IFDIR | 0o711, uid=9, xattrs=attributes)
    for number in range(5000):
        corpus.add_file(b"%05d" % number, b"%d" % number)
    with mounted(corpus, tmp_path) as top:
        check_attributes(top, b"", corpus.entries[0])
        assert sorted(p.name for p in top.iterdir()) == [f"{n:05d}" for n in range(5000)]
        assert (top / "04999").read_bytes() == b"4999"


@contextmanager
def overlay(top: Path, lower: str) -> Iterator[Path]:
    for name in ("upper", "work", "merged"):
        (top / name).mkdir()
    options = f"lowerdir={lower},upperdir={top / 'upper'},workdir={top / 'work'}"
    mount("overlay", top / "merged", "overlay", 0, options)
    try:
        yield top / "merged"
    finally:
        umount(top / "merged")


def test_overlayfs_honours_whiteouts_and_opaque_directories(tmp_path: Path) -> None:
    corpus = make_corpus()
    below = tmp_path / "below"
    for name in ("dev/whiteout", "opaque/hidden", "dirs/empty/shown", "dirs/1/shown"):
        (below / name).parent.mkdir(parents=True, exist_ok=True)
        (below / name).write_text("from below")
    with mounted(corpus, tmp_path) as top, overlay(tmp_path, f"{top}:{below}") as merged:
        assert not (merged / "dev/whiteout").exists() and "whiteout" not in names_in(merged / "dev")
        assert names_in(merged / "opaque") == ["upper-only"]
        assert names_in(merged / "dirs/empty") == ["shown"]
        assert names_in(merged / "dirs/1") == ["0000", "shown"]
        assert (merged / "dirs/empty").stat().st_mode == stat.S_IFDIR | 0o1777


def test_overlayfs_shows_and_copies_up_every_file(tmp_path: Path) -> None:
    corpus = make_corpus()
    other = {b"", b"dev/whiteout"}  # the root is the upper directory's
    with mounted(corpus, tmp_path) as top, overlay(tmp_path, str(top)) as merged:
        for path, entry in inodes(corpus).items():
            if path not in other:
                shown = {n: v for n, v in entry.xattrs.items() if not n.startswith(b"trusted.overlay.")}
                check_attributes(merged, path, replace(entry, xattrs=shown))
        changed = merged / "xattrs/every"
        with changed.open("ab") as file:
            file.write(b" and more")
        assert changed.read_bytes() == b"data and more"
        attributes = xattrs(os.fsencode(changed))
        assert attributes.pop(b"user.\xff") == b"\0binary\0" and attributes[b"trusted.t"] == b"1"
        os.link(merged / "links/z-original", merged / "links/new")
        assert (merged / "links/new").read_bytes() == b"shared" * 1000


def test_real_tree(tmp_path: Path) -> None:
    """A few thousand real files: Python's own library, compared by content."""
    source = Path(os.__file__).parent
    corpus, digests = Corpus(), {}
    for found in sorted(source.rglob("*")):
        if found.is_symlink() or not found.is_file() or "site-packages" in found.parts:
            continue
        content = found.read_bytes()
        name = os.fsencode(found.relative_to(source))
        digests[name] = hashlib.sha256(content).digest()
        corpus.add_file(name, content, mtime_ns=found.stat().st_mtime_ns)
    assert len(digests) > 1000
    with mounted(corpus, tmp_path) as top:
        assert (tmp_path / "meta.erofs").stat().st_size < 160 * len(digests)
        for name, digest in digests.items():
            shown = Path(os.fsdecode(at(top, name)))
            assert hashlib.sha256(shown.read_bytes()).digest() == digest, name
