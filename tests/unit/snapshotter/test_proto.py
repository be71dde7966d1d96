"""The committed stubs are what the `.proto` files give."""

import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[3]


def test_the_stubs_are_current() -> None:
    command = [sys.executable, str(TOP / "proto" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
