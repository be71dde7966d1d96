"""Converted images in the hands of others: a real registry, skopeo, buildah, containerd; and the command itself."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fastpull.lab import tools
from fastpull.lab.process import run
from fastpull.lab.tools import Release
from tests.harness import PrivateContainerd, Registry, Workspace
from tests.harness.images import SampleImage
from tests.harness.trees import Node, describe, differences

pytestmark = [pytest.mark.system, pytest.mark.root]
Images = Callable[[str], SampleImage]
COMMAND = [sys.executable, "-c", "import sys; from fastpull.cli import main; sys.exit(main())", "convert"]


@pytest.fixture
def zoo(registry: Registry, sample_images: Images) -> str:
    image = sample_images("zoo")
    return registry.push_layout(image.layout, image.tag, "sample/zoo:1")


@pytest.fixture
def plain_containerd(workspace: Workspace, release: Release, registry: Registry) -> Iterator[PrivateContainerd]:
    """A containerd that knows nothing of fastpull."""
    with PrivateContainerd(workspace, release, hosts_dir=registry.hosts_dir()) as running:
        yield running


def convert(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def converted(source: str, destination: str) -> str:
    done = convert(source, destination)
    assert done.returncode == 0, done.stderr
    return destination


def tree_of(containerd: PrivateContainerd, reference: str, target: Path) -> dict[str, Node]:
    """The image's tree as containerd's own overlayfs shows it."""
    containerd.pull(reference)
    target.mkdir()
    containerd.ctr("images", "mount", "--snapshotter", "overlayfs", reference, str(target))
    try:
        return describe(target)
    finally:
        containerd.ctr("images", "unmount", "--rm", str(target))


def timeless(tree: dict[str, Node]) -> dict[str, Node]:
    """Without the times of directories that the layers have no entry for: they are those of the pull."""
    made = {"", "zoo/many"}
    return {name: replace(node, mtime_ns=0) if name in made else node for name, node in tree.items()}


def test_plain_containerd_extracts_the_same_tree(
    plain_containerd: PrivateContainerd, registry: Registry, zoo: str, tmp_path: Path
) -> None:
    reference = converted(zoo, registry.reference("sample/zoo:fast"))
    before = tree_of(plain_containerd, zoo, tmp_path / "before")
    after = tree_of(plain_containerd, reference, tmp_path / "after")
    assert differences(timeless(before), timeless(after)) == []
    assert len(after) > 1500


def test_buildah_and_skopeo_read_it(registry: Registry, sample_images: Images, tmp_path: Path) -> None:
    image = sample_images("zoo")
    layouts = {"before": f"oci:{image.layout}:{image.tag}", "after": f"oci:{tmp_path}/layout:t"}
    converted(layouts["before"], layouts["after"])
    skopeo = [str(tools.find("skopeo")), "--insecure-policy", "copy", "--quiet", "--preserve-digests"]
    run([*skopeo, layouts["after"], f"dir:{tmp_path}/copied"])
    run([*skopeo, f"dir:{tmp_path}/copied", "--dest-tls-verify=false", f"docker://{registry.reference('copied:1')}"])
    trees = {}
    for name, layout in layouts.items():
        store = ["--root", f"{tmp_path}/{name}", "--runroot", f"{tmp_path}/{name}-run", "--storage-driver", "vfs"]
        buildah = ["buildah", *store]
        container = run([*buildah, "from", "--pull-never", run([*buildah, "pull", layout]).strip()]).strip()
        mounted = run([*buildah, "mount", container]).strip()
        trees[name] = timeless(describe(Path(mounted)))
        run([*buildah, "umount", container])
        run([*buildah, "rm", container])
    assert differences(trees["before"], trees["after"]) == []
    assert len(trees["after"]) > 1500


def test_a_second_run_changes_nothing_in_a_real_registry(registry: Registry, zoo: str) -> None:
    destination = registry.reference("sample/zoo:fast")
    first = json.loads(convert("--json", zoo, destination).stdout)
    again = json.loads(convert("--json", zoo, destination).stdout)
    assert (again["digest"], again["changed"]) == (first["digest"], False)
    assert {layer["action"] for layer in again["images"][0]["layers"]} == {"reused"}
    other = json.loads(convert("--json", destination, registry.reference("elsewhere/zoo:1")).stdout)
    assert other["digest"] == first["digest"]
    assert {layer["action"] for layer in other["images"][0]["layers"]} == {"mounted"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_killed_in_the_middle_it_publishes_nothing(
    registry: Registry, sample_images: Images, tmp_path: Path, number: signal.Signals
) -> None:
    image = sample_images("big")
    source = f"oci:{image.layout}:{image.tag}"
    for destination in (registry.reference("big:1"), f"oci:{tmp_path}/out:t", f"oci-archive:{tmp_path}/out.tar:t"):
        child = subprocess.Popen([*COMMAND, source, destination], stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        while "started" not in child.stderr.readline():
            assert child.poll() is None
        time.sleep(0.05)
        child.send_signal(number)
        _, errors = child.communicate(timeout=20)
        assert child.returncode == (130 if number != signal.SIGKILL else -signal.SIGKILL), errors
        assert "Traceback" not in errors
    assert convert(registry.reference("big:1"), f"oci:{tmp_path}/x:t").returncode == 3
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "blobs" not in path.parts]
    assert left == []
    assert not [path for path in tmp_path.rglob(".*")]
    # What is complete may stay, and is what its name says; the next run finishes the job.
    assert convert(source, f"oci:{tmp_path}/out:t").returncode == 0


def test_the_command_says_what_is_wrong_in_one_line(registry: Registry, zoo: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar"
    broken.write_bytes(os.urandom(5000))
    cases = [
        (["--level", "99", zoo, registry.reference("x:1")], 2),
        (["--frame-size", "5", zoo, registry.reference("x:1")], 2),
        (["--frame-size", "much", zoo, registry.reference("x:1")], 2),
        ([zoo, "docker-archive:/x"], 2),
        ([registry.reference("nothing:1"), registry.reference("x:1")], 3),
        (["--platform", "linux/s390x", zoo, registry.reference("x:1")], 3),
        ([f"docker-archive:{broken}", registry.reference("x:1")], 5),
        ([zoo, f"oci:{broken}:x"], 1),
        ([zoo, "127.0.0.1:9/x:1"], 6),
    ]
    for arguments, code in cases:
        done = convert(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert re.search("^(fastpull|Error|Usage)", done.stderr, re.MULTILINE)
        assert done.stdout == ""


def test_the_command_shows_progress_lines_and_a_summary(registry: Registry, zoo: str) -> None:
    done = convert("--frame-size", "64K", "-j", "1", zoo, registry.reference("sample/zoo:small-frames"))
    assert done.returncode == 0
    assert re.search(r"layer 1 [0-9a-f]{12}: converted, [\d.]+ [kM]?B before, [\d.]+ [kM]?B now", done.stderr)
    assert "3 layers (3 converted)" in done.stdout
    assert re.search(r"sample/zoo:small-frames@sha256:[0-9a-f]{64} stored", done.stdout)
    assert "\x1b" not in done.stdout + done.stderr
