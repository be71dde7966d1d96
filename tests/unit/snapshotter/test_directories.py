"""The snapshots' directories: what is made, measured and removed."""

import os
from pathlib import Path

import pytest

from snapshotter.directories import disk_usage, make_directory, orphans, remove_tree
from snapshotter.model import Kind, Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path)
    found.snapshots.mkdir()
    return found


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_modes_do_not_depend_on_the_umask(layout: Layout, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = make_directory(layout, Kind.ACTIVE, None)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o7777 for path in made.iterdir()} == {"fs": 0o755, "work": 0o711}


def test_a_view_has_no_work_directory(layout: Layout) -> None:
    assert [path.name for path in make_directory(layout, Kind.VIEW, None).iterdir()] == ["fs"]


def test_orphans_are_all_that_has_no_row(layout: Layout) -> None:
    for name in ("1", "2", "new-abc", "12"):
        (layout.snapshots / name).mkdir()
    assert sorted(path.name for path in orphans(layout, {1, 12})) == ["2", "new-abc"]


def test_remove_tree_reaches_deeper_than_a_path_can(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / ".0").mkdir()  # a name that the removal itself would like to use
    (root / ".0" / "file").write_bytes(b"x")
    here = os.open(root, os.O_DIRECTORY)
    try:
        for number in range(1500):
            os.mkdir("d" * 20, dir_fd=here)
            below = os.open("d" * 20, os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
            os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    finally:
        os.close(here)
    usage = disk_usage(root)
    assert 4 < usage.inodes < 3000
    remove_tree(root)
    assert list(tmp_path.iterdir()) == []


def test_remove_tree_takes_every_kind_and_name(tmp_path: Path) -> None:
    root, kept = tmp_path / "tree", tmp_path / "kept"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "c").mkdir()
    kept.mkdir()
    (kept / "file").write_bytes(b"x")
    (root / "a" / "link").symlink_to(kept)
    os.mkfifo(root / "a" / "b" / "fifo")
    os.close(os.open(os.fsencode(root) + b"/a/\xff\xfe", os.O_CREAT | os.O_WRONLY))
    os.mkdir(os.fsencode(root) + b"/a/\xfd")
    (root / "a" / "b").chmod(0)
    remove_tree(root)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").read_bytes() == b"x"


def test_remove_tree_takes_a_stray_file(tmp_path: Path) -> None:
    (tmp_path / "stray").write_bytes(b"x")
    remove_tree(tmp_path / "stray")
    assert not (tmp_path / "stray").exists()


def test_usage_counts_hard_links_once_and_holes_never(tmp_path: Path) -> None:
    empty = disk_usage(tmp_path)
    (tmp_path / "data").write_bytes(bytes(range(256)) * 256)
    os.link(tmp_path / "data", tmp_path / "link")
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
    usage = disk_usage(tmp_path)
    assert usage.inodes == empty.inodes + 2
    assert 65536 <= usage.size - empty.size < 1 << 20
