"""Sample images whose every byte is known, made without a network."""

import hashlib
import io
import random
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from fastpull.lab import tools
from fastpull.lab.layout import Compression, ImageInput, LayerInput, Member, members, write_layout

MIB = 1 << 20
LINK, SYMLINK, CHAR, BLOCK, FIFO = b"1", b"2", b"3", b"4", b"6"
_APPLETS = ("sh", "ls", "cat", "sha256sum", "find", "sleep", "tar", "stat", "touch", "rm", "mkdir", "dd", "httpd")
_SOME_TIME = 1_600_000_000.123456789


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleImage:
    """An OCI layout on disk. `sha256` holds the expected hash of the files a test may want to read."""

    layout: Path
    tag: str
    sha256: dict[str, str] = field(default_factory=dict)


class NoiseFile(io.RawIOBase):
    """`size_bytes` that do not compress, the same for the same seed, read from front to back; `sha256` at the end."""

    def __init__(self, size_bytes: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._left = size_bytes
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        count = self._left if size < 0 else min(size, self._left)
        data = b"".join(self._random.randbytes(min(MIB, count - at)) for at in range(0, count, MIB))
        self._left -= len(data)
        self.sha256.update(data)
        return data


def noise(size_bytes: int, seed: int) -> bytes:
    """All of a `NoiseFile` at once."""
    return NoiseFile(size_bytes, seed).read()


def busybox_layer(compression: Compression = "gzip") -> LayerInput:
    """A root file system with a static busybox and links for its usual applets."""
    found = tools.find("busybox").read_bytes()
    entries = [Member(name=name) for name in ("bin", "etc", "root", "usr", "usr/share")]
    entries += [
        Member(name="tmp", mode=0o1777),
        Member(name="proc", mode=0o555),
        Member(name="dev"),
        Member(name="sys"),
    ]
    entries.append(Member(name="bin/busybox", data=found))
    entries += [Member(name=f"bin/{name}", kind=SYMLINK, target="busybox", mode=0o777) for name in _APPLETS]
    entries.append(Member(name="etc/passwd", data=b"root:x:0:0:root:/root:/bin/sh\n", mode=0o644))
    return LayerInput(write=members(entries), compression=compression, created_by="busybox")


def zoo_entries() -> list[Member]:
    """One entry of every kind and attribute a layer may hold, and some awkward names."""
    long_name = "zoo/" + "n" * 255
    return [
        Member(name="zoo", mode=0o2755, uid=70_000, gid=80_000),
        Member(name="zoo/empty", data=b"", mode=0o600),
        Member(name="zoo/small", data=b"small\n", mode=0o644, mtime=_SOME_TIME),
        Member(name="zoo/odd-size", data=noise(4097, 1), mode=0o640, uid=4_000_000_000, gid=12),
        Member(name="zoo/some-frames", data=noise(700_001, 2), mode=0o755),
        Member(name="zoo/zeros", data=bytes(300_000), mode=0o444),
        Member(name="zoo/setuid", data=b"#!/bin/sh\n", mode=0o4755),
        Member(name="zoo/sticky", mode=0o1777),
        Member(name="zoo/hard", kind=LINK, target="zoo/small"),
        Member(name="zoo/soft", kind=SYMLINK, target="../etc/passwd", mode=0o777),
        Member(name="zoo/dangling", kind=SYMLINK, target="/no/where", mode=0o777),
        Member(name="zoo/char", kind=CHAR, device=(1, 3), mode=0o666),
        Member(name="zoo/block", kind=BLOCK, device=(7, 300), mode=0o660),
        Member(name="zoo/fifo", kind=FIFO, mode=0o622),
        Member(name="zoo/user-xattr", data=b"x", pax={"SCHILY.xattr.user.colour": "green"}),
        # VFS_CAP_REVISION_2, permitted cap_net_bind_service: capabilities(7), linux/capability.h
        Member(
            name="zoo/capable",
            data=b"y",
            pax={"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04" + "\x00" * 14},
        ),
        Member(name=long_name, data=b"long"),
        Member(name="zoo/" + "ünïcödé", data=b"u"),
        Member(name="zoo/with space\tand tab", data=b"s"),
        Member(name="zoo/many"),
        *(Member(name=f"zoo/many/{number:04}", data=b"%d" % number, mode=0o644) for number in range(1500)),
        Member(name="zoo/opaque"),
        Member(name="zoo/opaque/below", data=b"hidden by the next layer"),
        Member(name="zoo/removed", data=b"removed by the next layer"),
    ]


def zoo_top_entries() -> list[Member]:
    """A layer above the zoo: a whiteout, an opaque directory, a changed file, a directory turned into a file."""
    return [
        Member(name="zoo", mode=0o2755, uid=70_000, gid=80_000),
        Member(name="zoo/.wh.removed", data=b""),
        Member(name="zoo/opaque"),
        Member(name="zoo/opaque/.wh..wh..opq", data=b""),
        Member(name="zoo/opaque/shown", data=b"of the upper layer"),
        Member(name="zoo/small", data=b"changed\n", mode=0o600),
        Member(name="zoo/sticky", data=b"no directory any more"),
    ]


def busybox_image(directory: Path) -> SampleImage:
    write_layout(directory, "busybox", ImageInput(layers=[busybox_layer()], command=["/bin/sh"]))
    return SampleImage(layout=directory, tag="busybox")


def zoo_image(directory: Path) -> SampleImage:
    """busybox, the zoo (zstd) and the layer that changes it (plain): three layers, three compressions."""
    layers = [
        busybox_layer("gzip"),
        LayerInput(write=members(zoo_entries()), compression="zstd", created_by="zoo"),
        LayerInput(write=members(zoo_top_entries()), compression="none", created_by="zoo, changed"),
    ]
    write_layout(directory, "zoo", ImageInput(layers=layers, command=["/bin/sh"]))
    return SampleImage(layout=directory, tag="zoo")


def big_file_image(directory: Path, *, size_bytes: int = 64 * MIB) -> SampleImage:
    """busybox and `/big`, incompressible and never all in memory; then `/after`, a small file behind it."""
    big = NoiseFile(size_bytes, 3)

    def write(sink: BinaryIO) -> None:
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            header = Member(name="big", data=b"", mode=0o644).header()
            header.size = size_bytes
            archive.addfile(header, cast(BinaryIO, big))
            archive.addfile(Member(name="after", data=b"after\n", mode=0o644).header(), io.BytesIO(b"after\n"))

    layers = [busybox_layer(), LayerInput(write=write, compression="zstd", created_by="big")]
    write_layout(directory, "big", ImageInput(layers=layers, command=["/bin/sha256sum", "/big"]))
    return SampleImage(layout=directory, tag="big", sha256={"/big": big.sha256.hexdigest()})
