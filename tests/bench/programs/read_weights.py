"""The program in the image of weights: it runs there, on the image's own Python, and nothing here imports it.

Reads /big once from front to back, by read(2) or through a mapping, and ends.
"""

import mmap
import sys

BUFFER = bytearray(1 << 20)
PAGE = 4096


def by_read(path: str) -> int:
    """Every byte into one buffer."""
    total = 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(BUFFER):
            total += count
    return total


def by_mapping(path: str) -> int:
    """One byte of every page."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return sum(len(mapped[at : at + len(BUFFER) : PAGE]) for at in range(0, len(mapped), len(BUFFER)))


{"read": by_read, "mmap": by_mapping}[sys.argv[1]]("/big")
