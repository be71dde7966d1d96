"""Which data plane a node gets: what the kernel can do, found by trying it, and what the configuration wants."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from fetcher import kernel
from fetcher.model import FetcherConfig
from fetcher.planes.eager import EagerPlane
from fetcher.planes.fanotify import FanotifyPlane
from fetcher.planes.fuse import SESSION_NAME, FusePlane, detach
from fetcher.planes.fuse_session import open_device
from fetcher.planes.keeper_client import KeeperClient
from fetcher.planes.loop_device import loop_device
from fetcher.planes.plane import DataPlane
from fetcher.planes.teardown import keeper_pid
from fetcher.planes.touches import TouchLog
from fetcher.scheduler.governor import Governor
from layerformat.entries import Entry
from layerformat.erofs_write import build_metadata

log = structlog.get_logger(__name__)

#: Best first; what "auto" chooses from.
PLANES = ("fanotify", "fuse", "eager")
_BLOCK = 4096
_CONTENT = b"fastpull".ljust(_BLOCK, b"\0")


class PlaneUnavailable(OSError):
    """The data plane that was asked for cannot work here, or another one is still needed."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EOPNOTSUPP, message)

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What was tried on this kernel and file system: None where it works, else why not."""

    pre_content: str | None  # pre-content marks on files below the root
    erofs_files: str | None  # EROFS mounted straight from files
    erofs_loop: str | None  # EROFS mounted from loop devices
    fuse: str | None  # a FUSE mount

    def obstacle(self, plane: str) -> str | None:
        """Why a plane cannot work here; None when it can."""
        match plane:
            case "fanotify":
                return _first(("pre-content events", self.pre_content), ("EROFS from files", self.erofs_files))
            case "fuse":
                erofs = self.erofs_loop if self.erofs_files else None
                return _first(("FUSE", self.fuse), ("EROFS", erofs))
        return None


def _first(*attempts: tuple[str, str | None]) -> str | None:
    return next((f"{what}: {reason}" for what, reason in attempts if reason), None)


# Trying.


def probe(root: Path) -> Capabilities:
    """Try everything on the file system of ``root``, which must exist. Blocks for milliseconds; leaves nothing."""
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=root) as scratch:
        top = Path(scratch)
        metadata, tar, target = top / "meta.erofs", top / "tar", top / "fs"
        entry = Entry(path=b"file", mode=stat.S_IFREG | 0o600, uid=0, gid=0, mtime_ns=0, size=_BLOCK, data_offset=0)
        metadata.write_bytes(build_metadata([entry], device_bytes=_BLOCK))
        tar.write_bytes(_CONTENT)
        target.mkdir()
        return Capabilities(
            pre_content=_attempt(lambda: _try_mark(tar)),
            erofs_files=_attempt(lambda: _try_files(metadata, tar, target)),
            erofs_loop=_attempt(lambda: _try_loop(metadata, tar, target)),
            fuse=_attempt(lambda: _try_fuse(target)),
        )


def _attempt(action: Callable[[], None]) -> str | None:
    try:
        action()
    except OSError as error:
        return str(error)
    return None


def _try_mark(file: Path) -> None:
    group = kernel.fanotify_init_pre_content()
    try:
        kernel.fanotify_mark(group, file)
    finally:
        os.close(group)


def _try_files(metadata: Path, tar: Path, target: Path) -> None:
    with kernel.mounted_erofs(metadata, [tar], target):
        _check(target)


def _try_loop(metadata: Path, tar: Path, target: Path) -> None:
    with (
        loop_device(metadata, direct=False) as lower,
        loop_device(tar, direct=False) as extra,
        kernel.mounted_erofs(lower, [extra], target),
    ):
        _check(target)


def _check(target: Path) -> None:
    if (target / "file").read_bytes() != _CONTENT:
        raise OSError(errno.EIO, "EROFS shows other bytes than were written")


def _try_fuse(target: Path) -> None:
    """Mounted and unmounted without a word: nobody looks inside, so nothing waits for an answer."""
    device = open_device()
    try:
        options = f"fd={device},rootmode={stat.S_IFDIR:o},user_id={os.geteuid()},group_id={os.getegid()}"
        kernel.mount("fastpull", target, "fuse", kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV, options)
        kernel.umount(target, kernel.MNT_DETACH)
    finally:
        os.close(device)


# Choosing.


def choose(wanted: str, capabilities: Capabilities) -> str:
    """The plane for ``wanted``: a plane's name, or "auto" for the best that works. Raises PlaneUnavailable."""
    if wanted != "auto":
        obstacle = capabilities.obstacle(wanted) if wanted in PLANES else f"there is no such plane: {PLANES}"
        if obstacle:
            raise PlaneUnavailable(f"data plane {wanted!r} cannot work here: {obstacle}")
        return wanted
    return next(plane for plane in PLANES if capabilities.obstacle(plane) is None)


def inherited(config: FetcherConfig) -> str | None:
    """The plane that a predecessor's mounts still depend on, by what the keeper holds. Blocks for milliseconds."""
    if keeper_pid(config.run) is None:
        return None
    held = _held(config.run / "keeper.sock")
    if any(name.startswith("fill:") for name in held):
        return "fanotify"
    if SESSION_NAME in held and any(kind == "erofs" for _, kind in kernel.mounts_below(config.root / "layers")):
        return "fuse"
    return None


def _held(socket: Path) -> frozenset[str]:
    client, _ = KeeperClient.attach(socket)
    with client:
        taken = client.take_over()
    for fd in taken.values():
        os.close(fd)
    return frozenset(taken)


def select(config: FetcherConfig) -> str:
    """The plane for this start. Blocks for milliseconds; raises PlaneUnavailable.

    Another plane than the predecessor's would let its session go, and with it whoever still reads through it: the
    fanotify group's readers would get zeros. So while there may be any, the plane stays.
    """
    kept = inherited(config)
    if kept is not None:
        if config.data_plane not in ("auto", kept):
            raise PlaneUnavailable(
                f"data plane {config.data_plane!r} cannot be used yet: layers are mounted through {kept!r}; "
                "remove the containers and snapshots that use them, or reboot"
            )
        log.info("data_plane_kept", plane=kept)
        return kept
    capabilities = probe(config.root)
    chosen = choose(config.data_plane, capabilities)
    better = PLANES[: PLANES.index(chosen)] if config.data_plane == "auto" else ()
    log.info("data_plane_chosen", plane=chosen, passed_over={plane: capabilities.obstacle(plane) for plane in better})
    if chosen != "fuse":
        detach(_fuse_point(config))  # nobody uses it: a session that is in use would have been kept
    return chosen


def _fuse_point(config: FetcherConfig) -> Path:
    return config.run / "fuse"


def build(name: str, config: FetcherConfig, governor: Governor, touches: TouchLog) -> DataPlane:
    """The plane of a name that :func:`select` gave."""
    keeper_socket = config.run / "keeper.sock"
    match name:
        case "fanotify":
            return FanotifyPlane(governor, keeper_socket, touches)
        case "fuse":
            return FusePlane(governor, keeper_socket, _fuse_point(config), touches)
    return EagerPlane(governor)
