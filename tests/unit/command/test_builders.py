"""Which builder is found: small scripts stand for the programs."""

from pathlib import Path

import pytest

from fastpull.builders import Buildah, BuildRequest, Buildx, DockerDaemon, NerdctlBuild, find_builder, last_words
from fastpull.commands.build import _request
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure

GIVEN = {"build_args": (), "secrets": (), "target": None, "platforms": (), "no_cache": False}
WORKS = "exit 0"
FAILS = "echo first >&2; echo cannot >&2; exit 1"
# As buildx answers when the current builder is a Docker daemon without the containerd image store.
NO_OCI = 'case "$*" in *type=oci*) echo "ERROR: OCI exporter is not supported for the docker driver" >&2; exit 1;; esac'
NO_PLUGIN = """echo "docker: 'buildx' is not a docker command." >&2; exit 1"""


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    return tmp_path


def install(bin_dir: Path, **scripts: str) -> dict[str, str]:
    """An environment with these programs alone."""
    for name, body in scripts.items():
        program = bin_dir / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    return {"PATH": str(bin_dir)}


def test_the_first_that_works_is_taken(bin_dir: Path) -> None:
    environment = install(bin_dir, docker=FAILS, nerdctl=WORKS, buildah=WORKS)
    assert find_builder("auto", environment) == NerdctlBuild(f"{bin_dir}/nerdctl")
    assert find_builder("buildah", environment) == Buildah(f"{bin_dir}/buildah")


def test_docker_has_several_ways(bin_dir: Path) -> None:
    assert find_builder("docker", install(bin_dir, docker=WORKS)) == Buildx((f"{bin_dir}/docker", "buildx"))
    assert find_builder("docker", install(bin_dir, docker=NO_OCI)) == DockerDaemon(f"{bin_dir}/docker")
    plugin = install(bin_dir, docker=NO_PLUGIN, docker_buildx=WORKS)
    assert find_builder("docker", plugin) == Buildx((f"{bin_dir}/docker-buildx",))


def test_buildx_works_without_docker(bin_dir: Path) -> None:
    assert find_builder("auto", install(bin_dir, buildx=WORKS)) == Buildx((f"{bin_dir}/buildx",))


def test_a_probe_that_loads_an_image_removes_it(bin_dir: Path) -> None:
    told = f'echo "$*" >> {bin_dir}/calls\n{NO_OCI}'
    find_builder("docker", install(bin_dir, docker=told))
    assert (bin_dir / "calls").read_text().splitlines()[-1] == "image rm localhost/fastpull-build:probe"


def test_what_is_missing_is_told(bin_dir: Path) -> None:
    with pytest.raises(Failure) as refused:
        find_builder("auto", install(bin_dir, nerdctl=FAILS, buildah="exit 3"))
    said = "docker: not installed; nerdctl: cannot; buildah: failed without a word (status 3)"
    assert refused.value.message == f"nothing to build with: {said}"
    assert refused.value.exit_code == ExitCode.MISSING_TOOL


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", ""),
        ("one\n\ntwo\n\n", "two"),
        ("ERROR: no builder\n", "no builder"),
        ('time="2026-01-01T00:00:00Z" level=fatal msg="no \\"buildkit\\" here"\n', 'no "buildkit" here'),
    ],
)
def test_the_last_words_of_a_program(output: str, words: str) -> None:
    assert last_words(output) == words


def test_a_dockerfile_is_named_in_the_directory_or_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tmp_path / "context"
    context.mkdir()
    for file in (context / "Dockerfile", context / "gpu", tmp_path / "gpu", tmp_path / "other"):
        file.touch()
    monkeypatch.chdir(tmp_path)
    assert _request(Path("context"), None, GIVEN).dockerfile == context / "Dockerfile"
    assert _request(Path("context"), "gpu", GIVEN).dockerfile == context / "gpu"
    assert _request(Path("context"), "other", GIVEN).dockerfile == tmp_path / "other"
    by_file = _request(Path("context/gpu"), None, GIVEN)
    assert (by_file.context, by_file.dockerfile) == (Path("context"), context / "gpu")
    with pytest.raises(Failure, match="there is no context/no"):
        _request(Path("context"), "no", GIVEN)
    with pytest.raises(Failure, match="a second one"):
        _request(Path("context/gpu"), "other", GIVEN)


def test_buildah_keeps_no_steps_that_it_would_take_for_another_platform() -> None:
    builder, archive = Buildah("/b"), Path("/i")
    assert "--layers" in builder.steps(BuildRequest(context=Path("/c")), archive, "n")[0]
    foreign = BuildRequest(context=Path("/c"), platforms=("linux/arm64",))
    assert "--layers" not in builder.steps(foreign, archive, "n")[0]


def test_an_image_that_is_converted_comes_without_attestations() -> None:
    for builder in (Buildx(("buildx",)), DockerDaemon("docker")):
        plain = builder.steps(BuildRequest(context=Path("/c")), Path("/i"), "n")[0]
        bare = builder.steps(BuildRequest(context=Path("/c"), described=False), Path("/i"), "n")[0]
        assert "--provenance=false" not in plain and "--provenance=false" in bare
