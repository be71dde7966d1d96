"""What the daemon leaves on purpose when it ends, and where: taken away once nobody reads from it any more."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from fastpull.setup.files import remove_empty
from fetcher.planes.teardown import teardown

_IN_RUN_DIR = ("fastpull.sock", "admin.sock", "keeper.sock", "keeper.pid", "daemon.pid", "fuse")
DATA = ("layers", "snapshots", "profiles", "metadata.db", "metadata.db-wal", "metadata.db-shm", "lock")


def clear(root: Path, run_dir: Path, *, data: bool) -> int:
    """Unmount the layers, end the keeper, empty the run directory; with `data` the root too. How many mounts it were.

    Both directories may be the owner's: what the daemon does not make stays, and so does a directory that holds it.
    Raises OSError for a mount that is busy.
    """
    # Not the root itself: it may be a disk of its own, which is not ours to unmount.
    unmounted = teardown(root / "layers", run_dir)
    _remove(run_dir, _IN_RUN_DIR)
    if data:
        _remove(root, DATA)
    remove_empty([root])
    return len(unmounted)


def _remove(directory: Path, names: Sequence[str]) -> None:
    for name in names:
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    remove_empty([directory])
