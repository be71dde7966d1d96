"""The temporary directory of a laboratory, and the mark by which its processes are found again."""

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from fastpull.lab import mounts
from fastpull.lab.process import LabError

MARK = "FASTPULL_LAB"
# Not tmpfs: pre-content events and overlayfs need a real file system, and /tmp is often memory.
DEFAULT_PARENT = Path("/var/tmp")
# A unix socket's path is limited to 108 bytes (unix(7)); the longest one below a workspace has about 50.
MAX_PATH_BYTES = 56


def marked_processes(mark: str) -> list[int]:
    """Ids of the processes whose environment holds `mark`, this one excepted: also those that were reparented."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            # A process may end while it is looked at; a kernel thread's environment is empty.
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def describe(pid: int) -> str:
    with contextlib.suppress(OSError):
        return f"{pid}: {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')}"
    return f"{pid}: (ended)"


def kill_all(pids: list[int], *, timeout_s: float = 5) -> None:
    """SIGKILL each process and wait until all have ended (or are zombies of another parent)."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + timeout_s
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


class Workspace:
    """A directory for one laboratory; leaving it ends its processes, unmounts and removes everything.

    `left` lists, after the end, what had to be swept: processes and mounts that their owners should have ended.
    """

    def __init__(self, parent: Path | None = None, *, keep: bool = False) -> None:
        chosen = parent or Path(os.environ.get("FASTPULL_LAB_DIR", DEFAULT_PARENT))
        chosen.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix="fp-", dir=chosen))
        self.mark = secrets.token_hex(8)
        self.env = {MARK: self.mark}
        self.left: list[str] = []
        self.keep = keep
        if len(os.fsencode(self.path)) > MAX_PATH_BYTES:
            self.path.rmdir()
            raise LabError(f"{self.path}: too long for unix sockets below it (more than {MAX_PATH_BYTES} bytes)")

    def __repr__(self) -> str:
        return f"<Workspace {self.path}>"

    def directory(self, name: str) -> Path:
        made = self.path / name
        made.mkdir(parents=True, exist_ok=True)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes = marked_processes(self.mark)
        self.left += [f"process {describe(pid)}" for pid in processes]
        kill_all(processes)
        self.left += [f"mount {mount.kind} on {mount.point}" for mount in mounts.unmount_below(self.path)]
        if not self.keep:
            shutil.rmtree(self.path)
