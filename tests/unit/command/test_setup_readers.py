"""Who reads from fastpull's layers: read from mount tables as kernels write them."""

from pathlib import Path

import pytest

from fastpull.setup.readers import Overlay, is_unfinished, layers_of, overlays, parse

ROOT = "/var/lib/fastpull"
A, B = "0123456789abcdef", "fedcba9876543210"
BEFORE = "811 29 0:52"
BUNDLE = "/run/containerd/io.containerd.runtime.v2.task/default/3f2a1b/rootfs"


def overlay(lowers: str, point: str = BUNDLE, pid: int = 7) -> Overlay:
    options = f"rw,{lowers},upperdir={ROOT}/snapshots/12/fs,workdir={ROOT}/snapshots/12/work"
    [found] = parse(f"{BEFORE} / {point} rw,relatime shared:5 master:1 - overlay overlay {options}\n", pid)
    return found


@pytest.mark.parametrize(
    ("lowers", "layers"),
    [
        (f"lowerdir={ROOT}/layers/{A}/fs:{ROOT}/layers/{B}/fs", [A, B]),
        (f"lowerdir+={ROOT}/layers/{A}/fs,lowerdir+={ROOT}/layers/{B}/fs", [A, B]),  # Linux 6.8 and later
        (f"lowerdir={ROOT}/snapshots/3/fs:{ROOT}/layers/{B}/fs", [B]),
        (f"lowerdir={ROOT}/snapshots/3/fs", []),
        (f"lowerdir=/other{ROOT}/layers/{A}/fs", []),
        (f"lowerdir={ROOT}/layers/{A[:-1]}/fs", []),
        (f"lowerdir={ROOT}/layers/{A}/fs/deeper", []),
    ],
)
def test_an_overlay_tells_its_layers(lowers: str, layers: list[str]) -> None:
    found = overlay(lowers)
    assert layers_of(found, ROOT) == layers
    assert (found.device, found.point, found.root_of) == ("0:52", BUNDLE, None)
    assert found.upper == f"{ROOT}/snapshots/12/fs"


def test_a_process_that_lives_on_an_overlay_is_named() -> None:
    assert overlay(f"lowerdir={ROOT}/layers/{A}/fs", point="/", pid=41).root_of == 41


def test_blanks_are_written_as_octal_numbers() -> None:
    found = overlay(rf"lowerdir=/my\040data/layers/{A}/fs", point=r"/a\040b")
    assert found.point == "/a b" and layers_of(found, "/my data") == [A]


def test_short_paths_of_long_chains_count_where_there_is_such_a_layer(tmp_path: Path) -> None:
    found = overlay(f"lowerdir=layers/{A}/fs:layers/{B}/fs")
    assert layers_of(found, str(tmp_path)) == []
    (tmp_path / "layers" / A).mkdir(parents=True)
    assert layers_of(found, str(tmp_path)) == [A]


@pytest.mark.parametrize(
    ("verified", "mounted", "entries", "served", "expected"),
    [
        (False, True, False, False, True),
        (True, True, False, False, False),
        (True, True, False, True, True),  # mounted through the FUSE session
        (False, False, True, False, False),  # the eager plane: plain files
        (False, False, False, False, True),  # its mount point was taken away, an overlay still has it
        (True, False, False, False, False),
    ],
)
def test_a_layer_needs_the_daemon_until_it_is_verified(
    tmp_path: Path, verified: bool, mounted: bool, entries: bool, served: bool, expected: bool
) -> None:
    (tmp_path / "fs").mkdir()
    if entries:
        (tmp_path / "fs" / "bin").mkdir()
    if verified:
        (tmp_path / "verified").touch()
    points = {str(tmp_path / "fs")} if mounted else set()
    assert is_unfinished(tmp_path, points, served=served) is expected


def test_this_machines_tables_can_be_read() -> None:
    assert all(one.lowers for one in overlays())
