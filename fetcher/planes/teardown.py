"""Undo what outlives the daemon on purpose: mounts and the keeper. For uninstalling and for tests."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from pathlib import Path

from fetcher import kernel

PATIENCE_S = 5.0


def teardown(root: Path, run: Path) -> list[Path]:
    """Unmount everything below ``root`` and ``run``, then end the keeper. Blocks; idempotent.

    The two may be mounts themselves, a disk for the cache say: those stay.

    Call it with the daemon stopped and no container left: the mounts go first, since whoever could still read from one
    would get zeros once the keeper is gone. Returns what was unmounted. Raises OSError for a mount that is busy.
    """
    tops = [Path(os.path.realpath(top)) for top in (run, root)]
    found = [mount for top in tops if top.exists() for mount in kernel.mounts_below(top) if mount[0] not in tops]
    for point in (point for point, kind in found if kind == "fuse"):
        # By force: this ends the session. Pages whose readers were killed may still wait for its answers, and the
        # mounts above could not go before them. Whoever still reads gets errors, not zeros.
        kernel.umount(point, kernel.MNT_FORCE | kernel.MNT_DETACH)
    for point in (point for point, kind in reversed(found) if kind != "fuse"):
        kernel.umount(point)
    pid = keeper_pid(run)
    if pid is not None:
        _end(pid)
    for name in ("keeper.sock", "keeper.pid"):
        (run / name).unlink(missing_ok=True)
    return [point for point, _ in found]


def keeper_pid(run: Path) -> int | None:
    """Of the keeper of a run directory; None when there is none, whatever its file says."""
    try:
        pid = int((run / "keeper.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(run / "keeper.sock") in command else None


def _end(pid: int) -> None:
    """By force: it declines to go while it holds what a reader may need, and here no reader is left."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], PATIENCE_S)
        finally:
            os.close(handle)
