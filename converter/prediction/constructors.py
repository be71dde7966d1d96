"""What a library's constructors reach: the pages of code and constants that are read before the program runs.

A large library has thousands of them, one for each of its sources with a global object, spread over hundreds of
megabytes. Their addresses are in the file. What they call, and the constants they take the address of, is in their
code, relative to the instruction; it is read off without disassembling, so that a few bytes are taken for what they
are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from converter.prediction.elf import EM_X86_64, PAGE, Elf, Range, ReadAt, joined

#: Bytes of a constructor, and of what it calls, that are looked at.
_LOOKED_AT: Final = (4096, 1024)
#: mmap reads around a fault: see VM_MAX_READAHEAD and do_sync_mmap_readahead() of the kernel.
_AROUND: Final = 32 << 10
_MAX_FUNCTIONS: Final = 50_000
_ALIGNMENT: Final = 16  # of functions, by all compilers
#: call or jmp rel32; lea r64, [rip + disp32].
_REFERENCE: Final = re.compile(
    rb"[\xe8\xe9](?=(....))|[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d](?=(....))", re.S
)


def reached(elf: Elf, read: ReadAt) -> tuple[Range, ...]:
    """The parts of the file that are read when its constructors run, as far as can be told."""
    pages: set[int] = set()
    functions = list(dict.fromkeys(elf.constructors))[:_MAX_FUNCTIONS]
    seen = set(functions)
    for length in (*_LOOKED_AT, 0):
        called: list[int] = []
        for function in functions:
            offset = elf.offset(function)
            if offset is None or not elf.is_code(function):
                continue
            pages.add(function // PAGE)
            if length and elf.machine == EM_X86_64:
                for is_called, address in _references(read(offset, length), function):
                    if not is_called and not elf.is_code(address):  # a function whose address is taken is not read
                        pages.add(address // PAGE)
                    elif is_called and address not in seen:
                        called.append(address)
                        seen.add(address)
        functions = called[:_MAX_FUNCTIONS]
    return joined(list(_around(elf, pages)))


def _references(code: bytes, address: int) -> Iterator[tuple[bool, int]]:
    """(whether it is called, the address) of each that the code refers to."""
    for found in _REFERENCE.finditer(code):
        is_called = found[1] is not None
        distance = int.from_bytes(found[1] if is_called else found[2], "little", signed=True)
        target = address + found.end() + 4 + distance
        if not is_called or target % _ALIGNMENT == 0:
            yield is_called, target


def _around(elf: Elf, pages: Iterable[int]) -> Iterator[Range]:
    for page in pages:
        offset = elf.offset(page * PAGE)
        if offset is not None:
            yield Range(max(offset - _AROUND, 0), offset + _AROUND)
