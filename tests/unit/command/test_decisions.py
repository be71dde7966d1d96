"""The command's pure decisions: laziness, cleaning, registries, builders, events, samples, doctor, status."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastpull.amounts import in_bytes
from fastpull.builders import Buildah, BuildRequest, Buildx, DockerDaemon, NerdctlBuild
from fastpull.cleaning import Container, Scope, make_plan
from fastpull.containerd_events import ContainerEvent, Moment, decode
from fastpull.daemon_client import parse
from fastpull.doctor.check import Level
from fastpull.doctor.config import Expected, config_checks
from fastpull.doctor.services import release_of
from fastpull.failures import Failure
from fastpull.laziness import classify
from fastpull.local_images import LocalImage
from fastpull.readiness import check_endpoint
from fastpull.registries import destination, kind_of, login_hint
from fastpull.samples import Benchmark, Sample
from fastpull.setup.unit import Paths, unit_text
from fastpull.status_view import image_lines, profile_words
from fetcher.registry import Descriptor
from layerformat.digest import Digest
from snapshotter._pb import task_events_pb2

LAZY = "/var/lib/fastpull/layers/0123456789abcdef/fs"
ORDINARY = "/var/lib/fastpull/snapshots/12/fs"


@pytest.mark.parametrize(
    ("options", "lazy", "ordinary"),
    [
        ([f"lowerdir={LAZY}", "upperdir=/u", "workdir=/w"], 1, 0),
        ([f"lowerdir={ORDINARY}:{LAZY}:{LAZY}2"], 2, 1),
        (["index=off", f"lowerdir={ORDINARY}"], 0, 1),
    ],
)
def test_layers_are_told_apart_by_their_directories(options: list[str], lazy: int, ordinary: int) -> None:
    lowers = classify([("overlay", "overlay", options)])
    assert (len(lowers.lazy), len(lowers.ordinary)) == (lazy, ordinary)


def test_a_bind_mount_of_one_layer_is_told_apart_too() -> None:
    assert classify([("bind", LAZY, ["rbind", "ro"])]).lazy == (LAZY,)
    assert classify([("bind", ORDINARY, ["rbind", "ro"])]).ordinary == (ORDINARY,)


def container(name: str, snapshotter: str, *, running: bool = False, image: str = "i") -> Container:
    return Container(id=name, name=name, image=image, snapshotter=snapshotter, running=running)


def image(name: str, *unpacked: str) -> LocalImage:
    return LocalImage(name=name, namespace="d", digest="", layers=(), unpacked=frozenset(unpacked))


def test_clean_decides_by_snapshotter_state_and_use() -> None:
    containers = [
        container("a", "fastpull"),
        container("b", "fastpull", running=True, image="used"),
        container("c", "overlayfs"),
    ]
    images = [
        image("i", "fastpull"),
        image("used", "fastpull"),
        image("both", "fastpull", "overlayfs"),
        image("o", "overlayfs"),
    ]
    ours = frozenset({"fastpull"})
    plan = make_plan(containers, images, Scope(containers=True, images=True, snapshotters=ours, force=False))
    assert [one.name for one in plan.containers] == ["a"]
    assert [one.name for one in plan.images] == []  # container c still uses i
    assert {kept.name for kept in plan.kept} == {"b", "i", "used", "both"}
    forced = make_plan(containers, images, Scope(containers=True, images=True, snapshotters=ours, force=True))
    assert [one.name for one in forced.containers] == ["a", "b"]
    assert [one.name for one in forced.images] == ["used"]
    everything = make_plan(containers, images, Scope(containers=True, images=True, snapshotters=None, force=True))
    assert len(everything.containers) == 3 and len(everything.images) == 4


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "ecr"),
        ("public.ecr.aws", "ecr"),
        ("us-central1-docker.pkg.dev", "gar"),
        ("gcr.io", "gar"),
        ("docker.io", "dockerhub"),
        ("ghcr.io", "generic"),
        ("quay.io", "generic"),
        ("localhost:5000", "generic"),
    ],
)
def test_every_registry_has_a_kind(host: str, kind: str) -> None:
    assert kind_of(host) == kind
    assert destination(f"{host}/a/b:1", "auto").host == host
    assert destination(f"{host}/a/b:1", "generic").host == host
    assert host in login_hint(destination(f"{host}/a/b", "auto"))


@pytest.mark.parametrize(
    ("given", "kind", "expected"),
    [
        ("app", "auto", "docker.io/library/app:latest"),
        ("localhost:5000/img", "auto", "localhost:5000/img:latest"),
        ("localhost:5000/img:v1", "generic", "localhost:5000/img:v1"),
    ],
)
def test_destinations_need_no_tag_and_keep_their_port(given: str, kind: str, expected: str) -> None:
    assert str(destination(given, kind)) == expected


def test_artifact_registry_completes_a_bare_name() -> None:
    made = destination("app:1", "gar", project="p", location="europe-west1", repository="r")
    assert str(made) == "europe-west1-docker.pkg.dev/p/r/app:1"


@pytest.mark.parametrize(
    ("given", "kind"), [("ghcr.io/a/b", "ecr"), ("app", "gar"), ("a/b@sha256:" + "0" * 64, "auto")]
)
def test_wrong_destinations_are_refused(given: str, kind: str) -> None:
    with pytest.raises(Failure):
        destination(given, kind)


@pytest.mark.parametrize(
    "builder", [Buildx(("/d", "buildx")), Buildx(("/b",)), DockerDaemon("/d"), NerdctlBuild("/n"), Buildah("/b")]
)
def test_builders_get_every_flag_and_end_in_one_archive(builder: Any) -> None:
    request = BuildRequest(
        context=Path("/c"),
        dockerfile=Path("/c/D"),
        build_args=("A=1", "B=2 3"),
        secrets=("id=s,src=/s",),
        target="t",
        platforms=("linux/arm64", "linux/amd64"),
        no_cache=True,
    )
    steps = builder.steps(request, Path("/tmp/i.tar"), "name:tag")
    words = [word for step in steps for word in step]
    for flag in (
        "--build-arg=A=1",
        "--build-arg=B=2 3",
        "--secret=id=s,src=/s",
        "--target=t",
        "--no-cache",
        "--file=/c/D",
    ):
        assert flag in words
    assert "--platform=linux/arm64,linux/amd64" in words
    assert any("/tmp/i.tar" in word for word in steps[-1])


def test_only_the_first_process_of_a_container_is_its_end() -> None:
    exec_exit = task_events_pb2.TaskExit(container_id="c", id="exec", exit_status=1).SerializeToString()
    init_exit = task_events_pb2.TaskExit(container_id="c", id="c", exit_status=9).SerializeToString()
    assert decode("/tasks/exit", exec_exit, 1.0) is None
    assert decode("/tasks/exit", init_exit, 1.0) == ContainerEvent(
        container_id="c", moment=Moment.EXITED, at_s=1.0, exit_status=9
    )
    assert decode("/tasks/oom", b"", 1.0) is None


def test_several_runs_are_told_with_their_spread() -> None:
    samples = tuple(
        Sample(container_id=str(n), container_start_time=n, total_elapsed_time=2.0 * n) for n in (1.0, 2.0, 9.0)
    )
    benchmark = Benchmark(image="i", mode="normal", benchmark_mode="completion", cold=True, samples=samples)
    document = json.loads(json.dumps(benchmark.to_json()))
    assert document["metrics"]["container_start_time"] == 2.0
    assert document["statistics"]["container_start_time"] == {"median": 2.0, "min": 1.0, "max": 9.0}
    assert document["metrics"]["readiness_time"] is None and "readiness_time" not in document["statistics"]
    assert "2.00s  (median of 3; 1.00s to 9.00s)" in benchmark.summary()


@pytest.mark.parametrize("url", ["localhost:8080/health", "ftp://x/", "http://", ""])
def test_endpoints_that_cannot_be_asked(url: str) -> None:
    with pytest.raises(Failure):
        check_endpoint(url)


def test_the_unit_lets_containers_live_through_a_restart() -> None:
    unit = unit_text(Paths(program="/opt/fast pull/bin/fastpull-snapshotter"))
    for line in ("KillMode=process", "Before=containerd.service", "Environment=HOME=/root", "Restart=always"):
        assert line in unit.splitlines()
    assert 'ExecStart="/opt/fast pull/bin/fastpull-snapshotter" --config' in unit


EXPECTED = Expected(snapshotter="fastpull", socket=Path("/run/fastpull/fastpull.sock"), root=Path("/var/lib/fastpull"))


def good_config() -> dict[str, Any]:
    exports = {"root": "/var/lib/fastpull", "enable_remote_snapshot_annotations": "true"}
    plugin = {"type": "snapshot", "address": "/run/fastpull/fastpull.sock", "exports": exports}
    rows = [{"snapshotter": "overlayfs"}, {"snapshotter": "fastpull"}]
    transfer = {"io.containerd.transfer.v1.local": {"unpack_config": rows}}
    return {"proxy_plugins": {"fastpull": plugin}, "plugins": transfer}


def test_a_good_configuration_has_nothing_to_fix() -> None:
    assert not [check for check in config_checks(good_config(), (2, 1), EXPECTED) if check.level is not Level.OK]


@pytest.mark.parametrize(
    ("path", "value", "level"),
    [
        (("proxy_plugins",), {}, Level.FAIL),
        (("proxy_plugins", "fastpull", "type"), "content", Level.FAIL),
        (("proxy_plugins", "fastpull", "address"), "/run/other.sock", Level.FAIL),
        (("proxy_plugins", "fastpull", "capabilities"), ["rebase"], Level.FAIL),
        (("proxy_plugins", "fastpull", "exports"), {}, Level.NOTE),
        (("plugins", "io.containerd.transfer.v1.local"), {}, Level.FAIL),
        (("plugins", "io.containerd.transfer.v1.local", "unpack_config"), [{"snapshotter": "fastpull"}], Level.FAIL),
        (
            ("plugins", "io.containerd.cri.v1.images"),
            {"snapshotter": "fastpull", "discard_unpacked_layers": True},
            Level.NOTE,
        ),
    ],
)
def test_each_fault_of_a_configuration_is_found_with_its_fix(path: tuple[str, ...], value: Any, level: Level) -> None:
    config = good_config()
    place = config
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    found = [check for check in config_checks(config, (2, 1), EXPECTED) if check.level is not Level.OK]
    assert found and all(check.fix for check in found)
    assert max(found, key=lambda check: check.level is Level.FAIL).level is level


@pytest.mark.parametrize(("text", "release"), [("v2.1.4", (2, 1)), ("1.6.20~ds1", (1, 6)), ("dev", (0, 0))])
def test_versions(text: str, release: tuple[int, int]) -> None:
    assert release_of(text) == release


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1234567, "1.23 MB"), (99_950_000, "100 MB"), (5e12, "5.00 TB")]
)
def test_amounts(count: float, text: str) -> None:
    assert in_bytes(count) == text


def test_status_says_why_a_layer_is_not_lazy() -> None:
    layer = Descriptor(media_type="m", digest=Digest("sha256:" + "1" * 64), size=5)
    shown = LocalImage(name="i", namespace="d", digest="", layers=(layer,), unpacked=frozenset({"fastpull"}))
    daemon = parse({"fetcher": None})
    [line] = image_lines(shown, daemon, "fastpull").layers
    assert not line.lazy and "not converted" in line.why


@pytest.mark.parametrize("document", [{}, {"fetcher": {}}, {"fetcher": {"layers": [{}]}}])
def test_a_daemon_of_another_version_is_noticed(document: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        parse(document)


_NO_PROFILE = {
    "manifest": "sha256:0",
    "recording": False,
    "reads": 0,
    "source": None,
    "frames_prefetched": 0,
    "frames_packed": 0,
    "stored": False,
    "problem": None,
}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "none"),
        ({"recording": True, "reads": 7}, "recording this start, 7 reads"),
        ({"stored": True}, "recorded, for the next start here"),
        ({"stored": True, "frames_prefetched": 3, "source": "local"}, "replayed from this node"),
        ({"frames_prefetched": 3, "source": "registry"}, "replayed from the registry"),
        ({"frames_prefetched": 3, "frames_packed": 2, "source": "registry"}, "replayed from the registry, from a pack"),
        ({"stored": True, "problem": "of another image"}, "unusable: of another image"),
    ],
)
def test_status_tells_what_became_of_the_profile(row: dict[str, object], said: str) -> None:
    assert profile_words(_NO_PROFILE | row) == said
