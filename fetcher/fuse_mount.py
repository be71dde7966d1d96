"""Mounts EROFS over a layer file, whatever the kernel wants it to lie on."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from pathlib import Path

import structlog

from fetcher import kernel
from fetcher.fuse_loop import loop_device

log = structlog.get_logger(__name__)


class ErofsMounter:
    """Mounts from files where the kernel can (Linux >= 6.12), else through loop devices; finds out by trying."""

    def __init__(self, *, file_backed: bool | None = None) -> None:
        self._file_backed = file_backed

    def mount(self, metadata: Path, device: Path, target: Path, *, served: bool) -> None:
        """Mount unless it is mounted. ``served``: the device is a file on our FUSE mount. Raises OSError.

        What the session serves is cached where it comes from and above EROFS; in between it would only cost, so it is
        read by direct I/O. A layer file of the disk, though, has just been written: its pages are the quickest way.
        Blocks, on answers of the FUSE session too: not for the thread that gives them.
        """
        if target.is_mount():
            return
        if self._file_backed is not False and self._mount_files(metadata, device, target, direct=served):
            return
        with ExitStack() as stack:
            lower = stack.enter_context(loop_device(metadata, direct=False))
            extra = stack.enter_context(loop_device(device, direct=served))
            kernel.mount_erofs(lower, [extra], target)

    def _mount_files(self, metadata: Path, device: Path, target: Path, *, direct: bool) -> bool:
        try:
            _mount_from_files(metadata, device, target, direct=direct)
        except OSError as error:
            if error.errno != errno.ENOTBLK or self._file_backed:
                raise
            log.info("erofs_needs_block_devices")
            self._file_backed = False
            return False
        self._file_backed = True
        return True


def _mount_from_files(metadata: Path, device: Path, target: Path, *, direct: bool) -> None:
    if direct:
        try:
            kernel.mount_new("erofs", target, [("source", metadata), ("device", device), ("directio", None)])
        except OSError as error:
            # EROFS has the option since Linux 6.13 (6422cde1b0d5).
            if error.errno != errno.EINVAL:
                raise
        else:
            return
    kernel.mount_erofs(metadata, [device], target)
