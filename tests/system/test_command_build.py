"""`fastpull build` and `fastpull quickstart`, with a real builder, a real server and a real registry."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastpull.lab import tools
from fastpull.lab.buildkit import Buildkitd
from fastpull.lab.process import run
from fastpull.lab.registry import free_port
from tests.harness import Registry, Workspace
from tests.system.test_command_lab import CommandLine

pytestmark = [
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.parametrize("release", ["current"], indirect=True),
]

WORD = "between us"
DOCKERFILE = """\
FROM scratch AS files
COPY busybox /bin/busybox
COPY busybox /bin/sh
FROM files AS base
ARG GREETING=unset
ENV PATH=/bin GREETING=${GREETING}
FROM base AS other
ENV STAGE=other
FROM base AS broken
RUN echo before the fall && exit 7
FROM base
ENV STAGE=last
RUN --mount=type=secret,id=word,target=/word busybox wc -c < /word > /length
RUN busybox head -c 16 /dev/urandom > /stamp
CMD ["sh", "-c", "echo $GREETING $STAGE $(busybox cat /length) $(busybox cat /word)"]
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "busybox").write_bytes(tools.find("busybox").read_bytes())
    (context / "busybox").chmod(0o755)
    return context


@pytest.fixture
def secret(tmp_path: Path) -> str:
    (tmp_path / "word").write_text(WORD)
    return f"id=word,src={tmp_path / 'word'}"


@pytest.fixture
def buildkit(workspace: Workspace) -> Iterator[Buildkitd]:
    with Buildkitd(workspace) as running:
        yield running
    assert not running.left, running.left


def fetch(registry: Registry, image: str, kind: str, what: str) -> Any:
    """A JSON document of the registry's API about an image: `manifests`, `blobs` or `tags`."""
    repository = image.removeprefix(f"{registry.host}/").partition(":")[0]
    accepted = {"Accept": "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"}
    request = urllib.request.Request(f"http://{registry.host}/v2/{repository}/{kind}/{what}", headers=accepted)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def for_docker(fastpull: CommandLine, buildkit: Buildkitd) -> dict[str, str]:
    """Docker's own program with buildx as its plugin, and no Docker daemon: its current builder is buildkitd."""
    config = fastpull.space.directory("home") / ".docker"
    plugin = config / "cli-plugins" / "docker-buildx"
    plugin.parent.mkdir(parents=True)
    plugin.symlink_to(tools.find("buildx"))
    create = [str(tools.find("buildx")), "create", "--name", "lab", "--driver", "remote", "--use", buildkit.host]
    run(create, env=fastpull.env())
    return {}


def for_buildah(space: Workspace) -> dict[str, str]:
    """Where buildah keeps its images during a test; vfs leaves no mounts."""
    storage = space.directory("storage")
    config = storage / "storage.conf"
    config.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{storage}/graph"\nrunroot = "{storage}/run"\n')
    return {"CONTAINERS_STORAGE_CONF": str(config), "BUILDAH_ISOLATION": "chroot"}


#: buildah executes a sealed copy of itself; the kernel refuses the seal while something else holds a page of the copy
#: (EBUSY; memfd_wait_for_pins(), mm/memfd.c). It passes.
SEALING = "sealing memfd copy: Device or resource busy"


