"""The rules of tests/conftest.py, tried on sample tests in a pytest of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.leaks import RUN_MARK

TOP = Path(__file__).parents[2]
pytestmark = [pytest.mark.system, pytest.mark.root]


def run_sample(directory: Path, source: str, *, in_ci: bool) -> "subprocess.CompletedProcess[str]":
    """Run one sample file under this project's conftest, as its own test run."""
    (directory / "test_sample.py").write_text("import os, subprocess, pytest\n" + source)
    environment = {name: value for name, value in os.environ.items() if name not in (RUN_MARK, "FASTPULL_CI")}
    environment |= {"PYTHONPATH": str(TOP)} | ({"FASTPULL_CI": "1"} if in_ci else {})
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", "/dev/null", "--rootdir", str(directory)]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "test_sample.py"],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


SKIPPED = "def test_a():\n    pytest.skip('not today')\n"
SKIPPED_MODULE = "pytest.skip('not today', allow_module_level=True)\n"
XFAILED = "@pytest.mark.xfail\ndef test_a():\n    assert False\n"


@pytest.mark.parametrize(
    ("source", "in_ci", "code"),
    [(SKIPPED, False, 0), (SKIPPED, True, 1), (SKIPPED_MODULE, True, 2), (XFAILED, True, 0)],
    ids=["skip-at-home", "skip-in-ci", "module-in-ci", "xfail-in-ci"],
)
def test_undeclared_skips_fail_where_it_counts(tmp_path: Path, source: str, in_ci: bool, code: int) -> None:
    done = run_sample(tmp_path, source, in_ci=in_ci)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("declared_skips.txt" in done.stdout) == bool(code)


LEAKS = {
    "process": "subprocess.Popen(['sleep', '60'], start_new_session=True)",
    "fd": "os.open('/etc/passwd', os.O_RDONLY)",
    "directory": "os.mkdir(os.environ['FASTPULL_LAB_DIR'] + '/fp-left')",
}


@pytest.mark.parametrize("kind", sorted(LEAKS))
def test_what_is_left_behind_fails_the_test(tmp_path: Path, kind: str) -> None:
    # Not in a variable: what nothing refers to any more must be found all the same.
    source = f"@pytest.mark.leaks_checked\ndef test_a():\n    {LEAKS[kind]}\n    os.environ['KEPT'] = '1'\n"
    if kind == "process":
        source = source.replace("subprocess.Popen", "global child\n    child = subprocess.Popen")
        source += "def test_end():\n    child.kill(); child.wait()\n"
    done = run_sample(tmp_path, source, in_ci=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"left behind:\nE         {kind} " in done.stdout or f"\nE         {kind} " in done.stdout, done.stdout


def test_a_traceback_in_the_daemons_log_fails_the_test(tmp_path: Path) -> None:
    source = """
@pytest.mark.system
def test_a(daemon):
    with daemon.log.open("a") as log:
        log.write("Traceback (most recent call last):\\n  of a defect\\n")

@pytest.mark.system
@pytest.mark.expected_traceback("it is the subject of the test")
def test_b(daemon):
    with daemon.log.open("a") as log:
        log.write("Traceback (most recent call last):\\n  foreseen\\n")
"""
    done = run_sample(tmp_path, source, in_ci=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert ["2 passed" in done.stdout, "1 error" in done.stdout] == [True, True], done.stdout
    assert "the daemon logged a traceback" in done.stdout
