"""Loop devices, for kernels whose EROFS wants block devices (before Linux 6.12).

Constants and structures as in include/uapi/linux/loop.h; LOOP_CONFIGURE needs Linux 5.8.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82
LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16
LO_NAME_SIZE = 64
#: struct loop_config with struct loop_info64 inside: fd, block_size, ..., lo_flags, lo_file_name, ...
LOOP_CONFIG = struct.Struct(f"=II40x12xI{LO_NAME_SIZE}s64x32x16x64x")
assert LOOP_CONFIG.size == 304
BLOCK = 4096
#: Another process may take the free device first.
TRIES = 64


@contextmanager
def loop_device(file: Path, *, direct: bool) -> Iterator[Path]:
    """A read-only loop device over a file for the length of the ``with`` block, and for as long as it is mounted.

    ``direct``: bypass the file's page cache where its file system can. Blocks; raises OSError.
    """
    backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device, path = _configure(backing, file, direct=direct)
    finally:
        os.close(backing)
    try:
        yield path
    finally:
        os.close(device)  # the last close clears the device


def _configure(backing: int, file: Path, *, direct: bool) -> tuple[int, Path]:
    flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | (LO_FLAGS_DIRECT_IO if direct else 0)
    config = LOOP_CONFIG.pack(backing, BLOCK, flags, os.fsencode(file)[: LO_NAME_SIZE - 1])
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(TRIES):
            path = Path(f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}")
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device", os.fspath(file))
