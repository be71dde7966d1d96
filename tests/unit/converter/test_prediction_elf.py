"""Which libraries a program needs, and what of them is read."""

import posixpath
import shutil
import struct
import subprocess
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.prediction import start
from converter.prediction.constructors import reached
from converter.prediction.elf import PAGE, Elf, Range, joined, parse_elf, without
from converter.prediction.start import Command, predict
from tests.unit.converter.image_trees import Layer, Link, image, this_machine

TEXT, DATA = 0x1000, 0x401000  # addresses
TEXT_BYTES, DATA_BYTES = 2 << 20, 64 << 10
CODE_BYTES = 0x180000  # of the text; constants follow
DATA_AT = TEXT + TEXT_BYTES  # in the file
NAMES = b"\0.ctors\0.names\0"
X86, ARM = 62, 183


def library(
    *needed: str,
    search: str = "",
    constructors: tuple[int, ...] = (),
    ctors: tuple[int, ...] = (),
    code: dict[int, bytes] | None = None,
    machine: int = X86,
) -> bytes:
    """A shared library: 2 MiB of text with `code` at some addresses, then data, with its dynamic section."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in (*needed, search))
    places = [1]
    for name in needed:
        places.append(places[-1] + len(name) + 1)
    array, array_end = DATA + 0x8000, DATA + 0x8000 + 8 * len(constructors)
    slots = (*range(array, array_end, 8), *range(DATA + 0xA000, DATA + 0xA000 + 8 * len(ctors), 8))
    written = zip(slots, (*constructors, *ctors), strict=True)
    relative = {X86: 8, ARM: 1027}[machine]
    relocations = b"".join(struct.pack("<QQq", place, relative, address) for place, address in written)
    dynamic = [(1, place) for place in places[:-1]] + [(29, places[-1])] * bool(search)
    dynamic += [(5, DATA + 0x1000), (10, len(strings)), (7, DATA + 0x2000), (8, len(relocations))]
    dynamic += [(25, array), (27, 8 * len(constructors)), (0, 0)]
    data = bytearray(DATA_BYTES)
    for at, part in (
        *((0, b"".join(struct.pack("<QQ", *entry) for entry in dynamic)), (0x1000, strings), (0x2000, relocations)),
        (0xF000, NAMES),
    ):
        data[at : at + len(part)] = part
    text = bytearray(TEXT_BYTES)
    for address, part in (code or {}).items():
        text[address - TEXT : address - TEXT + len(part)] = part
    sections = [
        struct.pack("<IIQQQQIIQQ", 1, 1, 3, DATA + 0xA000, DATA_AT + 0xA000, 8 * len(ctors), 0, 0, 8, 8),
        struct.pack("<IIQQQQIIQQ", 8, 3, 0, 0, DATA_AT + 0xF000, len(NAMES), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 0, 1, 6, TEXT, TEXT, CODE_BYTES, 0, 0, 16, 0),
        struct.pack("<IIQQQQIIQQ", 0, 3, 2, DATA + 0x1000, DATA_AT + 0x1000, len(strings), 0, 0, 1, 0),
    ]
    segments = [
        struct.pack("<IIQQQQQQ", 1, 5, TEXT, TEXT, TEXT, TEXT_BYTES, TEXT_BYTES, PAGE),
        struct.pack("<IIQQQQQQ", 1, 6, DATA_AT, DATA, DATA, DATA_BYTES, DATA_BYTES, PAGE),
        struct.pack("<IIQQQQQQ", 2, 6, DATA_AT, DATA, DATA, 16 * len(dynamic), 16 * len(dynamic), 8),
    ]
    end = DATA_AT + DATA_BYTES
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    sizes = (64, 56, len(segments), 64, len(sections), 1)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, end, 0, *sizes)
    return (header + b"".join(segments)).ljust(TEXT, b"\0") + text + data + b"".join(sections)


def reader(data: bytes, offset: int, length: int) -> bytes:
    return data[offset : offset + length]


def parsed(data: bytes) -> Elf:
    elf = parse_elf(partial(reader, data))
    assert elf is not None
    return elf


def covers(ranges: tuple[Range, ...], address: int) -> bool:
    """Whether the text at an address is in one of the file's ranges; addresses of text are its offsets."""
    return any(start <= address < end for start, end in ranges)


def call(place: int, target: int, opcode: int = 0xE8) -> bytes:
    return bytes([opcode]) + struct.pack("<i", target - place - 5)


def address_of(place: int, target: int) -> bytes:
    """lea rdi, [rip + ...]"""
    return b"\x48\x8d\x3d" + struct.pack("<i", target - place - 7)


