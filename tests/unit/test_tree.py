"""The shape of the tree: names, the wheel's contents, and the linters as tests."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PACKAGES = {"fastpull", "snapshotter", "converter", "fetcher", "layerformat"}
CATCH_ALL_NAMES = {"utils.py", "util.py", "common.py", "helpers.py", "helper.py", "misc.py"}
LINT_TIMEOUT_S = 600


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository: those in git and those that would be added to it."""
    listed = subprocess.run(
        ["git", "-C", str(TOP), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        capture_output=True,
        check=True,
    ).stdout
    return [TOP / name.decode() for name in listed.split(b"\0") if name and (TOP / name.decode()).exists()]


def test_no_catch_all_modules() -> None:
    assert [path for path in tracked("*.py") if path.name in CATCH_ALL_NAMES] == []


def test_proto_is_no_package() -> None:
    # A package named "proto" exists on the index and is widely installed.
    assert [path for path in tracked("proto/*") if path.name == "__init__.py"] == []


def test_every_package_says_what_it_is() -> None:
    roots = [path for path in tracked("*/__init__.py") if path.relative_to(TOP).parts[0] in PACKAGES]
    assert roots
    silent = [str(path) for path in roots if not path.read_text().startswith(('"""', "#")) and path.stat().st_size]
    assert silent == []


def test_every_shell_script_stops_at_an_error() -> None:
    scripts = [path for path in tracked() if path.is_file() and path.read_bytes()[:12] == b"#!/bin/bash\n"]
    assert scripts
    assert [str(path) for path in scripts if "set -euo pipefail" not in path.read_text()] == []


def test_the_wheel_ships_its_own_packages_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # From a copy: building leaves directories behind in the source tree.
    source = tmp_path / "source"
    for path in tracked("*.py", "*.toml", "*.pyi", "README.md", *(f"{name}/*" for name in sorted(PACKAGES))):
        target = source / path.relative_to(TOP)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True, stdin=subprocess.DEVNULL)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == PACKAGES


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=["ruff", "format", "mypy"]
)
def test_linters(command: list[str]) -> None:
    """As `make check` runs them."""
    program = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    done = subprocess.run(program, cwd=TOP, capture_output=True, text=True, timeout=LINT_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
