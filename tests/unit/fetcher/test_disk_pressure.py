"""When the fill waits for the disk, and for how long at most."""

from __future__ import annotations

from pathlib import Path

import pytest

from fetcher.scheduler import disk_pressure
from fetcher.scheduler.disk_pressure import DIRTY_CHECK_S, FREE_CHECK_S, PATIENCE_S, DiskPressure, dirty_share


class Disk:
    """A machine's /proc/vmstat, and a clock."""

    def __init__(self, directory: Path) -> None:
        self.vmstat = directory / "vmstat"
        self.directory = directory
        self.pressure = DiskPressure(reserve_bytes=0, dirty_share=0.9)
        self.now = 1000.0

    def allows(self, share: float, *, after_s: float = DIRTY_CHECK_S) -> bool:
        """Whether the fill may go on when so much is dirty; the kernel begins to slow writers at 1000 pages."""
        rows = {"nr_dirty": share * 600, "nr_writeback": share * 400}
        rows |= {"nr_dirty_background_threshold": 500, "nr_dirty_threshold": 1500}
        self.vmstat.write_text("".join(f"{name} {value:.0f}\n" for name, value in rows.items()))
        self.now += after_s
        return self.pressure.allows_fill(self.directory, self.now)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path)
    monkeypatch.setattr(disk_pressure, "VMSTAT", disk.vmstat)
    return disk


def test_the_share_is_of_where_writers_are_slowed(disk: Disk) -> None:
    disk.allows(0.5)
    assert dirty_share(disk.vmstat.read_text()) == 0.5


def test_it_pauses_before_writers_are_slowed_and_goes_on_well_below(disk: Disk) -> None:
    assert [disk.allows(share) for share in (0.89, 0.91, 0.8, 0.7, 0.6)] == [True, False, False, False, True]


def test_it_looks_now_and_then_only(disk: Disk) -> None:
    assert disk.allows(0.1)
    assert disk.allows(0.95, after_s=DIRTY_CHECK_S / 2)
    assert not disk.allows(0.95, after_s=DIRTY_CHECK_S / 2)


def test_a_disk_that_stays_dirty_is_not_waited_for_for_good(disk: Disk) -> None:
    assert not disk.allows(0.95)
    assert not disk.allows(0.95, after_s=PATIENCE_S - 1)
    assert disk.allows(0.95, after_s=2) and disk.allows(1.5)
    # Once it has recovered, it is waited for again.
    assert disk.allows(0.1)
    assert not disk.allows(0.95)


def test_space_is_waited_for_for_good(disk: Disk) -> None:
    disk.pressure = DiskPressure(reserve_bytes=1 << 60, dirty_share=0.9)
    assert not disk.allows(0.1, after_s=FREE_CHECK_S)
    assert not disk.allows(0.1, after_s=10 * PATIENCE_S)
