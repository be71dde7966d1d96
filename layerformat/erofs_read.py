"""EROFS metadata to entries, and the check that makes an image from a registry safe to mount."""

import stat
from collections.abc import Iterator
from typing import NamedTuple

from layerformat.entries import MAX_ID, MAX_PATH_BYTES, Entry
from layerformat.erofs import (
    BLOCK,
    DEVICE_ID,
    FORMAT_CHUNK,
    FORMAT_PLAIN,
    FT_BY_IFMT,
    MAX_DEVICE_BYTES,
    META_START,
    ORDINARY_FILE,
    SLOT,
    SuperBlock,
    chunk_format,
    decode_dev,
)
from layerformat.erofs_parse import (
    NO_RESERVED,
    Dirent,
    Place,
    locate,
    parse_chunk,
    parse_directory,
    parse_super_block,
    parse_symlink,
    parse_xattrs,
)
from layerformat.errors import FormatError

_FT_DIR = FT_BY_IFMT[stat.S_IFDIR]
_FT_REG = FT_BY_IFMT[stat.S_IFREG]
_DOTS = (b".", b"..")


class Extent(NamedTuple):
    """The blocks of the tar that a regular file with data occupies."""

    first: int
    blocks: int
    nid: int  # of the file's inode


def validate_metadata(image: bytes, *, device_bytes: int) -> list[Extent]:
    """FormatError unless `image` is one that our writer may have written for a tar of `device_bytes`.

    Returns where the files' data are, in the order of the tar.

    Checked besides each structure by itself: the directories are a tree, links are counted, no two structures of the
    image share a byte and none is unaccounted for, no two files share a block of the tar. Work and memory are linear in
    the image. CPU bound: about 10 us a file.
    """
    super_block = parse_super_block(image)
    if super_block.device_blocks * BLOCK != device_bytes:
        raise FormatError(
            f"EROFS super block: tar of {super_block.device_blocks} blocks, expected {device_bytes} bytes"
        )
    survey = _Survey(image, super_block)
    survey.run()
    return survey.extents


def read_metadata(image: bytes) -> Iterator[Entry]:
    """Every name in `image` as an Entry, parents before children.

    The first name of a file carries its inode, the others are links to it. The image is validated in full first (for
    the tar size it states), so that FormatError comes before any entry.
    """
    super_block = parse_super_block(image)
    _Survey(image, super_block).run()
    yield _entry(image, locate(image, super_block.root_nid), b"")
    first_name: dict[int, bytes] = {}
    stack = [(super_block.root_nid, b"")]
    while stack:
        nid, prefix = stack.pop()
        for name, child, file_type in parse_directory(image, locate(image, nid)):
            if name in _DOTS:
                continue
            path = prefix + name
            if file_type == _FT_DIR:
                stack.append((child, path + b"/"))
            yield _entry(image, locate(image, child), path, link=first_name.get(child))
            first_name.setdefault(child, path)


