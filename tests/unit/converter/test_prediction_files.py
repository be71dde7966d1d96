"""An image's files as a container sees them."""

import pytest

from tests.unit.converter.image_trees import Gone, Hard, Layer, Link, Opaque, image


def text(files: object, path: str) -> str | None:
    file = files.file(path)  # type: ignore[attr-defined]
    return None if file is None else files.read(file).decode()  # type: ignore[attr-defined]


def test_an_upper_layers_file_is_seen_and_a_lower_ones_that_it_does_not_have() -> None:
    files = image({"etc/one": "lower", "etc/two": "lower"}, {"etc/one": "upper"})
    assert (text(files, "/etc/one"), text(files, "/etc/two"), text(files, "/etc/three")) == ("upper", "lower", None)
    assert list(files.names("/etc")) == ["one", "two"]


def test_whiteouts_and_opaque_directories_hide_what_is_below() -> None:
    lower: Layer = {"a/gone": "x", "a/kept": "x", "b/c/gone": "x", "d/e": "x"}
    files = image(lower, {"a/gone": Gone, "b/c": Opaque, "b/c/new": "y", "d": "a file now"})
    assert list(files.names("a")) == ["kept"]
    assert list(files.names("b/c")) == ["new"]
    assert text(files, "d") == "a file now"
    assert text(files, "d/e") is None


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/usr/bin/python", "/usr/bin/python3.11"),
        ("bin/python3", "/usr/bin/python3.11"),
        ("/usr/bin/../bin/./python3.11", "/usr/bin/python3.11"),
        ("/up", "/usr/bin/python3.11"),
        ("/usr/bin/loop", None),
        ("/usr/bin/dangling", None),
        ("/usr/bin/python3.11/x", None),
    ],
)
def test_symbolic_links_are_followed(path: str, found: str | None) -> None:
    lower: Layer = {"usr/bin/python3.11": "elf", "usr/bin/python3": Link("python3.11"), "bin": Link("usr/bin")}
    links: Layer = {
        "usr/bin/python": Link("/bin/python3"),
        "up": Link("../../usr/bin/python"),
        "usr/bin/loop": Link("loop"),
    }
    files = image(lower, {**links, "usr/bin/dangling": Link("nowhere")})
    file = files.file(path)
    assert (None if file is None else file.path) == found


def test_names_of_one_file_lie_in_one_place() -> None:
    files = image({"one": "data", "two": Hard("one")})
    one, two = files.file("one"), files.file("two")
    assert one is not None and two is not None
    assert (one.offset, one.size) == (two.offset, two.size)


def test_a_part_of_a_file_is_read() -> None:
    files = image({"other": "x" * 5000, "file": "0123456789"})
    file = files.file("file")
    assert file is not None
    assert [files.read(file, 2, 3), files.read(file, 8, 9), files.read(file, 10, 1), files.read(file)] == [
        *(b"234", b"89", b"", b"0123456789")
    ]


def test_the_files_below_a_directory_are_told_by_name() -> None:
    files = image({"a/b/z": "1", "a/b/y/x": "2", "a/c": "3", "a/link": Link("b"), "d": "4"})
    assert [file.path for file in files.walk("a")] == ["/a/b/y/x", "/a/b/z", "/a/c"]
    assert list(files.walk("nowhere")) == []
