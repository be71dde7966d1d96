"""The images that are started: built once from the package indexes this machine uses, kept by their recipe.

All stand on the lowest layer of the demo's image, a Debian base with Python. Nothing is run in a container, and no
registry of images is needed. Building the PyTorch image takes 12 GB of disk for a while, and half an hour of one core.
"""

import hashlib
import io
import json
import random
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fastpull.demo.image import Layout, Say, demo_image
from fastpull.lab.layout import ImageInput, LayerInput, WriteTar, tree, write_layout
from fastpull.lab.process import LabError, run
from tests.harness.images import NoiseFile

MIB = 1 << 20
SITE = Path("opt/app/site")
PROGRAM = Path("opt/app/main.py")
TAG = "bench"
TORCH_WHEELS = ("torch==2.15.0", "transformers==5.23.0", "fastapi==0.165.0", "uvicorn==0.54.0")
IMAGE_PYTHON = (3, 11)
PACKAGES, MODULES = 120, 40
_RECIPE = "2"
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": f"/{SITE}",
    "PYTHONUNBUFFERED": "1",
    "HOME": "/root",
}
_BUILD_TIMEOUT_S = 3600


def kept(cache: Path, name: str, parts: tuple[str, ...], build: Callable[[Path], None]) -> Path:
    """`build` makes a directory from `parts` once; it is renamed when whole, so that no half of one is ever found."""
    recipe = hashlib.sha256("\0".join((_RECIPE, name, *parts)).encode()).hexdigest()[:12]
    finished = cache / f"{name}-{recipe}"
    if not finished.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as scratch:
            build(Path(scratch) / "made")
            # An older recipe's is of no more use, and these are large.
            for older in cache.glob(f"{name}-{'?' * 12}"):
                shutil.rmtree(older)
            (Path(scratch) / "made").rename(finished)
    return finished


# Layouts


