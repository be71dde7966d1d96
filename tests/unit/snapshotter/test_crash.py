"""SIGKILL at each step between a request and its end: what the next start finds is whole, and nothing of it leaks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from snapshotter import directories
from snapshotter.core import Snapshotter
from snapshotter.database import Database
from snapshotter.model import Layout, SnapshotKey
from snapshotter.mounts import MountOptions
from snapshotter.provider import LabelResolver, NoLayers
from snapshotter.store import Transaction

K = SnapshotKey


def die(*_: object, **__: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


async def with_core(root: Path, work: Callable[[Snapshotter], Awaitable[None]]) -> None:
    layout = Layout(root)
    layout.snapshots.mkdir(parents=True, exist_ok=True)
    async with Database(layout.database) as database:
        core = Snapshotter(
            layout=layout, database=database, provider=NoLayers(), resolver=LabelResolver(), options=MountOptions()
        )
        await core.start()
        await work(core)
        await core.stop()


def after_temporary_directory() -> None:
    directories.make_directory = lambda *given, make=directories.make_directory: die(make(*given))


def before_rename() -> None:
    Path.rename = die  # type: ignore[method-assign]


def after_rename() -> None:
    rename = Path.rename
    Path.rename = lambda self, target: die(rename(self, target))  # type: ignore[method-assign]


def before_directory_is_removed() -> None:
    directories.remove_tree = die


def amid_removal() -> None:
    os.rmdir = die


def within_commit() -> None:
    commit = Transaction.commit
    Transaction.commit = lambda *given: die(commit(*given))  # type: ignore[method-assign]


STEPS: dict[str, Callable[[], None]] = {
    step.__name__: step
    for step in (
        after_temporary_directory,
        before_rename,
        after_rename,
        before_directory_is_removed,
        amid_removal,
        within_commit,
    )
}


async def change(core: Snapshotter) -> None:
    """One of each: the step that was chosen ends the process in one of them."""
    await core.prepare(K("new"), K("base"), {})
    await core.commit(K("open"), K("closed"), None, {})
    await core.remove(K("doomed"))


async def prepare_ground(core: Snapshotter) -> None:
    for key in ("k", "open", "doomed"):
        await core.prepare(K(key), None, {})
    await core.commit(K("k"), K("base"), None, {})
    [doomed] = await core.mounts(K("doomed"))
    (Path(doomed.source) / "deep" / "er").mkdir(parents=True)


def child(root: Path, step: str) -> None:
    """What runs in the process that dies."""

    async def work(core: Snapshotter) -> None:
        STEPS[step]()
        await change(core)

    asyncio.run(with_core(root, work))


@pytest.mark.parametrize("step", sorted(STEPS))
async def test_a_kill_at(step: str, tmp_path: Path) -> None:
    await with_core(tmp_path, prepare_ground)
    command = [sys.executable, "-c", f"from {__name__} import *; child(Path({str(tmp_path)!r}), {step!r})"]
    done = await asyncio.to_thread(subprocess.run, command, check=False)
    assert done.returncode == -signal.SIGKILL

    async def check(core: Snapshotter) -> None:
        await core.cleanup()
        names = {str(info.name) for info in await core.walk()}
        assert "base" in names
        assert len({"open", "closed"} & names) == 1
        assert len(list(Layout(tmp_path).snapshots.iterdir())) == len(names)
        if "new" in names:
            await core.mounts(K("new"))
            await core.remove(K("new"))
        await core.prepare(K("new"), K("base"), {})

    await with_core(tmp_path, check)