@dataclass(frozen=True, slots=True)
class Build:
    """`fastpull build` with one builder."""

    fastpull: CommandLine
    builder: str
    environment: dict[str, str]

    def __call__(self, image: str, *flags: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
        words = ["build", "--builder", self.builder, "--image", image, *flags]
        for _ in range(3):
            done = self.fastpull(*words, status=None, more=self.environment)
            if SEALING not in done.stderr:
                break
        assert done.returncode == status, f"{words}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def images(self, image: str) -> list[dict[str, Any]]:
        """What `fastpull inspect` says about each platform's image."""
        views: list[dict[str, Any]] = json.loads(self.fastpull("inspect", "--json", image).stdout)
        return views

    def platforms(self, image: str) -> dict[str, str]:
        """Which platforms the configurations of an image's manifests name, and whether each is converted."""
        told = {}
        for view in self.images(image):
            manifest = fetch(self.fastpull.registry, image, "manifests", view["digest"])
            config = fetch(self.fastpull.registry, image, "blobs", manifest["config"]["digest"])
            told[f"{config['os']}/{config['architecture']}"] = view["converted"]
        return told


@pytest.fixture(params=["docker", "nerdctl", "buildah"])
def build(request: pytest.FixtureRequest, fastpull: CommandLine) -> Build:
    """Each builder there is, with what it needs."""
    builder: str = request.param
    if builder == "buildah":
        return Build(fastpull, builder, for_buildah(fastpull.space))
    buildkit: Buildkitd = request.getfixturevalue("buildkit")
    if builder == "docker":
        return Build(fastpull, builder, for_docker(fastpull, buildkit))
    return Build(fastpull, builder, {"BUILDKIT_HOST": buildkit.host})


def test_a_dockerfile_becomes_one_lazy_tag(build: Build, context: Path, secret: str) -> None:
    fastpull, image = build.fastpull, build.fastpull.registry.reference("built:1")
    built = build(image, "--image-path", str(context), "--build-arg", "GREETING=hello", "--secret", secret)
    assert built.stdout.splitlines()[-1].startswith(f"{image}@sha256:")
    assert fetch(fastpull.registry, image, "tags", "list")["tags"] == ["1"]
    expected = f"hello last {len(WORD)}"
    done = fastpull("run", "--require-lazy", "--rm", "--net=host", image)
    assert done.stdout.splitlines()[-1].strip() == expected
    ordinary = fastpull("run", "--mode", "normal", "--rm", "--net=host", image)
    assert ordinary.stdout.splitlines()[-1].strip() == expected


def test_older_spellings_a_stage_and_the_plain_format(build: Build, context: Path) -> None:
    image = build.fastpull.registry.reference("plain:1")
    flags = ["--dockerfile-path", str(context / "Dockerfile"), "--repository-url", image, "--format", "docker"]
    build(image, *flags, "--target", "other")
    assert [view["converted"] for view in build.images(image)] == ["no"]
    done = build.fastpull("run", "--mode", "normal", "--rm", "--net=host", image, "sh", "-c", "echo $STAGE")
    assert done.stdout.splitlines()[-1] == "other"


def test_steps_run_again_only_without_the_cache(build: Build, context: Path, secret: str, tmp_path: Path) -> None:
    elsewhere = (context / "Dockerfile").rename(tmp_path / "Elsewhere")
    flags = ["--image-path", str(context), "--dockerfile", str(elsewhere), "--secret", secret]

    def last_layer(*more: str) -> Any:
        """Of random bytes."""
        image = build.fastpull.registry.reference("cached:1")
        build(image, *flags, *more)
        top = fetch(build.fastpull.registry, image, "manifests", "1")
        for row in top.get("manifests", ()):
            top = fetch(build.fastpull.registry, image, "manifests", row["digest"])
        return top["layers"][-1]["digest"]

    first = last_layer()
    assert last_layer() == first
    assert last_layer("--no-cache") != first


def test_platforms_of_files_alone_need_no_emulation(build: Build, context: Path) -> None:
    """What was built for one platform before is not taken for another's."""
    flags = ["--image-path", str(context), "--target", "files", "--format", "docker"]
    build(build.fastpull.registry.reference("own:1"), *flags)
    flags[-1] = "docker,fastpull"
    foreign = build.fastpull.registry.reference("foreign:1")
    build(foreign, *flags, "--platform", "linux/s390x")
    assert build.platforms(foreign) == {"linux/s390x": "yes"}
    many = build.fastpull.registry.reference("many:1")
    build(many, *flags, "--platform", "linux/amd64,linux/arm64", "--platform", "linux/s390x")
    assert build.platforms(many) == {"linux/amd64": "yes", "linux/arm64": "yes", "linux/s390x": "yes"}


def test_a_failed_build_is_a_failed_command_and_pushes_nothing(build: Build, context: Path) -> None:
    image = build.fastpull.registry.reference("broken:1")
    done = build(image, "--image-path", str(context), "--target", "broken", status=8)
    assert "before the fall" in done.stderr and "nothing was pushed" in done.stderr and done.stdout == ""
    (context / "busybox").unlink()
    build(image, "--image-path", str(context), status=8)
    build.fastpull("inspect", image, status=3)


def test_the_first_builder_that_works_is_taken(fastpull: CommandLine, context: Path) -> None:
    """buildx, nerdctl and buildah are all installed, but there is no BuildKit; then there is one, and no docker."""
    words = ["build", "--dry-run", "--image-path", str(context), "--image", fastpull.registry.reference("auto:1")]
    unreachable = {"BUILDKIT_HOST": f"unix://{fastpull.space.path}/nobody.sock"}
    done = fastpull(*words, more={**for_buildah(fastpull.space), **unreachable})
    assert Path(done.stdout.split()[0]).name == "buildah"
    refused = fastpull(*words, "--builder", "nerdctl", more=unreachable, status=7)
    assert "nothing to build with: nerdctl: failed" in refused.stderr
    with Buildkitd(fastpull.space) as buildkit:
        done = fastpull(*words, more={"BUILDKIT_HOST": buildkit.host})
        assert Path(done.stdout.split()[0]).name == "nerdctl"


def test_an_existing_image_is_converted_in_place(fastpull: CommandLine) -> None:
    image = fastpull.push("here:1")
    fastpull("build", "--image", image)
    assert json.loads(fastpull("inspect", "--json", image).stdout)[0]["converted"] == "yes"
    elsewhere = fastpull.registry.reference("there:1")
    fastpull("build", "--registry", "generic", "--from", image, "--image", elsewhere)
    assert json.loads(fastpull("inspect", "--json", elsewhere).stdout)[0]["converted"] == "yes"
    missing = fastpull("build", "--image", fastpull.registry.reference("nowhere:1"), status=3)
    assert missing.stdout == ""


def test_quickstart_measures_both_ways(fastpull: CommandLine, tmp_path: Path) -> None:
    image, port, kept = fastpull.push_converted("server:1"), free_port(), fastpull.push("kept:1")
    fastpull("run", "-d", "--mode", "normal", "--name", "bystander", "--net=host", kept, "sleep", "60")
    entry = f"sh -c 'mkdir -p /tmp/w; echo ok > /tmp/w/health; httpd -f -p 127.0.0.1:{port} -h /tmp/w'"
    flags = ["--image", image, "--entry", entry, "--endpoint", f"http://127.0.0.1:{port}/health", "--no-gpu"]
    done = fastpull("quickstart", "vllm", *flags, "--run-arg=--net=host", "--output-dir", str(tmp_path / "out"))
    for mode in ("fastpull", "normal"):
        document = json.loads((tmp_path / "out" / f"vllm-{mode}.json").read_text())
        assert document["metrics"]["readiness_time"] > 0 and document["cold"] and document["image"] == image
    assert (tmp_path / "out" / "vllm.png").read_bytes().startswith(b"\x89PNG")
    assert "ratio" in done.stderr
    # Nothing but its own containers is gone.
    assert fastpull.containers() == ["bystander"]


def test_quickstart_says_what_is_missing_before_it_starts_anything(fastpull: CommandLine, tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        return
    refused = fastpull("quickstart", "sglang", "--output-dir", str(tmp_path / "out"), status=7)
    assert refused.stderr.startswith("fastpull: missing: an NVIDIA GPU")
    assert "container toolkit" in refused.stderr and refused.stderr.count("\n") == 2
    unreachable = f"127.0.0.1:{free_port()}/server:1"
    flags = ["--no-gpu", "--image", unreachable, "--output-dir", str(tmp_path / "out")]
    assert "missing: the image" in fastpull("quickstart", "vllm", *flags, status=6).stderr
    assert not (tmp_path / "out").exists() and fastpull.containers() == []
