"""Ways to break a valid EROFS image on purpose."""

import struct
from typing import NamedTuple

from layerformat.erofs import BLOCK, EROFS_SUPER_OFFSET, INODE_EXTENDED, SLOT, Inode, checksum
from layerformat.erofs_parse import Place, locate, parse_directory, parse_super_block


class Image:
    """A valid image that can be edited; `data` has its checksum mended, as an attacker would."""

    def __init__(self, image: bytes) -> None:
        self._image = bytearray(image)
        self.root_nid = parse_super_block(image).root_nid

    @property
    def data(self) -> bytes:
        """The image as edited."""
        self._image[EROFS_SUPER_OFFSET + 4 : EROFS_SUPER_OFFSET + 8] = checksum(self._image).to_bytes(4, "little")
        return bytes(self._image)

    def find(self, path: bytes) -> Place:
        """The inode of `path`."""
        image = bytes(self._image)
        place = locate(image, self.root_nid)
        for name in filter(None, path.split(b"/")):
            place = locate(image, next(d.nid for d in parse_directory(image, place) if d.name == name))
        return place

    def set_inode(self, path: bytes, **fields: int | bytes) -> "Image":
        """Other values for fields of an inode."""
        place = self.find(path)
        INODE_EXTENDED.pack_into(self._image, place.nid * SLOT, *place.inode._replace(**fields))  # type: ignore[arg-type]
        return self

    def write(self, at: int, data: bytes) -> "Image":
        """Other bytes at a place."""
        self._image[at : at + len(data)] = data
        return self

    def append(self, data: bytes) -> int:
        """One more block, counted in the super block; where it starts."""
        at = len(self._image)
        self._image += data.ljust(BLOCK, b"\0")
        struct.pack_into("<I", self._image, EROFS_SUPER_OFFSET + 36, len(self._image) // BLOCK)
        return at

    def dirent(self, directory: bytes, name: bytes) -> "DirentPlace":
        """Where the dirent and the name of `name` are, in a directory that is all inline."""
        place = self.find(directory)
        at = place.inline_at
        count = struct.unpack_from("<H", self._image, at + 8)[0] // 12
        for number in range(count):
            nameoff = struct.unpack_from("<H", self._image, at + 12 * number + 8)[0]
            if self._image[at + nameoff : at + nameoff + len(name)] == name:
                return DirentPlace(at + 12 * number, at + nameoff)
        raise KeyError(name)


class DirentPlace(NamedTuple):
    """Byte offsets in the image."""

    at: int
    name_at: int


__all__ = ["DirentPlace", "Image", "Inode"]
