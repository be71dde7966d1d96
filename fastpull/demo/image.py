"""The demo's image: a Debian base, a layer of Python wheels, a layer with the server. Built once, kept by its recipe.

Made with debootstrap and pip from the package indexes this machine is set up for; nothing is run in a container and
no registry of images is needed.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastpull.lab import mounts, tools
from fastpull.lab.layout import ImageInput, LayerInput, tree, write_layout
from fastpull.lab.process import run

SUITE = "bookworm"
SUITE_PYTHON = "3.11"
DEBIAN_PACKAGES = ("ca-certificates", "python3", "python3-distutils", "libgomp1")
WHEELS = (
    "numpy==2.4.6",
    "scipy==1.17.1",
    "pandas==3.1.1",
    "scikit-learn==1.9.1",
    "pyarrow==26.0.1",
    "matplotlib==3.11.2",
)
# pip's names of the C libraries that the suite's own (2.36) can stand in for.
WHEEL_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")
SITE = Path("opt/demo/site")
SERVER = Path("opt/demo/server.py")
TAG = "demo"
# Changing how the image is put together must make a new one.
_RECIPE_VERSION = "2"
_BUILD_TIMEOUT_S = 1800
_NEEDLESS = ("var/cache/apt/archives/*.deb", "var/cache/apt/*.bin", "var/lib/apt/lists/*_*", "var/log/*.log")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Layout:
    """An OCI layout and the tag of the image in it."""

    directory: Path
    tag: str

    def __str__(self) -> str:
        return f"oci:{self.directory}:{self.tag}"


def _recipe() -> str:
    parts = [_RECIPE_VERSION, SUITE, *DEBIAN_PACKAGES, *WHEELS, _server_source().decode()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _server_source() -> bytes:
    return Path(__file__).with_name("server.py").read_bytes()


def demo_image(cache: Path, say: Say) -> Layout:
    """The demo's image from `cache`, built there first when it is missing (some minutes; root)."""
    finished = cache / f"image-{_recipe()}"
    if not finished.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Built aside and renamed: an interrupted build leaves nothing that looks finished.
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as scratch:
            _build(Path(scratch), say)
            (Path(scratch) / "layout").rename(finished)
    return Layout(finished, TAG)


def _build(scratch: Path, say: Say) -> None:
    base, wheels, app = (scratch / name for name in ("base", "wheels", "app"))
    say(f"debootstrap {SUITE} with {', '.join(DEBIAN_PACKAGES)}")
    _build_base(base)
    say(f"wheels: {', '.join(WHEELS)}")
    _build_wheels(wheels)
    (app / SERVER).parent.mkdir(parents=True)
    (app / SERVER).write_bytes(_server_source())
    say("three gzip layers")
    image = ImageInput(
        layers=[
            LayerInput(write=tree(base), created_by=f"debootstrap --variant=minbase {SUITE}"),
            LayerInput(write=tree(wheels), created_by=f"pip install {' '.join(WHEELS)}"),
            LayerInput(write=tree(app), created_by="the server"),
        ],
        command=["/usr/bin/python3", f"/{SERVER}"],
        environment={
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": f"/{SITE}",
            "PYTHONUNBUFFERED": "1",
        },
    )
    write_layout(scratch / "layout", TAG, image)


def _build_base(root: Path) -> None:
    include = f"--include={','.join(DEBIAN_PACKAGES)}"
    command = [str(tools.find("debootstrap")), "--variant=minbase", include, SUITE, str(root)]
    try:
        run([*command, *_mirror()], timeout_s=_BUILD_TIMEOUT_S)
    finally:
        mounts.unmount_below(root)
    for pattern in _NEEDLESS:
        for path in root.glob(pattern):
            path.unlink()


def _mirror() -> list[str]:
    """The archive this machine's apt uses for the suite; nothing (debootstrap's own choice) when apt has none."""
    if shutil.which("apt-get") is None:
        return []
    listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {SUITE}"])
    return listed.split()[:1]


def _build_wheels(root: Path) -> None:
    """Unpack the wheels, byte-compiled so that the image is as an ordinary `RUN pip install` leaves it."""
    site = root / SITE
    platforms = [word for name in WHEEL_PLATFORMS for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    python = ["--python-version", SUITE_PYTHON, "--implementation", "cp", "--only-binary=:all:"]
    run([*pip, *python, *platforms, "--target", str(site), *WHEELS], timeout_s=_BUILD_TIMEOUT_S)
    if (sys.version_info.major, sys.version_info.minor) == (3, 11):
        # Only the same Python makes byte code that the image's Python takes.
        subprocess.run(
            [sys.executable, "-m", "compileall", "-q", str(site)],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
