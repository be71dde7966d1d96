"""What extracting a layer leaves behind: the rules of containerd's extractor, and overlayfs' form of deletions."""

import stat

import pytest

from converter.errors import MalformedLayer
from converter.tarheader import DIRTYPE, FIFOTYPE, LNKTYPE, REGTYPE, SYMTYPE
from converter.tree import LayerTree, Member
from layerformat.entries import Entry

OPAQUE = {b"trusted.overlay.opaque": b"y"}


def tree(*members: Member) -> LayerTree:
    made = LayerTree()
    for one in members:
        made.add(one)
    return made


def entries(*members: Member) -> dict[bytes, Entry]:
    return {one.path: one for one in tree(*members).entries()}


def make(name: bytes, typeflag: bytes = REGTYPE, **fields: object) -> Member:
    values: dict[str, object] = {"mode": 0o644, "uid": 1, "gid": 2, "mtime_ns": 3, **fields}
    return Member(name=name, typeflag=typeflag, **values)  # type: ignore[arg-type]


def folder(name: bytes, **fields: object) -> Member:
    return make(name, DIRTYPE, **{"mode": 0o755, **fields})


def symlink(name: bytes, target: bytes) -> Member:
    return make(name, SYMTYPE, linkname=target)


def hard_link(name: bytes, target: bytes, **fields: object) -> Member:
    return make(name, LNKTYPE, linkname=target, **fields)


def test_names_are_cleaned() -> None:
    found = entries(
        folder(b"./a/"), make(b"/a//b"), make(b"a/./c"), make(b"../../a/x/../d"), folder(b"./"), folder(b"a/..")
    )
    assert set(found) == {b"a", b"a/b", b"a/c", b"a/d"}


def test_the_last_entry_of_a_path_wins() -> None:
    found = entries(make(b"f", size=1, data_offset=4096), make(b"f", FIFOTYPE))
    assert stat.S_ISFIFO(found[b"f"].mode)
    assert found[b"f"].size == 0


def test_a_directory_over_a_directory_changes_its_attributes_only() -> None:
    found = entries(folder(b"d", xattrs={b"user.a": b"1"}), make(b"d/f"), folder(b"d", mode=0o700, uid=9))
    assert (found[b"d"].mode, found[b"d"].uid, found[b"d"].xattrs) == (stat.S_IFDIR | 0o700, 9, {b"user.a": b"1"})
    assert b"d/f" in found


@pytest.mark.parametrize("explicit", [True, False])
def test_a_file_over_a_directory_takes_everything_below_with_it(explicit: bool) -> None:
    first = [folder(b"d")] if explicit else []
    found = entries(*first, make(b"d/f"), make(b"d/sub/g"), make(b"d/.wh.gone"), make(b"dd"), make(b"d"))
    assert set(found) == {b"d", b"dd"}


def test_a_hard_link_shares_the_inode_even_when_its_target_is_replaced() -> None:
    found = entries(
        make(b"z", size=5, data_offset=4096), hard_link(b"b", b"z"), hard_link(b"c", b"b"), make(b"z", FIFOTYPE)
    )
    assert (found[b"b"].link, found[b"b"].size, found[b"b"].data_offset) == (None, 5, 4096)
    assert found[b"c"].link == b"b"
    assert stat.S_ISFIFO(found[b"z"].mode)


def test_a_hard_links_header_changes_the_inode() -> None:
    found = entries(make(b"a", size=1, data_offset=4096), hard_link(b"b", b"./a", mode=0o600, uid=7, mtime_ns=8))
    assert (found[b"a"].mode, found[b"a"].uid, found[b"a"].mtime_ns) == (stat.S_IFREG | 0o600, 7, 8)


def test_a_hard_link_to_a_symlink() -> None:
    found = entries(symlink(b"a", b"target"), hard_link(b"b", b"a", mode=0o600))
    assert found[b"a"].mode == stat.S_IFLNK | 0o777
    assert found[b"b"].link == b"a"


@pytest.mark.parametrize("target", [b"elsewhere", b"", b"self", b"d"])
def test_a_hard_link_to_nothing_is_malformed(target: bytes) -> None:
    with pytest.raises(MalformedLayer, match="hard link"):
        tree(folder(b"d"), hard_link(b"self", target))


def test_symlinks_in_a_parent_path_are_followed_inside_the_layer() -> None:
    found = entries(
        folder(b"usr"),
        folder(b"usr/lib"),
        symlink(b"lib", b"usr/lib"),
        symlink(b"usr/lib64", b"../../../lib"),
        symlink(b"abs", b"/usr/./lib"),
        make(b"lib/a"),
        make(b"usr/lib64/b"),
        make(b"abs/c"),
        hard_link(b"d", b"abs/a"),
    )
    assert {b"usr/lib/a", b"usr/lib/b", b"usr/lib/c"} <= set(found)
    assert found[b"usr/lib/a"].link == b"d"


