"""containerd's own tests for snapshotters, against the daemon: one process and one root for each of its cases."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.root]

SUITE = Path(__file__).parents[1] / "go" / "snapshottersuite"
CASES = 21
"""How many the suite of the containerd release in go.mod has: one that vanished must not go unnoticed."""


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not here")
def test_the_snapshotter_suite(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "FASTPULL_SNAPSHOTTER": f"{sys.executable} -m fastpull.daemon",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(
        ["go", "test", "-count=1", "-v", "./..."],
        cwd=SUITE,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    verdicts = [line.strip() for line in output.splitlines() if line.strip().startswith("--- ")]
    failed = [line for line in verdicts if not line.startswith("--- PASS")]
    assert done.returncode == 0, "\n".join([*failed, output[-4000:]])
    assert failed == []
    assert len(verdicts) == CASES + 1
