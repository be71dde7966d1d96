"""What a layer's tar leaves behind when it is extracted, as the entries of a lower layer of an overlayfs.

The rules are those of containerd's extractor (pkg/archive: applyNaive with OverlayConvertWhiteout), which extracts a
layer by itself: names are cleaned, symbolic links in a parent path are followed inside the layer, a later entry
replaces an earlier one (a directory over a directory only changes its attributes), a hard link shares and updates the
inode of its target, `trusted.*` attributes are not taken from archives. The attributes of the root directory are not
taken either.
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from converter.errors import MalformedLayer
from converter.tarheader import BLKTYPE, CHRTYPE, DIRTYPE, FIFOTYPE, LNKTYPE, REGTYPE, SYMTYPE
from layerformat.entries import OPAQUE_XATTR, Entry, is_supported_xattr

_FORMATS: Final = {
    REGTYPE: stat.S_IFREG,
    SYMTYPE: stat.S_IFLNK,
    CHRTYPE: stat.S_IFCHR,
    BLKTYPE: stat.S_IFBLK,
    DIRTYPE: stat.S_IFDIR,
    FIFOTYPE: stat.S_IFIFO,
}
_WHITEOUT: Final = b".wh."
#: aufs keeps its own bookkeeping under such names (`.wh..wh.plnk`, `.wh..wh.orph`); only the opaque marker means
#: anything.
_AUFS: Final = b".wh..wh."
_OPAQUE_MARKER: Final = b".wh..wh..opq"
_OPAQUE: Final = {OPAQUE_XATTR: b"y"}
_MAX_NAME: Final = 255
_MAX_LINKS: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One tar entry. `typeflag` is one of LNKTYPE and the keys of `_FORMATS`; `mode` has permission bits only."""

    name: bytes
    typeflag: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    linkname: bytes = b""
    size: int = 0
    data_offset: int | None = None
    rdev: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Inode:
    """Shared by all hard links to it; identity matters, so no `eq`."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    data_offset: int | None
    rdev: tuple[int, int]
    target: bytes
    xattrs: dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Whiteout:
    uid: int
    gid: int
    mtime_ns: int


class LayerTree:
    """The state of an extraction directory, entry by entry."""

    def __init__(self) -> None:
        self._nodes: dict[bytes, _Inode] = {}
        self._aufs: dict[bytes, _Inode] = {}
        self._implied: dict[bytes, int] = {}  # path -> gid
        self._opaque: set[bytes] = set()
        self._whiteouts: dict[bytes, _Whiteout] = {}
        self._has_symlinks = False

    @property
    def implied(self) -> set[bytes]:
        """Directories that entries are in but that have no entry of their own."""
        return self._implied.keys() - self._nodes.keys()

    def add(self, member: Member) -> None:
        """Extract one entry."""
        directory, base = self._locate(member.name)
        if not base:
            return
        path = _join(directory, base)
        if any(part.startswith(_AUFS) for part in path.split(b"/")) and base != _OPAQUE_MARKER:
            self._aufs[path] = self._inode(member, path)
            return
        self._require_directory(directory, path)
        if base == _OPAQUE_MARKER:
            self._opaque.add(directory)
        elif base.startswith(_WHITEOUT):
            self._white_out(directory, base[len(_WHITEOUT) :], member)
        else:
            self._place(path, member)

    def _locate(self, name: bytes) -> tuple[bytes, bytes]:
        """Real parent directory and last component; an empty component means the root itself."""
        parts = _clean(name)
        if not parts:
            return b"", b""
        if max(map(len, parts)) > _MAX_NAME:
            raise MalformedLayer(f"tar entry {_show(name)}: a name of more than {_MAX_NAME} bytes")
        return self._resolve(parts[:-1]), parts[-1]

    def _resolve(self, parts: list[bytes]) -> bytes:
        """The directory that `parts` lead to when the layer's own symbolic links are followed, never above the root."""
        if not self._has_symlinks:
            return b"/".join(parts)
        pending = parts[::-1]
        found: list[bytes] = []
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                del found[-1:]
                continue
            found.append(part)
            node = self._nodes.get(b"/".join(found))
            if node is None or not stat.S_ISLNK(node.mode):
                continue
            links += 1
            if links > _MAX_LINKS:
                raise MalformedLayer(f"tar entry in {_show(b'/'.join(parts))}: too many levels of symbolic links")
            found = [] if node.target.startswith(b"/") else found[:-1]
            pending += [step for step in reversed(node.target.split(b"/")) if step not in (b"", b".")]
        return b"/".join(found)

    def _require_directory(self, directory: bytes, path: bytes) -> None:
        while directory:
            node = self._nodes.get(directory)
            if node is not None:
                if not stat.S_ISDIR(node.mode):
                    raise MalformedLayer(f"tar entry {_show(path)}: {_show(directory)} is not a directory")
                return
            if directory in self._implied:
                return
            directory, made = _parent(directory), directory
            self._implied[made] = self._inherited_gid(directory)

    def _inherited_gid(self, parent: bytes) -> int:
        """Group of a directory made in `parent`: mkdir(2) takes that of a set-group-ID parent."""
        node = self._nodes.get(parent)
        return node.gid if node is not None and node.mode & stat.S_ISGID else 0

    def _white_out(self, directory: bytes, base: bytes, member: Member) -> None:
        if base in (b"", b".", b".."):
            raise MalformedLayer(f"tar entry {_show(member.name)}: a whiteout of nothing")
        self._whiteouts[_join(directory, base)] = _Whiteout(member.uid, member.gid, member.mtime_ns)

    def _place(self, path: bytes, member: Member) -> None:
        old = self._nodes.get(path)
        if member.typeflag == DIRTYPE:
            if old is not None and stat.S_ISDIR(old.mode):
                _update(old, member)
                return
        elif path in self._implied or (old is not None and stat.S_ISDIR(old.mode)):
            self._remove_below(path)
        self._nodes.pop(path, None)
        self._nodes[path] = self._inode(member, path)
        self._has_symlinks |= member.typeflag == SYMTYPE

    def _inode(self, member: Member, path: bytes) -> _Inode:
        if member.typeflag == LNKTYPE:
            inode = self._link_target(member, path)
            _update(inode, member)
            return inode
        mode = 0o777 if member.typeflag == SYMTYPE else member.mode
        is_device = member.typeflag in (CHRTYPE, BLKTYPE)
        return _Inode(
            mode=_FORMATS[member.typeflag] | mode,
            uid=member.uid,
            gid=member.gid,
            mtime_ns=member.mtime_ns,
            size=member.size,
            data_offset=member.data_offset,
            rdev=member.rdev if is_device else (0, 0),
            target=_target(member) if member.typeflag == SYMTYPE else b"",
            xattrs=_xattrs(member, _FORMATS[member.typeflag]),
        )

    def _link_target(self, member: Member, path: bytes) -> _Inode:
        parts = _clean(member.linkname)
        target = _join(self._resolve(parts[:-1]), parts[-1]) if parts else b""
        inode = self._nodes.get(target) or self._aufs.get(target)
        if inode is None:
            raise MalformedLayer(
                f"tar entry {_show(path)}: a hard link to {_show(target)}, which is not in the same layer",
                hint="no container runtime can extract this layer; rebuild it with the link's target in it",
            )
        if stat.S_ISDIR(inode.mode):
            raise MalformedLayer(f"tar entry {_show(path)}: a hard link to the directory {_show(target)}")
        return inode

    def _remove_below(self, path: bytes) -> None:
        prefix = path + b"/"
        for table in (self._nodes, self._whiteouts):
            for name in [name for name in table if name.startswith(prefix)]:
                del table[name]
        for name in [name for name in self._implied if name == path or name.startswith(prefix)]:
            del self._implied[name]
        self._opaque = {name for name in self._opaque if name != path and not name.startswith(prefix)}

    def entries(self, inherited: Mapping[bytes, Entry] | None = None) -> list[Entry]:
        """Everything, sorted by path. `inherited`: directories of lower layers, whose attributes implied ones take
        over.

        Of several hard links, the first path holds the inode. A whiteout of a name that the layer itself has means that
        only what lower layers have there is gone: a directory is then opaque.
        """
        opaque = self._opaque | {path for path in self._whiteouts if path in self._implied or self._is_directory(path)}
        found = self._implied_entries(opaque, inherited or {})
        found += self._whiteout_entries()
        holders: dict[int, bytes] = {}
        for path in sorted(self._nodes):
            inode = self._nodes[path]
            holder = holders.setdefault(id(inode), path)
            found.append(_entry(path, inode, opaque) if holder == path else _link(path, inode, holder))
        return sorted(found, key=lambda entry: entry.path)

    def _is_directory(self, path: bytes) -> bool:
        node = self._nodes.get(path)
        return node is not None and stat.S_ISDIR(node.mode)

    def _implied_entries(self, opaque: set[bytes], inherited: Mapping[bytes, Entry]) -> list[Entry]:
        found = []
        for path in self.implied | ({b""} & opaque):
            lower = inherited.get(path)
            found.append(
                Entry(
                    path=path,
                    mode=lower.mode if lower else stat.S_IFDIR | 0o755,
                    uid=lower.uid if lower else 0,
                    gid=lower.gid if lower else self._implied.get(path, 0),
                    mtime_ns=lower.mtime_ns if lower else 0,
                    xattrs={**(lower.xattrs if lower else {}), **(_OPAQUE if path in opaque else {})},
                )
            )
        return found

    def _whiteout_entries(self) -> list[Entry]:
        return [
            Entry(path=path, mode=stat.S_IFCHR, uid=mark.uid, gid=mark.gid, mtime_ns=mark.mtime_ns)
            for path, mark in self._whiteouts.items()
            if path not in self._nodes and path not in self._implied
        ]