def test_endless_symlinks_are_malformed() -> None:
    with pytest.raises(MalformedLayer, match="symbolic links"):
        tree(symlink(b"a", b"b"), symlink(b"b", b"a"), make(b"a/f"))


def test_a_file_inside_a_file_is_malformed() -> None:
    with pytest.raises(MalformedLayer, match="not a directory"):
        tree(make(b"f"), make(b"f/g/h"))


def test_whiteouts() -> None:
    found = entries(folder(b"d"), make(b"d/.wh.gone", uid=5), make(b".wh.top"))
    for path in (b"d/gone", b"top"):
        assert (found[path].mode, found[path].rdev) == (stat.S_IFCHR, (0, 0))
    assert found[b"d/gone"].uid == 5
    assert set(found) == {b"d", b"d/gone", b"top"}


@pytest.mark.parametrize("order", [1, -1])
def test_a_whiteout_of_what_the_layer_has_hides_what_is_below_only(order: int) -> None:
    found = entries(*[make(b".wh.f"), make(b"f", size=1, data_offset=4096)][::order])
    assert found[b"f"].size == 1
    found = entries(*[make(b".wh.d"), folder(b"d")][::order], make(b"d/x"))
    assert found[b"d"].xattrs == OPAQUE
    assert stat.S_ISDIR(entries(*[make(b".wh.d"), make(b"d/x")][::order])[b"d"].mode)


def test_opaque_directories() -> None:
    found = entries(folder(b"d", mode=0o750), make(b"d/.wh..wh..opq"), make(b"e/f/.wh..wh..opq"), make(b".wh..wh..opq"))
    assert (found[b"d"].mode, found[b"d"].xattrs) == (stat.S_IFDIR | 0o750, OPAQUE)
    assert (found[b"e/f"].mode, found[b"e/f"].xattrs) == (stat.S_IFDIR | 0o755, OPAQUE)
    assert found[b""].xattrs == OPAQUE
    assert found[b"e"].xattrs == {}


def test_what_aufs_left_is_dropped_but_its_hard_links_work() -> None:
    found = entries(
        folder(b".wh..wh.plnk"),
        make(b".wh..wh.plnk/12.34", size=9, data_offset=8192),
        folder(b".wh..wh.orph"),
        make(b".wh..wh.aufs"),
        hard_link(b"a", b".wh..wh.plnk/12.34"),
        hard_link(b"b", b".wh..wh.plnk/12.34"),
    )
    assert set(found) == {b"a", b"b"}
    assert (found[b"a"].size, found[b"a"].data_offset, found[b"b"].link) == (9, 8192, b"a")


@pytest.mark.parametrize("name", [b".wh.", b"d/.wh.", b".wh..", b".wh..."])
def test_whiteouts_of_nothing_are_malformed(name: bytes) -> None:
    with pytest.raises(MalformedLayer, match="whiteout"):
        tree(make(name))


def test_attributes_that_an_extractor_would_not_set_are_left_out() -> None:
    xattrs = {b"trusted.overlay.redirect": b"/etc", b"trusted.x": b"1", b"user.a": b"1", b"security.capability": b"c"}
    found = entries(make(b"f", xattrs=xattrs), make(b"p", FIFOTYPE, xattrs=xattrs), make(b"l", SYMTYPE, linkname=b"f"))
    assert found[b"f"].xattrs == {b"user.a": b"1", b"security.capability": b"c"}
    assert found[b"p"].xattrs == {b"security.capability": b"c"}


def test_a_directory_made_in_a_set_group_id_directory_has_its_group() -> None:
    found = entries(folder(b"d", mode=0o2755, gid=80), make(b"d/new/deeper/f"))
    assert (found[b"d/new"].gid, found[b"d/new"].mode) == (80, stat.S_IFDIR | 0o755)
    assert found[b"d/new/deeper"].gid == 0


def test_directories_without_an_entry_take_over_what_is_below() -> None:
    made = tree(make(b"tmp/x/f"), folder(b"etc"), make(b"etc/f"))
    assert made.implied == {b"tmp", b"tmp/x"}
    lower = Entry(path=b"tmp", mode=stat.S_IFDIR | 0o1777, uid=3, gid=4, mtime_ns=5, xattrs={b"user.a": b"b"})
    found = {one.path: one for one in made.entries({b"tmp": lower})}
    assert found[b"tmp"] == lower
    assert (found[b"tmp/x"].mode, found[b"tmp/x"].uid) == (stat.S_IFDIR | 0o755, 0)