def test_what_is_needed_and_where_it_is_looked_for() -> None:
    elf = parsed(library("libone.so.1", "libtwo.so", search="$ORIGIN/../lib:/opt/lib"))
    assert elf.needed == ("libone.so.1", "libtwo.so")
    assert elf.search == ("$ORIGIN/../lib", "/opt/lib")


def test_tables_and_the_pages_that_relocations_write_are_linked() -> None:
    elf = parsed(library("libone.so", constructors=(0x2000,)))
    linked = {page for start, end in elf.linked for page in range(start // PAGE, -(-end // PAGE))}
    strings, array = (DATA_AT + 0x1000) // PAGE, (DATA_AT + 0x8000) // PAGE
    assert {0, DATA_AT // PAGE, strings, array} <= linked
    assert not linked & set(range(1, DATA_AT // PAGE))


@pytest.mark.parametrize("table", ["constructors", "ctors"])
def test_constructors_are_followed_over_calls_to_constants(table: str) -> None:
    first, called, jumped, constant = 0x2000, 0x100000, 0x140000, 0x1C0000
    code = {
        first: b"\x55" + call(first + 1, called),
        called: call(called, jumped, 0xE9) + address_of(called + 5, 0xA0000) + address_of(called + 12, constant),
    }
    data = library(code=code, **{table: (first, 0x81000)})  # type: ignore[arg-type]
    ranges = reached(parsed(data), partial(reader, data))
    assert [covers(ranges, place) for place in (first, 0x81000, called, jumped, constant)] == [True] * 5
    assert not covers(ranges, 0x60000)
    assert not covers(ranges, 0xA0000)  # its address is taken
    assert sum(end - start for start, end in ranges) < 6 * (64 << 10)


def test_of_another_machine_only_the_constructors_are_known() -> None:
    data = library(constructors=(0x2000,), code={0x2000: call(0x2000, 0x100000)}, machine=ARM)
    ranges = reached(parsed(data), partial(reader, data))
    assert (covers(ranges, 0x2000), covers(ranges, 0x100000)) == (True, False)


def test_functions_that_call_each_other_end() -> None:
    one, two = 0x2000, 0x100000
    data = library(constructors=(one, one), code={one: call(one, two) + call(one + 5, one), two: call(two, one)})
    assert reached(parsed(data), partial(reader, data))


def test_libraries_are_loaded_with_those_they_need() -> None:
    layer: Layer = {
        "opt/bin/server": library("liba.so.1", "libabsent.so", search="${ORIGIN}/../lib"),
        "opt/lib/liba.so.1": Link("liba.so.1.2"),
        "opt/lib/liba.so.1.2": library("libb.so", "libc.so.6"),
        "opt/lib/libb.so": library("liba.so.1"),
        "usr/lib/x86_64-linux-gnu/libc.so.6": library(),
        "given/libc.so.6": library(),
    }
    files = image(layer)
    places = {file.offset: file.path for file in files.walk("/")}

    def loaded(**environment: str) -> list[str]:
        reaches = predict(files, Command(words=("/opt/bin/server",), environment=environment))
        return [places[reach.offset] for reach in reaches if reach.offset in places]

    system = "/usr/lib/x86_64-linux-gnu/libc.so.6"
    assert loaded() == ["/opt/bin/server", "/opt/lib/liba.so.1.2", "/opt/lib/libb.so", system]
    assert loaded(LD_LIBRARY_PATH="/given:/nowhere")[-1] == "/given/libc.so.6"


def test_a_large_library_is_read_in_part() -> None:
    big = library(constructors=(0x2000,)) + bytes(12 << 20)
    reaches = predict(image({"big": big}), Command(words=("/big",)))
    assert 0 < sum(reach.length for reach in reaches) < 512 << 10
    ends = sorted((reach.offset, reach.offset + reach.length) for reach in reaches)
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))


def test_all_are_linked_before_the_first_constructor_runs() -> None:
    def large(*needed: str) -> bytes:
        return library(*needed, search="/lib", constructors=(0x2000,)) + bytes(12 << 20)

    files = image({"lib/a.so": large("b.so"), "lib/b.so": large("c.so"), "lib/c.so": large()})
    places = {file.offset: posixpath.basename(file.path)[0] for file in files.walk("/")}
    reaches = predict(files, Command(words=("/lib/a.so",)))
    order = [places[max(place for place in places if place <= reach.offset)] for reach in reaches]
    assert [name for name, _ in groupby(order)] == ["a", "b", "c", "b", "a"]  # c, linked last, runs first


@pytest.mark.skipif(shutil.which("ldd") is None, reason="this machine has no ldd")
def test_what_this_machines_linker_loads_is_predicted() -> None:
    """Against the truth: what ldd(1) tells of some programs of this machine."""
    for program in ("/usr/bin/openssl", "/usr/bin/tar", "/usr/bin/git"):
        if not Path(program).exists():
            continue
        output = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        truth = {str(Path(word).resolve()) for word in output.split() if word.startswith("/")}
        assert len(truth) > 2
        files = this_machine(["/usr/bin", "/lib", "/lib64", *sorted({str(Path(path).parent) for path in truth})])
        paths = {file.offset: file.path for file in files.walk("/") if file.size}
        read = {paths.get(reach.offset) for reach in predict(files, Command(words=(program,)))}
        assert truth <= read, program


def test_ranges_are_joined_where_they_touch() -> None:
    ranges = [Range(4, 6), Range(0, 2), Range(2, 3), Range(5, 9), Range(7, 8), Range(10, 10)]
    assert joined(ranges) == (Range(0, 3), Range(4, 9))


_RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8))).map(
    lambda found: joined([Range(start, start + length) for start, length in found])
)


