"""A layer's tar, read as a stream and given out padded: every regular file's data starts at a multiple of 4096.

What is read is what Go's archive/tar reads (it is what extracts layers everywhere); the archive that comes out
extracts to the same tree with every tool. Beside the bytes it collects the layer's entries (`LayerTree`).

Passed through as they are: all headers, and the padding behind data. Changed: a PAX `comment` record where data has to
move to a multiple of 4096; sparse files are expanded; contiguous files (type '7', which containerd refuses) become
regular ones; whatever follows the end of the archive is replaced by zeros up to a multiple of 4096. A padded archive
comes out unchanged, so converting twice changes nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from converter import sparse
from converter.errors import MalformedLayer
from converter.headergroup import ALIGNMENT, HeaderGroup
from converter.pax import Records, parse_decimal, parse_records, parse_time_ns
from converter.tarheader import (
    AREGTYPE,
    BLOCK,
    CONTTYPE,
    DIRTYPE,
    GNUTYPE_LONGLINK,
    GNUTYPE_LONGNAME,
    GNUTYPE_SPARSE,
    HEADER_ONLY,
    KNOWN,
    REGTYPE,
    REGULAR,
    XGLTYPE,
    XHDTYPE,
    ZERO_BLOCK,
    TarHeader,
    as_regular,
    padding,
    parse_header,
    text,
)
from converter.tree import LayerTree, Member

#: Go's archive/tar refuses longer metadata entries, so nothing could extract them.
_MAX_META: Final = 1 << 20
_ZEROS: Final = memoryview(bytes(1 << 18))
_XATTR: Final = b"SCHILY.xattr."
_MAX_SIZE: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive bytes of the padded tar. `file_size` > 0: they begin a regular file of that many."""

    data: bytes | memoryview
    file_size: int = 0


class _Input:
    """Exact reads from a `read(n)` that gives at most n bytes, and b"" at the end."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._view = memoryview(b"")

    def _fill(self) -> bool:
        if not self._view:
            self._view = memoryview(self._read())
        return bool(self._view)

    def piece(self, limit: int) -> memoryview:
        """Between one and `limit` bytes; MalformedLayer at the end."""
        if not self._fill():
            raise MalformedLayer("tar ends in the middle of an entry")
        piece, self._view = self._view[:limit], self._view[limit:]
        return piece

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        parts = []
        while size:
            part = self.piece(size)
            parts.append(part)
            size -= len(part)
        return parts[0].tobytes() if len(parts) == 1 else b"".join(parts)

    def padding(self, size: int) -> bytes:
        """`size` bytes; zeros where the input ends first, as some writers leave the last entry's padding out."""
        found = b""
        while len(found) < size and self._fill():
            found += self.piece(size - len(found))
        return found.ljust(size, b"\0")

    def block(self) -> bytes | None:
        """The next 512 bytes, None at a clean end."""
        return self.take(BLOCK) if self._fill() else None

    def drain(self) -> None:
        """Read to the end: digests are taken below, over everything there is."""
        while self._fill():
            self._view = memoryview(b"")


