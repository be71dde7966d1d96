"""The headers of one tar entry as they go out again: byte for byte, but for one padding record."""

from dataclasses import dataclass, field
from typing import Final

from converter.pax import Records, format_records, padded_pax_header, pax_header
from converter.tarheader import BLOCK, padding, with_checksum

#: The data of every regular file starts at a multiple of this: the block size of the EROFS metadata and the page size.
ALIGNMENT: Final = 4096


@dataclass(slots=True)
class HeaderGroup:
    """Everything in front of an entry's data: other headers, at most one live PAX header among them, its own."""

    before: list[bytes] = field(default_factory=list)
    after: list[bytes] = field(default_factory=list)
    pax_block: bytes | None = None
    pax_content: bytes = b""

    def add_pax(self, block: bytes, content: bytes) -> None:
        """A PAX header; an earlier one loses its meaning (the last one counts), and stays as it is."""
        if self.pax_block is not None:
            self.before += [self._pax_raw(), *self.after]
            self.after = []
        self.pax_block, self.pax_content = block, content

    def add_raw(self, data: bytes) -> None:
        """Any other header with its data and padding."""
        (self.before if self.pax_block is None else self.after).append(data)

    def replace_records(self, records: Records) -> None:
        """Other records for the PAX header; it stays even when there are none left."""
        self.pax_content = format_records(records)

    def render(self, main: bytes, position: int, *, align: bool, after_data: bool) -> bytes:
        """All headers, to be written at `position`; with `align`, what follows them starts at a multiple of 4096.

        With `after_data` the first byte is NUL: it stands right behind a file's last byte in the file's last page, and
        whoever maps the file as text looks for its end there.
        """
        fixed = sum(map(len, self.before)) + sum(map(len, self.after)) + len(main)
        pax = b"" if self.pax_block is None else self._pax_raw()
        gap = -(position + fixed + len(pax)) % ALIGNMENT if align else 0
        only_main = not fixed - len(main) and not pax
        if gap or (after_data and only_main):
            gap = self._sufficient(gap, align=align)
            pax = padded_pax_header(self.pax_content, self.pax_block, gap)
        rendered = b"".join((*self.before, pax, *self.after, main))
        # The name of a header of metadata means nothing.
        return with_checksum(b"\0" + rendered[1:BLOCK]) + rendered[BLOCK:] if after_data else rendered

    def _sufficient(self, gap: int, *, align: bool) -> int:
        """A header of its own needs a block for itself and one for data."""
        if self.pax_block is not None or gap >= 2 * BLOCK:
            return gap
        return gap + ALIGNMENT if align else 2 * BLOCK

    def _pax_raw(self) -> bytes:
        assert self.pax_block is not None
        declared = self.pax_block[124:136]
        if declared[:1] != b"\x80" and int(declared.strip(b" \0") or b"0", 8) == len(self.pax_content):
            return self.pax_block + self.pax_content + bytes(padding(len(self.pax_content)))
        return pax_header(self.pax_content, self.pax_block)
