"""What a node has of one layer: its directory, its index, which frames are there, and the file they are written to.

The directory is made under a temporary name and renamed when it is whole and its metadata were checked, so a name that
exists is a layer that is known. Its ``tar`` starts as one hole of the layer's size. What the files are is told in
``docs/design/0001-architecture.md``.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from fetcher import kernel
from fetcher.layers.bitmap import FrameBitmap
from fetcher.layers.checker import write_durably
from fetcher.model import LayerState
from fetcher.registry import Origin
from layerformat.annotations import LayerRef
from layerformat.digest import Digest, sha256_digest
from layerformat.errors import FormatError
from layerformat.frames import Frame, FrameTable
from layerformat.index import frame_table, open_frames

_BLOCK = 4096


def directory_name(digest: Digest) -> str:
    """Short, since the paths of all of an image's layers must fit in one page of mount options."""
    return digest.removeprefix("sha256:")[:16]


class Layer:
    """One layer. Made by :meth:`draft` or :meth:`load`; both block, and neither touches the network."""

    def __init__(self, directory: Path, ref: LayerRef, origins: Sequence[Origin], frames: FrameTable) -> None:
        self.directory = directory
        self.ref = ref
        self.origins = list(origins)
        self.frames = frames
        self.present = FrameBitmap(directory, len(frames))
        verified = self._verified_path.exists() and self.present.complete
        self.state = LayerState.COMPLETE if verified else LayerState.IDLE
        self.present_bytes = sum(frames[n].length for n in range(len(frames)) if n in self.present)
        self.last_error: str | None = None  # for good: a source lied, the whole is not what it should be
        self.source_error: str | None = None  # why the last fetch failed; gone when one works
        self.inode = self.tar_path.stat().st_ino
        self.fill_fd = -1
        self.watched = False  # its reads are to be seen though it is complete; decided when it is mounted
        self.closed = False
        self._unsynced = False
        self._sync_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Layer {self.short} {self.state} {self.present.count}/{len(self.present)} frames>"

    @classmethod
    def draft(cls, parent: Path, ref: LayerRef, origins: Sequence[Origin], index: bytes) -> Layer:
        """A layer whose frames can be fetched, in a new directory of ``parent`` that no later daemon will know.

        Its files cannot be shown before :meth:`seal` and :meth:`take_name`. Raises FormatError for what is not the
        layer's index, or OSError when the disk is full.
        """
        frames = open_frames(index, ref)
        directory = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        try:
            (directory / "fs").mkdir(mode=0o755)
            write_durably(directory / "index", index)
            with (directory / "tar").open("wb") as tar:
                tar.truncate(frames.tar_size)
                os.fdatasync(tar.fileno())
            return cls(directory, ref, origins, frames)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def seal(self, metadata_digest: Digest) -> None:
        """Write a draft's last file, now that `check_index` has passed it. Blocks; raises OSError."""
        write_reference(self.directory, self.ref, self.origins, metadata_digest)

    def take_name(self, directory: Path) -> None:
        """Make a sealed draft a layer that later daemons know. Raises OSError."""
        self.directory.rename(directory)
        self.directory = self.present.directory = directory

    def discard(self) -> None:
        """Close a draft and remove what there is of it; nothing may write to it any more. Blocks."""
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    @classmethod
    def load(cls, directory: Path) -> Layer:
        """Open a layer that is on disk. Raises FormatError or OSError when what is there cannot be trusted."""
        ref, origins, metadata_digest = read_reference(directory)
        index = (directory / "index").read_bytes()
        if sha256_digest(index) != ref.index_digest:
            raise FormatError(f"layer {ref.digest}: index on disk was changed")
        frames = frame_table(index)
        if sha256_digest((directory / "meta.erofs").read_bytes()) != metadata_digest:
            raise FormatError(f"layer {ref.digest}: meta.erofs on disk was changed")
        if (directory / "tar").stat().st_size != frames.tar_size:
            raise FormatError(f"layer {ref.digest}: layer file on disk has the wrong size")
        return cls(directory, ref, origins, frames)

    @property
    def digest(self) -> Digest:
        """Of the layer blob."""
        return self.ref.digest

    @property
    def short(self) -> str:
        """For logs."""
        return self.ref.digest[7:19]

    @property
    def tar_path(self) -> Path:
        """The layer file."""
        return self.directory / "tar"

    @property
    def metadata_path(self) -> Path:
        """The EROFS image whose extra device the layer file is."""
        return self.directory / "meta.erofs"

    @property
    def mount_point(self) -> Path:
        """Where the layer's files are shown."""
        return self.directory / "fs"

    @property
    def _verified_path(self) -> Path:
        return self.directory / "verified"

    def open_for_filling(self) -> None:
        """Open the descriptor frames are written through. Only before a pre-content mark is set on the layer file."""
        if self.fill_fd < 0:
            self.fill_fd = os.open(self.tar_path, os.O_RDWR | os.O_CLOEXEC)

    def adopt_fill_fd(self, fd: int) -> None:
        """Take a descriptor that was opened before the mark, from the keeper."""
        self.close_fill_fd()
        self.fill_fd = fd

    def close_fill_fd(self) -> None:
        """No more frames are written."""
        with self._sync_lock:
            if self.fill_fd >= 0:
                os.close(self.fill_fd)
                self.fill_fd = -1

    @property
    def trouble(self) -> str | None:
        """What there is to say of it."""
        return self.source_error or self.last_error

    @property
    def absent_bytes(self) -> int:
        """What is still to be fetched: compressed, about."""
        return int(self.frames.data_size * (1 - self.present_bytes / self.frames.tar_size))

    def absent(self, offset: int, count: int) -> list[int]:
        """Numbers of the frames that bytes [offset, offset + count) need and that are not present."""
        end = min(offset + count, self.frames.tar_size)
        return [number for number in self.frames.covering(offset, end) if number not in self.present]

    def write_frame(self, frame: Frame, parts: Sequence[bytes | memoryview]) -> None:
        """Write a frame's verified bytes. Blocks; raises OSError. A frame of zeros stays a hole."""
        if len(parts) == 1 and not parts[0][0] and not bytes(parts[0]).strip(b"\0"):
            return
        position = frame.start
        while position < frame.end:
            written = os.pwritev(self.fill_fd, parts, position)
            position += written
            if position < frame.end:
                parts = [memoryview(b"".join(parts))[written:]]

    def clone_frame(self, fd: int, there: Frame, frame: Frame) -> bool:
        """Share a frame's blocks with another layer file; False where the file system cannot. Blocks."""
        if (there.start | frame.start | frame.length) % _BLOCK:
            return False
        try:
            kernel.clone_range(fd, there.start, self.fill_fd, frame.start, frame.length)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL):
                return False
            raise
        return True

    @contextmanager
    def borrow_fd(self) -> Iterator[int]:
        """A descriptor to read present frames through, raising no events, whatever becomes of the layer meanwhile."""
        with self._sync_lock:
            fd = os.dup(self.fill_fd) if self.fill_fd >= 0 else os.open(self.tar_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    @staticmethod
    def read_frame(fd: int, frame: Frame) -> bytes:
        """A present frame's bytes from a borrowed descriptor. Blocks."""
        return os.pread(fd, frame.length, frame.start)

    def mark_present(self, frame: Frame) -> None:
        """The frame's bytes are in the layer file."""
        if frame.number not in self.present:
            self.present.add(frame.number)
            self.present_bytes += frame.length
            self._unsynced = True

    def make_durable(self) -> None:
        """Have the disk hold what is present, then claim it. Blocks; safe from any thread."""
        with self._sync_lock:
            if self._unsynced and self.fill_fd >= 0:
                self._unsynced = False
                claimed = self.present.snapshot()
                os.fdatasync(self.fill_fd)
                self.present.write_durable(claimed)

    def set_complete(self) -> None:
        """All bytes are there and the diff id matched; remembered over restarts. Blocks."""
        self.make_durable()
        self._verified_path.touch()
        self.state = LayerState.COMPLETE

    def add_origins(self, origins: Sequence[Origin]) -> bool:
        """Remember more places the layer can be had from; tells whether any was new."""
        new = [origin for origin in origins if origin not in self.origins]
        self.origins.extend(new)
        return bool(new)

    def save_origins(self) -> None:
        """Have the origins outlive the daemon. Blocks."""
        _, _, metadata_digest = read_reference(self.directory)
        write_reference(self.directory, self.ref, self.origins, metadata_digest)

    def note_use(self) -> None:
        """Snapshots used the layer until now; remembered over restarts. Blocks."""
        os.utime(self.directory / "ref.json")

    def last_used(self) -> float:
        """Seconds since the epoch. Blocks."""
        return (self.directory / "ref.json").stat().st_mtime

    def disk_bytes(self) -> int:
        """What the layer takes on disk, holes left out. Blocks briefly."""
        return sum(file.stat().st_blocks * 512 for file in self.directory.iterdir() if file.is_file())

    def close(self) -> None:
        """Give back the descriptor and the mapping; the directory stays."""
        self.closed = True
        self.close_fill_fd()
        self.present.close()


def write_reference(directory: Path, ref: LayerRef, origins: Sequence[Origin], metadata_digest: Digest) -> None:
    """Replace ``ref.json`` whole. Blocks; raises OSError."""
    document = {
        "annotations": ref.to_annotations(),
        "origins": [asdict(origin) for origin in origins],
        "metadata_digest": metadata_digest,
    }
    draft = directory / "ref.json.new"
    write_durably(draft, json.dumps(document, indent=1).encode())
    draft.rename(directory / "ref.json")


def read_reference(directory: Path) -> tuple[LayerRef, list[Origin], Digest]:
    """What ``ref.json`` says. Raises FormatError or OSError."""
    try:
        document = json.loads((directory / "ref.json").read_bytes())
        ref = LayerRef.from_annotations(document["annotations"])
        origins = [Origin(**origin) for origin in document["origins"]]
        metadata_digest = Digest(document["metadata_digest"])
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{directory.name}/ref.json: {error}") from error
    if ref is None:
        raise FormatError(f"{directory.name}/ref.json: no layer reference")
    return ref, origins, metadata_digest


def is_disk_full(error: OSError) -> bool:
    """Whether an error says that the file system, or a quota on it, has no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