def _read_json(layout: Path, digest: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((layout / "blobs" / digest.replace(":", "/")).read_bytes())
    return document


def manifest(image: Layout) -> dict[str, Any]:
    """The manifest of a layout's (only) image."""
    index = json.loads((image.directory / "index.json").read_bytes())
    return _read_json(image.directory, index["manifests"][0]["digest"])


def compressed_bytes(image: Layout) -> int:
    """Bytes of the image's layers as they are stored."""
    return sum(layer["size"] for layer in manifest(image)["layers"])


def _inflated(image: Layout, number: int) -> Iterator[bytes]:
    """The tar of one layer that is stored as gzip."""
    digest = manifest(image)["layers"][number]["digest"]
    decoder = zlib.decompressobj(wbits=31)
    with (image.directory / "blobs" / digest.replace(":", "/")).open("rb") as blob:
        while chunk := blob.read(MIB):
            yield decoder.decompress(chunk)


def stored_layer(image: Layout, number: int) -> WriteTar:
    """A layer's tar, to be a layer of another image."""

    def write(sink: BinaryIO) -> None:
        for chunk in _inflated(image, number):
            sink.write(chunk)

    return write


def demo_server_image(cache: Path, say: Say) -> Layout:
    """The demo's image, in the cache that `fastpull demo` has beside this one."""
    return demo_image(cache.with_name("demo"), say)


def _on_base(cache: Path, say: Say, directory: Path, layers: list[LayerInput], command: list[str]) -> None:
    base = LayerInput(write=stored_layer(demo_server_image(cache, say), 0), created_by="debootstrap")
    image = ImageInput(layers=[base, *layers], command=command, environment=_ENVIRONMENT)
    write_layout(directory, TAG, image)


def _program(name: str) -> bytes:
    return Path(__file__).with_name("programs").joinpath(name).read_bytes()


def _app(root: Path, program: str) -> LayerInput:
    """A layer with nothing but the program."""
    (root / PROGRAM).parent.mkdir(parents=True)
    (root / PROGRAM).write_bytes(_program(program))
    return LayerInput(write=tree(root), created_by="the program")


# (a) PyTorch


def torch_image(cache: Path, say: Say) -> Layout:
    """torch with its CUDA wheels, transformers, FastAPI and uvicorn, byte-compiled as `RUN pip install` leaves them."""

    def build(made: Path) -> None:
        site = made.parent / "site"
        say(f"wheels: {', '.join(TORCH_WHEELS)}")
        _install(cache, site)
        say("gzip layers of the PyTorch image")
        wheels = LayerInput(write=tree(site), created_by=f"pip install {' '.join(TORCH_WHEELS)}")
        app = _app(made.parent / "app", "torch_server.py")
        _on_base(cache, say, made, [wheels, app], ["/usr/bin/python3", f"/{PROGRAM}"])
        shutil.rmtree(cache / "wheels")

    return Layout(kept(cache, "torch", (*TORCH_WHEELS, _program("torch_server.py").decode()), build), TAG)


def _install(cache: Path, root: Path) -> None:
    """pip decides by the Python it runs on what is needed and fits: it must be of the image's version."""
    if sys.version_info[:2] != IMAGE_PYTHON:
        raise LabError(f"the PyTorch image can only be built by Python {'.'.join(map(str, IMAGE_PYTHON))}")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = str(cache / "wheels")
    run([*pip, "download", "--only-binary=:all:", "--dest", wheels, *TORCH_WHEELS], timeout_s=_BUILD_TIMEOUT_S)
    offline = ["--no-index", "--find-links", wheels, "--target", str(root / SITE)]
    run([*pip, "install", *offline, *TORCH_WHEELS], timeout_s=_BUILD_TIMEOUT_S)


def torch_image_next(cache: Path, image: Layout) -> Layout:
    """The same image built again with another release of one small package: every module of `uvicorn` differs."""

    def build(made: Path) -> None:
        layers = [LayerInput(write=stored_layer(image, 0), created_by="debootstrap")]
        layers.append(LayerInput(write=with_changes(image, 1, f"{SITE}/uvicorn/"), compression="zstd"))
        layers.append(LayerInput(write=stored_layer(image, 2)))
        command = ["/usr/bin/python3", f"/{PROGRAM}"]
        write_layout(made, TAG, ImageInput(layers=layers, command=command, environment=_ENVIRONMENT))

    return Layout(kept(cache, "torch-next", (image.directory.name,), build), TAG)


class _Chunks(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts = [self._rest]
        count = len(self._rest)
        while size < 0 or count < size:
            if not (chunk := next(self._chunks, b"")):
                break
            parts.append(chunk)
            count += len(chunk)
        data = b"".join(parts)
        wanted = len(data) if size < 0 else size
        data, self._rest = data[:wanted], data[wanted:]
        return data


def with_changes(image: Layout, number: int, below: str) -> WriteTar:
    """A layer's tar with a line more in each Python file below a directory."""

    def write(sink: BinaryIO) -> None:
        source: Any = _Chunks(_inflated(image, number))
        with (
            tarfile.open(fileobj=source, mode="r|", bufsize=MIB) as old,
            tarfile.open(fileobj=sink, mode="w|", bufsize=MIB, format=tarfile.PAX_FORMAT) as new,
        ):
            for member in old:
                data: Any = old.extractfile(member) if member.isreg() else None
                if data is not None and below in member.name and member.name.endswith(".py"):
                    body = data.read() + b"\n# another release\n"
                    member.size, data = len(body), io.BytesIO(body)
                new.addfile(member, data)

    return write


# (b) weights


def weights_image(cache: Path, say: Say, size_bytes: int) -> Layout:
    """`/big` of incompressible bytes, and a program that reads it."""

    def build(made: Path) -> None:
        say(f"{size_bytes // MIB} MiB of weights")

        def write(sink: BinaryIO) -> None:
            with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                header = tarfile.TarInfo("big")
                header.size = size_bytes
                noise: Any = NoiseFile(size_bytes, 3)
                archive.addfile(header, noise)

        # zstd, or a full pull would be held up by a decompressor that nobody uses for such data.
        weights = LayerInput(write=write, compression="zstd", created_by="weights")
        app = _app(made.parent / "app", "read_weights.py")
        _on_base(cache, say, made, [app, weights], ["/usr/bin/python3", f"/{PROGRAM}", "read"])

    return Layout(kept(cache, "weights", (str(size_bytes), _program("read_weights.py").decode()), build), TAG)


# (c) small files


def imports_image(cache: Path, say: Say) -> Layout:
    """`PACKAGES` packages of `MODULES` small modules each, and a program that imports every one of them."""

    def build(made: Path) -> None:
        say(f"{PACKAGES * MODULES} small modules")
        root = made.parent / "site"
        for number in range(PACKAGES):
            _write_package(root / SITE / f"package_{number:03}", number)
        run([sys.executable, "-m", "compileall", "-q", str(root)], timeout_s=_BUILD_TIMEOUT_S)
        modules = LayerInput(write=tree(root), created_by="modules")
        app = _app(made.parent / "app", "import_server.py")
        _on_base(cache, say, made, [modules, app], ["/usr/bin/python3", f"/{PROGRAM}"])

    parts = (str(PACKAGES), str(MODULES), _program("import_server.py").decode())
    return Layout(kept(cache, "imports", parts, build), TAG)


def _write_package(directory: Path, number: int) -> None:
    """Modules of 0.5 to 12 KiB as libraries have them: many small, few large."""
    chance = random.Random(number)
    directory.mkdir(parents=True)
    names = [f"module_{index:02}" for index in range(MODULES)]
    (directory / "__init__.py").write_text("".join(f"from . import {name}\n" for name in names))
    for name in names:
        lines = int(chance.paretovariate(1.2) * 8) % 200 + 4
        body = "".join(
            f"def call_{line}(value):\n    return value * {chance.randrange(1 << 30)}\n\n" for line in range(lines)
        )
        (directory / f"{name}.py").write_text(f'"""{chance.randbytes(40).hex()}"""\n\n{body}')
