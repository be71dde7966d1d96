"""SIGTERM ends a command as Ctrl-C does, in whatever half of it it arrives."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import asyncio
import time

import click

from fastpull.aio import run_async


async def wait():
    print("working", flush=True)
    await asyncio.sleep(60)


@click.command()
@click.argument("half")
def work(half):
    run_async(asyncio.sleep(0))
    try:
        if half == "asynchronous":
            run_async(wait())
        print("working", flush=True)
        time.sleep(60)
    finally:
        print("taken down", flush=True)
"""
PROGRAM = """
from fastpull import cli

cli.COMMANDS["work"] = cli.Lazy("patient:work", "")
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("half", ["synchronous", "asynchronous"])
def test_what_was_set_up_is_taken_down(tmp_path: Path, half: str, number: signal.Signals) -> None:
    (tmp_path / "patient.py").write_text(COMMAND)
    command = [sys.executable, "-c", PROGRAM, "work", half]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "working\n"
        running.send_signal(number)
        out, err = running.communicate(timeout=20)
    assert (running.returncode, out) == (130, "taken down\n")
    assert "Traceback" not in err