@given(_RANGES, _RANGES)
def test_one_without_another(ranges: tuple[Range, ...], taken: tuple[Range, ...]) -> None:
    def places(found: tuple[Range, ...]) -> list[int]:
        return [place for start, end in found for place in range(start, end)]

    assert places(without(ranges, taken)) == [place for place in places(ranges) if place not in places(taken)]


def test_constructors_that_need_no_relocation_are_known() -> None:
    data = bytearray(library(constructors=(0x2000,)))
    struct.pack_into("<Q", data, DATA_AT + 0x8000, 0x81000)
    ranges = reached(parsed(bytes(data)), partial(reader, bytes(data)))
    assert covers(ranges, 0x81000)


def test_pages_that_packed_relocations_write_are_linked() -> None:
    data = bytearray(library())
    # In place of the relocations: one at the page 3, and in the bitmap behind it one of the 63 words from 0x4f00 on.
    packed = struct.pack("<QQQ", DATA + 0x3000, DATA + 0x4EF8, 1 << 5 | 1)
    data[DATA_AT + 0x2000 : DATA_AT + 0x2000 + len(packed)] = packed
    dynamic = struct.pack("<QQQQ", 36, DATA + 0x2000, 35, len(packed))
    data[DATA_AT : DATA_AT + 16 * 2] = struct.pack("<QQ", 5, DATA + 0x1000) + struct.pack("<QQ", 10, 1)
    data[DATA_AT + 16 * 2 : DATA_AT + 16 * 4] = dynamic
    linked = {page for start, end in parsed(bytes(data)).linked for page in range(start // PAGE, -(-end // PAGE))}
    assert {(DATA_AT + page * PAGE) // PAGE for page in (3, 4, 5)} <= linked
    assert (DATA_AT + 7 * PAGE) // PAGE not in linked


def test_what_is_read_around_the_end_of_a_file_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "WHOLE_LIBRARY_BYTES", 0)
    last = DATA + DATA_BYTES - PAGE
    data = library(constructors=(0x2000,), code={0x2000: address_of(0x2000, last)})
    # The dynamic section where the file ends, so that its page is linked, and what is around the constant goes beyond.
    at = 64 + 2 * 56
    moved = struct.pack("<IIQQQQQQ", 2, 6, len(data), DATA, DATA, 16 * 8, 16 * 8, 8)
    data = data[:at] + moved + data[at + 56 :] + data[DATA_AT : DATA_AT + 16 * 8]
    reaches = predict(image({"lib": data}), Command(words=("/lib",)))
    assert all(reach.length > 0 for reach in reaches)
    assert max(reach.offset + reach.length for reach in reaches) == len(data)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"#!/bin/sh", b"\x7fELF\x01\x01" + bytes(60), b"\x7fELF\x02\x01"])
def test_other_files_are_none(data: bytes) -> None:
    assert parse_elf(partial(reader, data)) is None


_SOUND = library("liba.so", search="/x", constructors=(0x2000, 0x3000), code={0x2000: call(0x2000, 0x9000)})
_SPOTS = st.one_of(
    *(
        st.integers(0, 64 + 3 * 56),
        st.integers(DATA_AT, DATA_AT + 0x200),
        st.integers(DATA_AT + 0x2000, len(_SOUND) - 1),
    )
)


@given(st.lists(st.tuples(_SPOTS, st.binary(min_size=1, max_size=8)), max_size=6), st.integers(0, len(_SOUND)))
def test_nothing_that_a_file_says_does_harm(changes: list[tuple[int, bytes]], length: int) -> None:
    data = bytearray(_SOUND)
    for at, part in changes:
        data[at : at + len(part)] = part
    read = partial(reader, bytes(data[: max(length, len(_SOUND) - length)]))
    elf = parse_elf(read)
    if elf is not None:
        for start, end in reached(elf, read):
            assert 0 <= start < end
