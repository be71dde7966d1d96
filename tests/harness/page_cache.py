"""What the kernel keeps of single files."""

from __future__ import annotations

import os
from pathlib import Path


def cool(file: Path) -> None:
    """Out of the page cache, as after a reboot."""
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
