"""What the first fastpull's commands and flags were called still works, on the one tag that an image now has."""

import json

import pytest

from fastpull.exit_codes import ExitCode
from fastpull.lab.registry import free_port
from tests.system.test_command_lab import CommandLine

pytestmark = [
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.parametrize("release", ["current"], indirect=True),
]
HOST = "--net=host"


def converted(fastpull: CommandLine, image: str) -> str:
    answer: str = json.loads(fastpull("inspect", "--json", image).stdout)[0]["converted"]
    return answer


def test_nydus_means_fastpull_everywhere(fastpull: CommandLine) -> None:
    image = fastpull.push("old:1")
    fastpull("build", "--repository-url", image, "--format", "docker,nydus", "--registry", "auto")
    assert converted(fastpull, image) == "yes"
    fastpull("run", "--mode", "nydus", "--require-lazy", "--rm", HOST, image, "sh", "-c", "true")
    planned = fastpull("clean", "--images", "--snapshotter", "nydus", "--dry-run").stdout
    assert f"remove image {image}" in planned
    # No second tag, as -fastpull was.
    assert (
        fastpull.containerd.nerdctl("images", "-q").split()
        == fastpull.containerd.nerdctl("images", "-q", image).split()
    )


def test_a_name_without_a_tag_can_be_built_and_run(fastpull: CommandLine) -> None:
    image = fastpull.push("untagged:latest").removesuffix(":latest")
    fastpull("build", "--image", image)
    assert converted(fastpull, image) == "yes"
    fastpull("run", "--require-lazy", "--rm", HOST, image, "sh", "-c", "true")


def test_a_registry_that_was_not_meant_is_refused_before_anything_is_done(fastpull: CommandLine) -> None:
    image = fastpull.push("kept:1")
    for meant in ("ecr", "gar", "dockerhub"):
        refused = fastpull("build", "--image", image, "--registry", meant, status=ExitCode.USAGE)
        assert refused.stderr.count("\n") == 2 and refused.stdout == ""
    assert converted(fastpull, image) == "no"


def test_a_push_that_fails_is_a_failed_command(fastpull: CommandLine) -> None:
    nowhere = f"127.0.0.1:{free_port()}/gone:1"
    failed = fastpull("build", "--from", fastpull.push("here:1"), "--image", nowhere, status=ExitCode.UNAVAILABLE)
    assert failed.stdout == "" and "hint:" in failed.stderr