class PaddedTar:
    """Iterate for the padded tar's bytes; afterwards `size` is its length and `tree` knows every entry.

    `read()` gives the next bytes of the source tar, b"" at its end; it is called until then. Raises MalformedLayer for
    anything an extractor would refuse: damaged or truncated headers, unknown entry types, names that lead nowhere.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._input = _Input(read)
        self.tree = LayerTree()
        self.size = 0
        #: The last file ended at the end of a block of the tar, but not of a page: the next header follows at once.
        self._ends_in_page = False

    def __iter__(self) -> Iterator[Piece]:
        for piece in self._pieces():
            self.size += len(piece.data)
            yield piece

    def _pieces(self) -> Iterator[Piece]:
        while (entry := self._next_entry()) is not None:
            yield from self._entry(*entry)
        self._input.drain()
        end = 2 * BLOCK
        yield Piece(bytes(end + -(self.size + end) % ALIGNMENT))

    def _next_entry(self) -> tuple[HeaderGroup, TarHeader, Records] | None:
        """The headers up to an entry's own, with its names and numbers as the extended headers say."""
        group = HeaderGroup()
        records: Records = []
        longname = longlink = b""
        while (header := self._header()) is not None:
            if header.typeflag not in (XHDTYPE, XGLTYPE, GNUTYPE_LONGNAME, GNUTYPE_LONGLINK):
                return group, _merge(header, records, longname, longlink), records
            content, raw = self._meta(header)
            if header.typeflag == XHDTYPE:
                records = parse_records(content)
                group.add_pax(header.raw, content)
                continue
            group.add_raw(raw)
            if header.typeflag == GNUTYPE_LONGNAME:
                longname = text(content)
            elif header.typeflag == GNUTYPE_LONGLINK:
                longlink = text(content)
            else:  # a global header: checked, passed on, and without effect, as in Go's reader
                parse_records(content)
        if group != HeaderGroup():
            raise MalformedLayer("tar ends after an extended header")
        return None

    def _header(self) -> TarHeader | None:
        block = self._input.block()
        if block == ZERO_BLOCK:
            if self._input.block() not in (ZERO_BLOCK, None):
                raise MalformedLayer("tar: data after a lone zero block")
            return None
        if block is None:
            return None
        header = parse_header(block)
        if header.typeflag not in KNOWN:
            raise MalformedLayer(f"tar entry {_show(header.name)}: type {header.typeflag!r} cannot be extracted")
        return header

    def _meta(self, header: TarHeader) -> tuple[bytes, bytes]:
        """Data of a metadata entry, and all its bytes."""
        if header.size > _MAX_META:
            raise MalformedLayer(f"tar: a metadata entry of {header.size} bytes")
        content = self._input.take(header.size + padding(header.size))
        return content[: header.size], header.raw + content

    def _entry(self, group: HeaderGroup, header: TarHeader, records: Records) -> Iterator[Piece]:
        size = 0 if header.typeflag in HEADER_ONLY else header.size
        if header.typeflag == GNUTYPE_SPARSE:
            real, extents = sparse.old_gnu_map(header.raw, self._input.take)
            yield from self._expanded(group, header, records, real, extents, size)
        elif header.typeflag in REGULAR and (version := sparse.pax_version(records)) is not None:
            yield from self._pax_sparse(group, header, records, version)
        else:
            main = as_regular(header.raw, size) if header.typeflag == CONTTYPE else header.raw
            yield self._headers(group, main, align=size > 0)
            self._remember(header, records, size)
            yield from self._copied(size, size)
            yield Piece(self._input.padding(padding(size)))

    def _headers(self, group: HeaderGroup, main: bytes, *, align: bool) -> Piece:
        after_data, self._ends_in_page = self._ends_in_page, False
        return Piece(group.render(main, self.size, align=align, after_data=after_data))

    def _pax_sparse(self, group: HeaderGroup, header: TarHeader, records: Records, version: str) -> Iterator[Piece]:
        stored = header.size
        if version == "1.0":
            used, extents = sparse.read_map_1_0(self._input.take)
            stored -= used
        else:
            extents = sparse.pax_map(records)
        real = sparse.real_size(records)
        if real is None:
            raise MalformedLayer(f"sparse file {_show(header.name)}: no size")
        name = dict(records).get(b"GNU.sparse.name") or header.name
        kept = [
            (key, value)
            for key, value in records
            if not key.startswith(sparse.PREFIX) and key not in (b"path", b"size")
        ]
        group.replace_records([*kept, (b"path", name)])
        header = _renamed(header, name)
        yield from self._expanded(group, header, records, real, extents, stored)

    def _expanded(
        self,
        group: HeaderGroup,
        header: TarHeader,
        records: Records,
        real: int,
        extents: list[sparse.Extent],
        stored: int,
    ) -> Iterator[Piece]:
        if not 0 <= real < _MAX_SIZE:
            raise MalformedLayer(f"sparse file {_show(header.name)}: impossible size {real}")
        sparse.check_extents(extents, real, stored)
        yield self._headers(group, as_regular(header.raw, real), align=real > 0)
        self._remember(header, records, real)
        position = 0
        for offset, length in [*extents, (real, 0)]:
            yield from _zeros(offset - position, real if position == 0 else 0)
            yield from self._copied(length, real if offset == 0 else 0)
            position = offset + length
        self._input.padding(padding(stored))
        yield from _zeros(padding(real), 0)

    def _copied(self, size: int, file_size: int) -> Iterator[Piece]:
        while size:
            piece = self._input.piece(size)
            size -= len(piece)
            yield Piece(piece, file_size)
            file_size = 0

    def _remember(self, header: TarHeader, records: Records, size: int) -> None:
        """Called when the headers are out: `self.size` is then where the data starts."""
        self._ends_in_page = size % BLOCK == 0 and size % ALIGNMENT != 0
        self.tree.add(
            Member(
                name=header.name,
                linkname=header.linkname,
                typeflag=_plain_type(header),
                mode=header.mode & 0o7777,
                uid=_owner(header.uid),
                gid=_owner(header.gid),
                mtime_ns=_mtime_ns(header, records),
                size=size,
                data_offset=self.size if size else None,
                rdev=header.rdev,
                xattrs={key[len(_XATTR) :]: value for key, value in records if key.startswith(_XATTR)},
            )
        )


