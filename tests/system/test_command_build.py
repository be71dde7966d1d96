"""`fastpull build` and `fastpull quickstart`, with a real builder, a real server and a real registry."""

import json
from pathlib import Path

import pytest

from fastpull.lab import tools
from fastpull.lab.registry import free_port
from tests.harness import Daemon, PrivateContainerd, Registry, Workspace
from tests.system.test_command_lab import CommandLine

pytestmark = [
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.parametrize("release", ["current"], indirect=True),
]

DOCKERFILE = """\
FROM scratch AS base
ARG GREETING=unset
ENV PATH=/bin GREETING=${GREETING}
COPY busybox /bin/busybox
COPY busybox /bin/sh
FROM base AS other
ENV STAGE=other
FROM base
ENV STAGE=last
CMD ["sh", "-c", "echo $GREETING $STAGE"]
"""


@pytest.fixture
def fastpull(workspace: Workspace, registry: Registry, daemon: Daemon, containerd: PrivateContainerd) -> CommandLine:
    return CommandLine(workspace, containerd, daemon, registry)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "busybox").write_bytes(tools.find("busybox").read_bytes())
    (tmp_path / "busybox").chmod(0o755)
    return tmp_path


@pytest.fixture
def store(workspace: Workspace) -> dict[str, str]:
    """Where buildah keeps its images during a test; vfs leaves no mounts."""
    storage = workspace.directory("storage")
    config = storage / "storage.conf"
    config.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{storage}/graph"\nrunroot = "{storage}/run"\n')
    return {"CONTAINERS_STORAGE_CONF": str(config), "BUILDAH_ISOLATION": "chroot"}


def test_a_dockerfile_becomes_one_lazy_tag(fastpull: CommandLine, context: Path, store: dict[str, str]) -> None:
    image = fastpull.registry.reference("built:1")
    flags = ["--builder", "buildah", "--build-arg", "GREETING=hello", "--no-cache"]
    built = fastpull("build", *flags, "--image-path", str(context), "--image", image, more=store)
    assert built.stdout.splitlines()[-1].startswith(f"{image}@sha256:")
    done = fastpull("run", "--require-lazy", "--rm", "--net=host", image)
    assert done.stdout.splitlines()[-1] == "hello last"
    ordinary = fastpull("run", "--mode", "normal", "--rm", "--net=host", image)
    assert ordinary.stdout.splitlines()[-1] == "hello last"


def test_older_spellings_stages_and_plain_format(fastpull: CommandLine, context: Path, store: dict[str, str]) -> None:
    image = fastpull.registry.reference("plain:1")
    dockerfile = context / "Dockerfile"
    older = ["--dockerfile-path", str(dockerfile), "--repository-url", image, "--target", "other", "--format", "docker"]
    fastpull("build", "--builder", "buildah", *older, more=store)
    [view] = json.loads(fastpull("inspect", "--json", image).stdout)
    assert view["converted"] == "no"
    done = fastpull("run", "--mode", "normal", "--rm", "--net=host", image, "sh", "-c", "echo $STAGE")
    assert done.stdout.splitlines()[-1] == "other"


def test_a_failed_build_is_a_failed_command_and_pushes_nothing(
    fastpull: CommandLine, context: Path, store: dict[str, str]
) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY no-such-file /\n")
    image = fastpull.registry.reference("broken:1")
    command = ["build", "--builder", "buildah", "--image-path", str(context), "--image", image]
    done = fastpull(*command, status=8, more=store)
    assert "nothing was pushed" in done.stderr and done.stdout == ""
    fastpull("inspect", image, status=3)


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