def _entry(image: bytes, place: Place, path: bytes, link: bytes | None = None) -> Entry:
    inode = place.inode
    mode = inode.i_mode
    chunked = inode.i_format == FORMAT_CHUNK
    is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    return Entry(
        path=path,
        mode=mode,
        uid=inode.i_uid,
        gid=inode.i_gid,
        mtime_ns=inode.i_mtime * 1_000_000_000 + inode.i_mtime_nsec,
        size=inode.i_size if chunked else 0,
        data_offset=parse_chunk(image, place, MAX_DEVICE_BYTES // BLOCK)[0] * BLOCK if chunked else None,
        rdev=decode_dev(inode.i_u) if is_device else (0, 0),
        target=parse_symlink(image, place) if stat.S_ISLNK(mode) else b"",
        link=link,
        xattrs=parse_xattrs(image, place),
    )


class _Survey:
    """One pass over an image that has to come out even."""

    def __init__(self, image: bytes, super_block: SuperBlock) -> None:
        self._image = image
        self._super = super_block
        self._directories: set[int] = set()
        self._links: dict[int, int] = {}  # names of each inode that is no directory
        self._types: dict[int, int] = {}  # what those names say it is
        self._used: list[tuple[int, int]] = [(0, META_START)]  # bytes of the image
        self.extents: list[Extent] = []

    def run(self) -> None:
        """FormatError at the first thing that is wrong."""
        self._walk()
        for nid, file_type in self._types.items():
            if not self._take_ordinary(nid, file_type):
                self._check_file(locate(self._image, nid), file_type)
        if len(self._directories) + len(self._types) != self._super.inos:
            raise FormatError(f"EROFS super block: {self._super.inos} inodes stated, another number found")
        self._check_extents()
        self._check_used()

    def _walk(self) -> None:
        """Visit every directory once, from the root, without recursion."""
        root = self._super.root_nid
        self._directories.add(root)
        stack = [(root, root, 0)]  # inode, its parent, bytes of its path with the slash that follows
        while stack:
            nid, parent, path_len = stack.pop()
            place = locate(self._image, nid)
            if not stat.S_ISDIR(place.inode.i_mode):
                raise FormatError(f"EROFS inode {nid}: named as a directory, but is none")
            self._account(place)
            subdirs = self._check_names(place, parent, path_len)
            if place.inode.i_nlink != 2 + len(subdirs):
                raise FormatError(f"EROFS inode {nid}: {place.inode.i_nlink} links, {len(subdirs)} subdirectories")
            stack.extend((dirent.nid, nid, path_len + len(dirent.name) + 1) for dirent in subdirs)

    def _check_names(self, place: Place, parent: int, path_len: int) -> list[Dirent]:
        """The subdirectories of a directory, whose names are all counted."""
        dots = {b".": place.nid, b"..": parent}
        links, types = self._links, self._types
        subdirs = []
        longest = 0
        for dirent in parse_directory(self._image, place):
            name, nid, file_type = dirent
            if name in dots:
                if dots.pop(name) != nid or file_type != _FT_DIR:
                    raise FormatError(f"EROFS inode {place.nid}: {name!r} leads elsewhere")
                continue
            longest = max(longest, len(name))
            if file_type == _FT_DIR:
                self._add_directory(nid)
                subdirs.append(dirent)
            else:
                links[nid] = links.get(nid, 0) + 1
                if types.setdefault(nid, file_type) != file_type:
                    raise FormatError(f"EROFS inode {nid}: names of it differ in type")
        if dots:
            raise FormatError(f"EROFS inode {place.nid}: directory without {sorted(dots)}")
        if longest and path_len + longest > MAX_PATH_BYTES:
            raise FormatError(f"EROFS inode {place.nid}: path too long below it")
        return subdirs

    def _add_directory(self, nid: int) -> None:
        if nid in self._directories:
            raise FormatError(f"EROFS inode {nid}: directory with two names")
        self._directories.add(nid)

    def _take_ordinary(self, nid: int, file_type: int) -> bool:
        """The verdict of `_check_file` for a regular file with data and without attributes, if it is a good one.

        All at once: nearly every file is of this kind, and a start waits for them all.
        """
        at = nid * SLOT
        end = at + ORDINARY_FILE.size
        if at < META_START or end > len(self._image):
            return False
        layout, attributes, mode, reserved, size, chunk, ino, uid, gid, _, nsec, links, reserved2, *index = (
            ORDINARY_FILE.unpack_from(self._image, at)
        )
        advise, device, first = index
        blocks = -(-size // BLOCK)
        good = (
            (layout == FORMAT_CHUNK and not attributes and file_type == _FT_REG and stat.S_ISREG(mode))
            and (size and chunk == chunk_format(size) and not advise and device == DEVICE_ID)
            and (first + blocks <= self._super.device_blocks and links == self._links[nid])
            and (0 < ino <= self._super.inos and uid <= MAX_ID and gid <= MAX_ID and nsec < 1_000_000_000)
            and (not reserved and reserved2 == NO_RESERVED)
        )
        if good:
            self._used.append((at, end))
            self.extents.append(Extent(first, blocks, nid))
        return good

    def _check_file(self, place: Place, file_type: int) -> None:
        nid, inode = place.nid, place.inode
        if FT_BY_IFMT[stat.S_IFMT(inode.i_mode)] != file_type:
            raise FormatError(f"EROFS inode {nid}: names say type {file_type}, mode is {inode.i_mode:#o}")
        if inode.i_nlink != self._links[nid]:
            raise FormatError(f"EROFS inode {nid}: {inode.i_nlink} links stated, {self._links[nid]} names")
        self._account(place)
        if stat.S_ISLNK(inode.i_mode):
            parse_symlink(self._image, place)
        elif inode.i_format == FORMAT_CHUNK and stat.S_ISREG(inode.i_mode):
            self.extents.append(Extent(*parse_chunk(self._image, place, self._super.device_blocks), nid))
        elif inode.i_format != FORMAT_PLAIN or inode.i_size:
            raise FormatError(f"EROFS inode {nid}: data that a file of this type cannot have")
        elif inode.i_u and not (stat.S_ISCHR(inode.i_mode) or stat.S_ISBLK(inode.i_mode)):
            raise FormatError(f"EROFS inode {nid}: device number on what is no device")

    def _account(self, place: Place) -> None:
        """What every inode has: a number in range, sound attributes, bytes that are its own."""
        if not 0 < place.inode.i_ino <= self._super.inos:
            raise FormatError(f"EROFS inode {place.nid}: number {place.inode.i_ino} of {self._super.inos}")
        if place.inode.i_xattr_icount:
            parse_xattrs(self._image, place)
        self._used.append((place.nid * SLOT, place.end))
        if place.blocks_end:
            self._used.append((place.blocks_at, place.blocks_end))

    def _check_extents(self) -> None:
        free_from = 0
        self.extents.sort()
        for first, blocks, _ in self.extents:
            if first < free_from:
                raise FormatError(f"EROFS image: two files share block {first} of the tar")
            free_from = first + blocks

    def _check_used(self) -> None:
        """No byte of the image twice, and zeros where nothing is."""
        image = self._image
        free_from = 0
        for start, end in [*sorted(self._used), (len(image), len(image))]:
            if start < free_from:
                raise FormatError(f"EROFS image: two structures share byte {start}")
            if start > free_from and image.count(0, free_from, start) != start - free_from:
                raise FormatError(f"EROFS image: bytes from {free_from} on belong to nothing")
            free_from = end
