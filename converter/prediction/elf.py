"""ELF files as the dynamic linker sees them: which others they need, and which of their pages it reads to link them.

Sources: System V ABI, chapters 4 and 5, and its AMD64 supplement; ld.so(8). 64-bit little-endian files: what images
for accelerators run on.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

#: Bytes [offset, offset + length) of the file, as many as there are.
ReadAt = Callable[[int, int], bytes]

PAGE: Final = 4096
#: Of the file: magic, 64 bits, little-endian.
_IDENT: Final = b"\x7fELF\x02\x01"
# e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, then six halves from e_ehsize on
_HEADER: Final = struct.Struct("<16xHHIQQQIHHHHHH")
# p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
# sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, sh_info, sh_addralign, sh_entsize
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC: Final = struct.Struct("<QQ")
_RELOCATION_WORDS: Final = 3  # r_offset, r_info, r_addend
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NULL, DT_NEEDED, DT_STRTAB, DT_RELA, DT_RELASZ, DT_STRSZ, DT_RPATH = 0, 1, 5, 7, 8, 10, 15
DT_INIT_ARRAY, DT_INIT_ARRAYSZ, DT_RUNPATH, DT_RELRSZ, DT_RELR = 25, 27, 29, 35, 36
SHF_ALLOC, SHF_EXECINSTR = 2, 4
#: Sections with what the linker searches and works off: symbols, strings, relocations, hashes, versions.
_TABLES: Final = frozenset({3, 4, 5, 9, 11, 19, 0x6FFFFFF6, 0x6FFFFFFD, 0x6FFFFFFE, 0x6FFFFFFF})
#: What relative relocations are called; they hold the addresses of constructors.
_RELATIVE: Final = {62: 8, 183: 1027}
EM_X86_64: Final = 62
#: Bounds of what a file may claim; far above what linkers write.
_MAX_HEADERS: Final = 4096
_MAX_TABLE: Final = 256 << 20


class Range(NamedTuple):
    """Bytes [start, end) of a file."""

    start: int
    end: int


class Segment(NamedTuple):
    """Bytes [offset, offset + size) of the file, at an address in memory."""

    address: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Elf:
    """One file. Names and paths are as they are written there: `$ORIGIN` is not replaced."""

    machine: int
    interpreter: str | None
    needed: tuple[str, ...]
    search: tuple[str, ...]  # DT_RUNPATH, else DT_RPATH
    segments: tuple[Segment, ...]  # by address
    code: tuple[Range, ...]  # addresses of instructions
    linked: tuple[Range, ...]  # what is read to load and relocate it
    constructors: tuple[int, ...]  # addresses of what it executes before the program does

    def is_code(self, address: int) -> bool:
        """Whether there are instructions at an address."""
        number = bisect_right(self.code, address, key=lambda code: code.start) - 1
        return number >= 0 and address < self.code[number].end

    def offset(self, address: int) -> int | None:
        """Where an address is in the file, if it is."""
        return _offset(self.segments, address)


def parse_elf(read: ReadAt) -> Elf | None:
    """None for what is no such file, or makes no sense."""
    try:
        return _Parser(read).elf()
    except (struct.error, ValueError, OverflowError):
        return None


class _Parser:
    def __init__(self, read: ReadAt) -> None:
        self._read = read
        head = read(0, _HEADER.size)
        if not head.startswith(_IDENT):
            raise ValueError("no 64-bit little-endian ELF file")
        fields = _HEADER.unpack(head)
        self._machine, at, sections_at, (size, count, section_size, section_count, self._name_section) = (
            *(fields[1], fields[4], fields[5]),
            fields[8:],
        )
        rows = self._rows(_SEGMENT, at, size, count)
        self._headers = Range(0, at + size * count)
        self._segments = tuple(
            sorted(
                Segment(address, offset, length) for kind, _, offset, address, _, length, *_ in rows if kind == PT_LOAD
            )
        )
        self._special = {kind: (offset, length) for kind, _, offset, _, _, length, *_ in rows if kind != PT_LOAD}
        self._sections = self._rows(_SECTION, sections_at, section_size, section_count)
        self._dynamic = list(self._dynamic_entries())
        self._values = dict(self._dynamic)

    def elf(self) -> Elf:
        strings = self._table(DT_STRTAB, DT_STRSZ)
        interpreter = self._read(*self._special[PT_INTERP])[:PAGE] if PT_INTERP in self._special else b""
        search = next((_name(strings, self._values[tag]) for tag in (DT_RUNPATH, DT_RPATH) if tag in self._values), "")
        words = _words(self._table(DT_RELA, DT_RELASZ), _RELOCATION_WORDS)
        return Elf(
            machine=self._machine,
            interpreter=_text(interpreter.split(b"\0")[0]) or None,
            needed=tuple(_name(strings, at) for tag, at in self._dynamic if tag == DT_NEEDED),
            search=tuple(filter(None, search.split(":"))),
            segments=self._segments,
            code=joined([Range(row[3], row[3] + row[5]) for row in self._sections if row[2] & SHF_EXECINSTR]),
            linked=joined([self._headers, *self._tables(), *self._relocated(words)]),
            constructors=tuple(self._constructors(words)),
        )

    def _rows(self, row: struct.Struct, at: int, size: int, count: int) -> list[tuple[int, ...]]:
        if not count:
            return []
        if size < row.size or count > _MAX_HEADERS:
            raise ValueError("rows of an impossible size or number")
        data = self._read(at, size * count)
        return [row.unpack_from(data, size * number) for number in range(count)]

    def _dynamic_entries(self) -> Iterator[tuple[int, int]]:
        offset, length = self._special.get(PT_DYNAMIC, (0, 0))
        data = self._read(offset, min(length, _MAX_HEADERS * _DYNAMIC.size))
        for tag, value in _DYNAMIC.iter_unpack(data[: len(data) // _DYNAMIC.size * _DYNAMIC.size]):
            if tag == DT_NULL:
                return
            yield tag, value

    def _table(self, address_tag: int, size_tag: int) -> bytes:
        """What the dynamic section says is at an address."""
        return self._at(self._values.get(address_tag, 0), self._values.get(size_tag, 0))

    def _at(self, address: int, length: int) -> bytes:
        offset = _offset(self._segments, address)
        return self._read(offset, min(length, _MAX_TABLE)) if offset is not None and length else b""

    def _tables(self) -> Iterator[Range]:
        for _, kind, flags, _, offset, size, *_ in self._sections:
            if kind in _TABLES and flags & SHF_ALLOC:
                yield Range(offset, offset + size)
        offset, length = self._special.get(PT_DYNAMIC, (0, 0))
        yield Range(offset, offset + length)

    def _relocated(self, words: Sequence[int]) -> Iterator[Range]:
        """The pages that relocations write to."""
        packed = _words(self._table(DT_RELR, DT_RELRSZ))
        for page in {address // PAGE for address in (*words[::_RELOCATION_WORDS], *_unpacked(packed))}:
            if (offset := _offset(self._segments, page * PAGE)) is not None:
                yield Range(offset, offset + PAGE)

    def _constructors(self, words: Sequence[int]) -> Iterator[int]:
        """What DT_INIT_ARRAY, and `.ctors` of older compilers, have in place or from relocations: the addends."""
        tables = [(self._values.get(DT_INIT_ARRAY, 0), self._values.get(DT_INIT_ARRAYSZ, 0)), *self._ctors()]
        kind = _RELATIVE.get(self._machine)
        for first, length in tables:
            yield from filter(None, _words(self._at(first, length)))
            places = range(first, first + length)
            for number in range(0, len(words) if length else 0, _RELOCATION_WORDS):
                if words[number] in places and words[number + 1] == kind:
                    yield words[number + 2]

    def _ctors(self) -> Iterator[tuple[int, int]]:
        """The address and length of `.ctors`."""
        if not self._name_section < len(self._sections):
            return
        _, _, _, _, offset, size, *_ = self._sections[self._name_section]
        names = self._read(offset, min(size, _MAX_TABLE))
        for name, _, _, address, _, length, *_ in self._sections:
            if names.startswith(b".ctors\0", name):
                yield address, length


def _offset(segments: Sequence[Segment], address: int) -> int | None:
    number = bisect_right(segments, address, key=lambda segment: segment.address) - 1
    if number < 0:
        return None
    found = segments[number]
    return address - found.address + found.offset if address < found.address + found.size else None


def _words(data: bytes, multiple: int = 1) -> array[int]:
    """64-bit numbers, as many as there are whole rows of `multiple`."""
    words = array("Q", data[: len(data) // (8 * multiple) * 8 * multiple])
    if sys.byteorder == "big":
        words.byteswap()
    return words


def _unpacked(packed: Iterable[int]) -> Iterator[int]:
    """Addresses in all pages that packed relative relocations write to.

    An even word is the address of one; an odd one is a bitmap of the 63 words that follow the last.
    """
    following = 0
    for word in packed:
        if word & 1:
            if word > 1:
                yield from (following, following + 62 * 8)
            following += 63 * 8
        else:
            yield word
            following = word + 8


def joined(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """In order, none touching the next."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1].end:
            found[-1] = Range(found[-1].start, max(end, found[-1].end))
        elif start < end:
            found.append(Range(start, end))
    return tuple(found)


def without(ranges: Sequence[Range], taken: Sequence[Range]) -> tuple[Range, ...]:
    """What is in `ranges` and not in `taken`; both are joined."""
    found: list[Range] = []
    left = list(reversed(taken))
    for start, end in ranges:
        while left and left[-1].start < end:
            if left[-1].end > start:
                if start < left[-1].start:
                    found.append(Range(start, left[-1].start))
                start = max(start, left[-1].end)
            if left[-1].end > end:
                break
            left.pop()
        if start < end:
            found.append(Range(start, end))
    return tuple(found)


def _name(strings: bytes, at: int) -> str:
    return _text(strings[at : strings.index(b"\0", at)])


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
