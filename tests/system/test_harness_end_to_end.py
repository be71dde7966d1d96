"""The main job with real programs: convert, push, start lazily, kill the daemon in the middle of it."""

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastpull.lab import tools
from fastpull.lab.layout import ImageInput, LayerInput, Member, members, write_layout
from fastpull.lab.process import run, wait_until
from tests.harness import Daemon, LinkShape, PrivateContainerd, Registry, ShapedLink, trees
from tests.harness.images import MIB, SampleImage, busybox_layer, noise

pytestmark = [pytest.mark.system, pytest.mark.root]
Images = Callable[[str], SampleImage]

KILLS = 50
# Seconds of a read that is to be interrupted: the image's size over the link's rate.
KILL_IMAGE_BYTES = 24 * MIB
KILL_RATE_BITS_S = 120_000_000
# Where no layer has an entry, extractors take the time of day.
TIMELESS = ("",)


@pytest.fixture
def converted(slow_registry: Registry, tmp_path: Path) -> Callable[[SampleImage, str], str]:
    """Convert a sample into the registry with the real command; returns the reference."""

    def convert(image: SampleImage, name: str) -> str:
        reference = slow_registry.reference(name)
        command = [str(Path(sys.executable).with_name("fastpull")), "convert", "--plain-http", slow_registry.host]
        run([*command, f"oci:{image.layout}:{image.tag}", reference], env={"DOCKER_CONFIG": str(tmp_path)})
        return reference

    return convert


Convert = Callable[[SampleImage, str], str]


def tree_of(containerd: PrivateContainerd, reference: str, snapshotter: str, point: Path) -> dict[str, trees.Node]:
    """The image's whole tree, seen through the snapshotter's own mounts."""
    with trees.mounted(containerd, reference, snapshotter, point):
        found = trees.describe(point)
    return {name: node for name, node in found.items() if name not in TIMELESS}


def test_every_file_and_attribute_is_as_overlayfs_shows_it(
    containerd: PrivateContainerd,
    slow_registry: Registry,
    converted: Convert,
    sample_images: Images,
    tmp_path: Path,
) -> None:
    image = sample_images("zoo")
    original = slow_registry.push_layout(image.layout, image.tag, "sample/zoo:original")
    lazy = converted(image, "sample/zoo:converted")
    containerd.pull(original, snapshotter="overlayfs")
    containerd.pull(lazy, snapshotter="overlayfs")
    wanted = tree_of(containerd, original, "overlayfs", tmp_path / "o")
    plain = tree_of(containerd, lazy, "overlayfs", tmp_path / "p")
    # containerd 1.6 would find the layers unpacked; the snapshots of another snapshotter are its own.
    containerd.pull(lazy, snapshotter="fastpull")
    shown = tree_of(containerd, lazy, "fastpull", tmp_path / "f")
    assert len(wanted) > 1500
    assert trees.differences(wanted, plain) == []
    assert trees.differences(wanted, shown) == []


def test_a_start_fetches_what_it_reads(
    containerd: PrivateContainerd, daemon: Daemon, link: ShapedLink, converted: Convert, sample_images: Images
) -> None:
    image = sample_images("big")
    reference = converted(image, "sample/big:1")
    link.reshape(LinkShape(rate_bits_s=50_000_000, rtt_ms=5))
    before, began = link.received_bytes(), time.monotonic()
    words = ["run", "--rm", "--net", "host", reference, "/bin/cat", "/after"]
    assert containerd.nerdctl(*words, snapshotter="fastpull").strip() == "after"
    took_s, received = time.monotonic() - began, link.received_bytes() - before
    # The rest streams meanwhile, as fast as the link goes, so time is what shows that nobody waited for it.
    assert received < 32 * MIB
    assert took_s < 5
    assert containerd.nerdctl("run", "--rm", "--net", "host", reference, snapshotter="fastpull").split() == [
        image.sha256["/big"],
        "/big",
    ]
    # Everything came once: nothing that was local is fetched again.
    assert link.received_bytes() - before < 72 * MIB


def test_an_ordinary_layer_on_top_of_converted_ones(
    containerd: PrivateContainerd,
    daemon: Daemon,
    slow_registry: Registry,
    link: ShapedLink,
    converted: Convert,
    sample_images: Images,
    tmp_path: Path,
) -> None:
    """What an ordinary builder adds is pulled in full; what is below stays lazy."""
    base = sample_images("big")
    reference = converted(base, "sample/big:1")
    built = slow_registry.reference("sample/built:1")
    append_layer(reference, built, tmp_path)
    link.reshape(LinkShape(rate_bits_s=50_000_000, rtt_ms=5))
    before = link.received_bytes()
    words = ["run", "--rm", "--net", "host", built, "/bin/cat", "/on-top", "/after"]
    assert containerd.nerdctl(*words, snapshotter="fastpull") == "on top\nafter\n"
    assert link.received_bytes() - before < 32 * MIB
    assert len(daemon.mounted_layers()) == 2


def append_layer(reference: str, built: str, scratch: Path) -> None:
    """One more layer by crane, which keeps the lower descriptors as they are."""
    layer = scratch / "layer.tar"
    with layer.open("wb") as sink:
        members([Member(name="on-top", data=b"on top\n", mode=0o644)])(sink)
    run([tools.find("crane"), "append", "--insecure", "--base", reference, "--new_tag", built, "--new_layer", layer])


@pytest.mark.parametrize("release", ["current"], indirect=True)
def test_killed_in_the_middle_of_a_read_fifty_times(
    containerd: PrivateContainerd,
    daemon: Daemon,
    link: ShapedLink,
    converted: Convert,
    tmp_path: Path,
) -> None:
    chance = random.Random(11)
    for turn in range(KILLS):
        image = unlike_the_others(tmp_path / f"image{turn}", turn)
        reference = converted(image, f"sample/kill:{turn}")
        containerd.wait_snapshotter("fastpull")
        link.reshape(LinkShape(rate_bits_s=KILL_RATE_BITS_S, rtt_ms=5))
        containerd.pull(reference, snapshotter="fastpull")
        read = start_reading(containerd, reference, turn)
        wait_started(containerd, f"read{turn}")
        time.sleep(chance.uniform(0, 0.6))
        assert read.poll() is None, "the read was over too early to be interrupted"
        daemon.restart(kill=True)
        printed, complaint = read.communicate(timeout=60)
        assert printed.split() == [image.sha256["/big"], "/big"], (turn, complaint)
        link.reshape(LinkShape())


def unlike_the_others(directory: Path, turn: int) -> SampleImage:
    """busybox and a `/big` that no other turn has, so that every read is a cold one."""
    big = noise(KILL_IMAGE_BYTES, 1000 + turn)
    layer = LayerInput(write=members([Member(name="big", data=big, mode=0o644)]), compression="none")
    write_layout(directory, "x", ImageInput(layers=[busybox_layer("zstd"), layer]))
    return SampleImage(layout=directory, tag="x", sha256={"/big": hashlib.sha256(big).hexdigest()})


def start_reading(containerd: PrivateContainerd, reference: str, turn: int) -> "subprocess.Popen[str]":
    command = [str(containerd.release.ctr), "--address", str(containerd.address), "--namespace", containerd.namespace]
    words = ["run", "--rm", "--snapshotter", "fastpull", reference, f"read{turn}", "/bin/sha256sum", "/big"]
    environment = {**os.environ, **containerd.client_env()}
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *words], stdout=pipe, stderr=pipe, text=True, env=environment)


def wait_started(containerd: PrivateContainerd, task: str) -> None:
    wait_until(lambda: task in containerd.ctr("tasks", "ls", "-q").split(), what=task)
