"""When the disk cannot take more: the fill waits for free space, and for pages that are still to be written.

The kernel slows whoever writes once too much of memory is dirty (`balance_dirty_pages`, mm/page-writeback.c): between
the background threshold, where writing back begins, and the limit. It makes no difference between the fill's writes and
those of a frame that a reader waits for, so the fill stops before that point.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

FREE_CHECK_S = 1.0
#: Line rate may dirty a gigabyte in a second.
DIRTY_CHECK_S = 0.25
#: A paused fill goes on below this share of what paused it. The kernel still writes back then: no time is lost.
RESUME_SHARE = 0.75
#: So long the fill waits on end for pages that are still to be written: somebody else may keep the disk busy for good.
PATIENCE_S = 30.0
VMSTAT = Path("/proc/vmstat")


class DiskPressure:
    """Asked before each run of the fill; looks at the disk now and then. Times are of the monotonic clock."""

    def __init__(self, reserve_bytes: int, dirty_share: float) -> None:
        self._reserve_bytes = reserve_bytes
        self._dirty_share = dirty_share
        self._space_checked = self._dirty_checked = float("-inf")
        self._has_space = True
        self._dirty_since: float | None = None

    def allows_fill(self, directory: Path, now: float) -> bool:
        """Whether more may be written below ``directory`` than what readers wait for."""
        if now - self._space_checked >= FREE_CHECK_S:
            self._space_checked = now
            self._check_space(directory)
        if now - self._dirty_checked >= DIRTY_CHECK_S:
            self._dirty_checked = now
            self._check_dirty(now)
        return self._has_space and (self._dirty_since is None or now - self._dirty_since >= PATIENCE_S)

    def _check_space(self, directory: Path) -> None:
        stat = os.statvfs(directory)
        had, self._has_space = self._has_space, stat.f_bavail * stat.f_frsize > self._reserve_bytes
        if had and not self._has_space:
            log.warning("fill_paused_disk_low", reserve_bytes=self._reserve_bytes)

    def _check_dirty(self, now: float) -> None:
        share = dirty_share(VMSTAT.read_text())
        if self._dirty_since is None and share >= self._dirty_share:
            self._dirty_since = now
            log.info("fill_paused_disk_slow", dirty_share=round(share, 2))
        elif self._dirty_since is not None and share < self._dirty_share * RESUME_SHARE:
            self._dirty_since = None
            log.info("fill_resumed", dirty_share=round(share, 2))


def dirty_share(vmstat: str) -> float:
    """Dirty pages and those being written, as a share of the number from which on writers are slowed.

    ``vmstat`` is /proc/vmstat. That number is halfway between the two thresholds (`dirty_freerun_ceiling`).
    """
    pages = dict(line.split() for line in vmstat.splitlines())
    ceiling = (int(pages["nr_dirty_background_threshold"]) + int(pages["nr_dirty_threshold"])) / 2
    return (int(pages["nr_dirty"]) + int(pages["nr_writeback"])) / max(ceiling, 1)