def _update(inode: _Inode, member: Member) -> None:
    """What a hard link's or a repeated directory's header says applies to the inode."""
    if not stat.S_ISLNK(inode.mode):
        inode.mode = stat.S_IFMT(inode.mode) | member.mode
    inode.uid, inode.gid, inode.mtime_ns = member.uid, member.gid, member.mtime_ns
    inode.xattrs.update(_xattrs(member, stat.S_IFMT(inode.mode)))


def _xattrs(member: Member, file_type: int) -> dict[bytes, bytes]:
    """What the kernel would let an extractor set: `user.*` only on files and directories, `trusted.*` not from
    archives.
    """
    takes_user = file_type in (stat.S_IFREG, stat.S_IFDIR)
    return {
        name: value
        for name, value in member.xattrs.items()
        if not name.startswith(b"trusted.")
        and (takes_user or not name.startswith(b"user."))
        and is_supported_xattr(name, value, file_type)
    }


def _target(member: Member) -> bytes:
    if not member.linkname or len(member.linkname) > 4095:
        raise MalformedLayer(
            f"tar entry {_show(member.name)}: a symbolic link to a name of {len(member.linkname)} bytes"
        )
    return member.linkname


def _entry(path: bytes, inode: _Inode, opaque: set[bytes]) -> Entry:
    marked = stat.S_ISDIR(inode.mode) and path in opaque
    return Entry(
        path=path,
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        mtime_ns=inode.mtime_ns,
        size=inode.size,
        data_offset=inode.data_offset,
        rdev=inode.rdev,
        target=inode.target,
        xattrs={**inode.xattrs, **(_OPAQUE if marked else {})},
    )


def _link(path: bytes, inode: _Inode, holder: bytes) -> Entry:
    return Entry(path=path, mode=inode.mode, uid=inode.uid, gid=inode.gid, mtime_ns=inode.mtime_ns, link=holder)


def _clean(name: bytes) -> list[bytes]:
    """Components of a name, "." and ".." worked off, never above the root."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return parts


def _join(directory: bytes, base: bytes) -> bytes:
    return directory + b"/" + base if directory else base


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _show(name: bytes) -> str:
    return repr(name[:200].decode(errors="backslashreplace"))