def _zeros(size: int, file_size: int) -> Iterator[Piece]:
    while size > 0:
        piece = _ZEROS[:size]
        size -= len(piece)
        yield Piece(piece, file_size)
        file_size = 0


def _merge(header: TarHeader, records: Records, longname: bytes, longlink: bytes) -> TarHeader:
    """The header with what its extended headers say; an empty PAX value leaves the header's own (Go, mergePAX)."""
    table = {key: value for key, value in records if value}
    return TarHeader(
        raw=header.raw,
        name=longname or table.get(b"path", header.name),
        linkname=longlink or table.get(b"linkpath", header.linkname),
        typeflag=header.typeflag,
        mode=header.mode,
        uid=_number(table, b"uid", header.uid),
        gid=_number(table, b"gid", header.gid),
        size=_size(_number(table, b"size", header.size)),
        mtime=header.mtime,
        rdev=header.rdev,
    )


def _renamed(header: TarHeader, name: bytes) -> TarHeader:
    return _merge(header, [(b"path", name)], b"", b"")


def _number(table: dict[bytes, bytes], key: bytes, otherwise: int) -> int:
    return parse_decimal(table[key], key.decode()) if key in table else otherwise


def _size(size: int) -> int:
    if not 0 <= size < _MAX_SIZE:
        raise MalformedLayer(f"tar entry: impossible size {size}")
    return size


def _plain_type(header: TarHeader) -> bytes:
    """V7 archives mark directories by a trailing slash."""
    if header.typeflag == AREGTYPE and header.name.endswith(b"/"):
        return DIRTYPE
    return REGTYPE if header.typeflag in REGULAR else header.typeflag


def _owner(number: int) -> int:
    """A uid or gid as chown(2) takes it: -1 leaves root, other negative ones wrap."""
    if number in (-1, 0xFFFFFFFF):
        return 0
    if not -(1 << 31) <= number < 1 << 32:
        raise MalformedLayer(f"tar entry: impossible owner {number}")
    return number & 0xFFFFFFFF


def _mtime_ns(header: TarHeader, records: Records) -> int:
    """Times before 1970 or beyond 64 bits of nanoseconds become 0: containerd, Docker and Podman extract them so."""
    value = dict(records).get(b"mtime")
    mtime_ns = parse_time_ns(value, "mtime") if value else header.mtime * 1_000_000_000
    return mtime_ns if 0 <= mtime_ns < 1 << 63 else 0


def _show(name: bytes) -> str:
    return repr(name[:200].decode(errors="backslashreplace"))
