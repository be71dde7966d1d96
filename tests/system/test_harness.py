"""The laboratory itself: it must run real containers, shape traffic, count bytes and notice what is left behind."""

import os
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from fastpull.lab.process import CommandFailed, LabError, Service, run
from fastpull.lab.tools import Release
from tests.harness import LinkShape, PrivateContainerd, Registry, ShapedLink, Workspace, trees
from tests.harness.images import MIB, SampleImage
from tests.harness.leaks import RUN_MARK, Footprint

pytestmark = [pytest.mark.system, pytest.mark.root]
Images = Callable[[str], SampleImage]


@pytest.fixture
def plain(workspace: Workspace, release: Release, registry: Registry) -> PrivateContainerd:
    return PrivateContainerd(workspace, release, hosts_dir=registry.hosts_dir())


def test_ctr_runs_a_container(plain: PrivateContainerd, registry: Registry, sample_images: Images) -> None:
    image = sample_images("big")
    reference = registry.push_layout(image.layout, image.tag, "sample/big:1")
    with plain as containerd:
        containerd.pull(reference)
        printed = containerd.run(reference, "/bin/sha256sum", "/big")
    assert printed.split() == [image.sha256["/big"], "/big"]
    assert containerd.left == []


def test_nerdctl_runs_detached_and_all_ends(
    plain: PrivateContainerd, registry: Registry, sample_images: Images
) -> None:
    image = sample_images("busybox")
    reference = registry.push_layout(image.layout, image.tag, "sample/busybox:1")
    with plain as containerd:
        containerd.nerdctl("run", "-d", "--net", "host", reference, "/bin/sleep", "600")
        listed = containerd.nerdctl("ps", "-q").split()
    assert len(listed) == 1
    assert containerd.left == []
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{containerd.namespace}"))


def test_a_container_outlives_a_restart_of_containerd(
    plain: PrivateContainerd, registry: Registry, sample_images: Images
) -> None:
    image = sample_images("busybox")
    reference = registry.push_layout(image.layout, image.tag, "sample/busybox:1")
    with plain as containerd:
        containerd.nerdctl("run", "-d", "--name", "sleeper", "--net", "host", reference, "/bin/sleep", "600")
        containerd.restart()
        assert containerd.nerdctl("exec", "sleeper", "/bin/cat", "/etc/passwd").startswith("root:")
    assert containerd.left == []


def test_the_link_limits_the_rate_and_counts(
    slow_registry: Registry, link: ShapedLink, sample_images: Images, tmp_path: Path
) -> None:
    image = sample_images("big")
    slow_registry.push_layout(image.layout, image.tag, "sample/big:1")
    link.reshape(LinkShape(rate_bits_s=400_000_000, rtt_ms=5))
    before, began = link.received_bytes(), time.monotonic()
    run(["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{slow_registry.reference('sample/big:1')}",
         f"oci:{tmp_path / 'copy'}"])  # fmt: skip
    took_s, received = time.monotonic() - began, link.received_bytes() - before
    assert 64 * MIB < received < 75 * MIB
    # What the burst lets through at once aside, the rate is a hard limit.
    assert received * 8 / took_s < 420_000_000
    assert received * 8 / took_s > 200_000_000


def test_the_relay_adds_the_round_trip(workspace: Workspace) -> None:
    def seconds_for_one_request(rtt_ms: float, name: str) -> float:
        with ShapedLink(LinkShape(rtt_ms=rtt_ms)) as link, Registry(workspace, link, name=name) as served:
            return min(seconds_for_this_request(f"http://{served.host}/v2/") for _ in range(3))

    def seconds_for_this_request(url: str) -> float:
        began = time.monotonic()
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.status == 200
        return time.monotonic() - began

    # One round trip for the connection and one for the request.
    assert seconds_for_one_request(100, "far") - seconds_for_one_request(0, "near") == pytest.approx(0.2, abs=0.06)


def test_two_links_at_once_have_their_own_addresses() -> None:
    with ShapedLink(LinkShape()) as one, ShapedLink(LinkShape()) as other:
        assert one.far != other.far
        assert one.name != other.name
    assert not Path("/run/netns", one.name).exists()
    assert not Path("/sys/class/net", one.interface).exists()


def test_mounted_root_of_an_image_can_be_described(
    plain: PrivateContainerd, registry: Registry, sample_images: Images, tmp_path: Path
) -> None:
    image = sample_images("zoo")
    reference = registry.push_layout(image.layout, image.tag, "sample/zoo:1")
    with plain as containerd:
        containerd.pull(reference)
        with trees.mounted(containerd, reference, "overlayfs", tmp_path / "root") as top:
            tree = trees.describe(top)
    assert containerd.left == []
    assert "zoo/removed" not in tree
    assert "zoo/opaque/below" not in tree
    assert tree["zoo/odd-size"].uid == 4_000_000_000
    assert dict(tree["zoo/capable"].xattrs)["security.capability"][:4] == b"\x01\x00\x00\x02"
    assert tree["zoo/user-xattr"].xattrs == (("user.colour", b"green"),)
    assert tree["zoo/char"].rdev == os.makedev(1, 3)


def test_a_service_that_dies_at_once_shows_its_log(workspace: Workspace) -> None:
    service = Service(["sh", "-c", "echo no such luck; exit 3"], log=workspace.path / "log")
    service.start()
    with pytest.raises(LabError, match=r"ended with 3 (?s:.)*no such luck"):
        service.wait_ready(lambda: False, timeout_s=5)


def test_a_failed_command_says_what_it_printed() -> None:
    with pytest.raises(CommandFailed, match="on the error stream") as failure:
        run(["sh", "-c", "echo on the error stream >&2; exit 7"])
    assert failure.value.code == 7


def test_a_workspace_ends_what_was_left(tmp_path: Path) -> None:
    with Workspace() as space:
        child = subprocess.Popen(["sleep", "600"], env={**os.environ, **space.env}, start_new_session=True)
        point = space.directory("point")
        run(["mount", "-t", "tmpfs", "none", str(point)])
    assert child.wait(5) == -9
    assert [line.split()[0] for line in space.left] == ["process", "mount"]
    assert not space.path.exists()


def test_leaks_are_noticed(tmp_path: Path) -> None:
    run_dir, mark = Path(os.environ["FASTPULL_LAB_DIR"]), os.environ[RUN_MARK]
    before = Footprint.take(run_dir, mark, everything=False)
    point = run_dir / "fp-leak"
    point.mkdir()
    run(["mount", "-t", "tmpfs", "none", str(point)])
    # A grandchild that was reparented: only its environment still tells whose it is.
    subprocess.run(["sh", "-c", "sleep 600 & echo $! > " + str(tmp_path / "pid")], check=True, stdin=subprocess.DEVNULL)
    with (tmp_path / "pid").open() as kept:
        after = Footprint.take(run_dir, mark, everything=False)
        os.kill(int(kept.read()), 9)
    run(["umount", str(point)])
    point.rmdir()
    kinds = [line.split(" ")[0] for line in after.grown(before)]
    assert kinds == ["directory", "fd", "mount", "process"]
