"""`fastpull clean` removes what fastpull made, and nothing else."""

import pytest

from tests.system.test_command_lab import CommandLine

pytestmark = [
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.parametrize("release", ["current"], indirect=True),
]


@pytest.fixture
def busy(fastpull: CommandLine) -> dict[str, str]:
    """Containers and images of both kinds: stopped and running, of fastpull and of others."""
    images = {
        "lazy": fastpull.push_converted("lazy:1"),
        "other": fastpull.push("other:1"),
        "both": fastpull.push("both:1"),
    }
    for mode, image in (("fastpull", "lazy"), ("normal", "other"), ("fastpull", "both"), ("normal", "both")):
        flags = ["--mode", mode, "--net=host", "--name", f"stopped-{mode}-{image}"]
        fastpull("run", *flags, images[image], "sh", "-c", "true")
    fastpull("run", "-d", "--net=host", "--name", "running-lazy", images["lazy"], "sleep", "60")
    return images


def present(fastpull: CommandLine) -> set[str]:
    lines = fastpull.containerd.nerdctl("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    return {line.rpartition("/")[2] for line in lines}


def test_clean_leaves_others_and_what_runs(fastpull: CommandLine, busy: dict[str, str]) -> None:
    before = set(fastpull.containers())
    planned = fastpull("clean", "--all", "--dry-run").stdout
    assert set(fastpull.containers()) == before
    assert "keep running-lazy: is running" in planned
    fastpull("clean", "--all", stdin="n\n", status=130)
    assert set(fastpull.containers()) == before
    fastpull("clean", "--all", stdin="y\n")
    assert set(fastpull.containers()) == {"running-lazy", "stopped-normal-other", "stopped-normal-both"}
    assert present(fastpull) == {"lazy:1", "other:1", "both:1"}


def test_clean_force_takes_what_runs_but_not_what_is_not_ours(fastpull: CommandLine, busy: dict[str, str]) -> None:
    fastpull("clean", "--all", "--force")
    assert set(fastpull.containers()) == {"stopped-normal-other", "stopped-normal-both"}
    assert present(fastpull) == {"other:1", "both:1"}
    fastpull("clean", "--all", "--force", "--snapshotter", "all")
    assert fastpull.containers() == [] and present(fastpull) == set()


def test_clean_wants_to_be_told_what(fastpull: CommandLine) -> None:
    assert "--containers, --images, --cache or --all" in fastpull("clean", status=2).stderr
    assert fastpull("clean", "--containers", "--images", "--yes").stdout == "nothing to remove\n"


def test_clean_cache_drops_only_what_no_image_uses(fastpull: CommandLine) -> None:
    images = [fastpull.push_converted(name) for name in ("gone:1", "stays-longer:1")]
    for image in images:
        fastpull("run", "--rm", "--net=host", image, "sh", "-c", "true")
    layers = fastpull.daemon.root / "layers"
    assert len(list(layers.iterdir())) == 3  # busybox is in both
    fastpull.containerd.nerdctl("rmi", images[0])
    where = ["--run-dir", str(fastpull.daemon.run_dir)]
    assert "dropped 1 cached layers" in fastpull("clean", "--cache", "--yes", *where).stdout
    assert len(list(layers.iterdir())) == 2
    fastpull("run", "--require-lazy", "--rm", "--net=host", images[1], "sha256sum", "/noise")
