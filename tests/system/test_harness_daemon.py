"""The daemon's and containerd's fixtures together: an ordinary image through the snapshotter `fastpull`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Daemon, PrivateContainerd, Registry
from tests.harness.images import SampleImage

pytestmark = [pytest.mark.system, pytest.mark.root]
Images = Callable[[str], SampleImage]


@pytest.fixture
def reference(registry: Registry, sample_images: Images) -> str:
    image = sample_images("busybox")
    return registry.push_layout(image.layout, image.tag, "sample/busybox:1")


def test_an_ordinary_image_runs(containerd: PrivateContainerd, daemon: Daemon, reference: str) -> None:
    containerd.pull(reference, snapshotter="fastpull")
    assert containerd.run(reference, "/bin/cat", "/etc/passwd", snapshotter="fastpull").startswith("root:")
    assert list((daemon.root / "snapshots").iterdir())


def test_nerdctl_runs_an_ordinary_image(containerd: PrivateContainerd, daemon: Daemon, reference: str) -> None:
    words = ["run", "--rm", "--net", "host", reference, "/bin/cat", "/etc/passwd"]
    assert containerd.nerdctl(*words, snapshotter="fastpull").startswith("root:")


def test_the_daemon_is_killed_and_comes_back(containerd: PrivateContainerd, daemon: Daemon, reference: str) -> None:
    containerd.pull(reference, snapshotter="fastpull")
    before = daemon.pid
    daemon.restart(kill=True)
    assert daemon.pid != before
    containerd.wait_snapshotter("fastpull")
    assert containerd.run(reference, "/bin/cat", "/etc/passwd", snapshotter="fastpull").startswith("root:")


def test_the_keeper_ends_with_the_daemon_fixture(daemon: Daemon) -> None:
    keeper = daemon.keeper_pid()
    assert keeper is not None
    daemon.stop()
    assert Path(f"/proc/{keeper}").exists()
