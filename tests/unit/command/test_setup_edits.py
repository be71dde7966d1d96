"""Editing containerd's and Docker's configuration: what changes, what must not, what is refused."""

import json
import tomllib

import pytest

from fastpull.setup import docker_edit
from fastpull.setup.containerd_edit import Cri, Wanted, edits
from fastpull.setup.toml_edit import AppendTable, CannotEdit, SetKey, apply

V2 = """\
# kept by the machine's owner
version = 2
oom_score = -999

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.9" # pinned
    [plugins."io.containerd.grpc.v1.cri".containerd]
      snapshotter = "overlayfs"
      default_runtime_name = "runc"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
          SystemdCgroup = true
"""
V1 = """\
[plugins.cri]
  sandbox_image = "pause"
[plugins.cri.containerd]
  snapshotter = "native"
"""


def wanted(release: tuple[int, int], cri: Cri = Cri.NONE) -> Wanted:
    return Wanted(
        release=release, snapshotter="fastpull", socket="/run/fastpull/fastpull.sock", root="/var/lib/fastpull", cri=cri
    )


def changed(text: str, what: Wanted) -> tuple[str, dict[str, object]]:
    new = apply(text, edits(text, what))
    return new, tomllib.loads(new)


def test_everything_else_stays_letter_by_letter() -> None:
    new, _ = changed(V2, wanted((1, 6)))
    assert new.startswith(V2)


def test_all_pods_in_version_2() -> None:
    new, document = changed(V2, wanted((1, 6), Cri.ALL))
    cri = document["plugins"]["io.containerd.grpc.v1.cri"]  # type: ignore[index]
    assert cri["containerd"]["snapshotter"] == "fastpull"
    assert cri["containerd"]["disable_snapshot_annotations"] is False
    assert cri["containerd"]["default_runtime_name"] == "runc"
    removed = set(V2.splitlines()) - set(new.splitlines())
    assert removed == {'      snapshotter = "overlayfs"'}


def test_version_1_keeps_its_own_plugin_names() -> None:
    _, document = changed(V1, wanted((1, 6), Cri.ALL))
    plugins = document["plugins"]
    assert plugins == {
        "cri": {
            "sandbox_image": "pause",
            "containerd": {"snapshotter": "fastpull", "disable_snapshot_annotations": False},
        }
    }


def test_an_empty_file_becomes_the_version_of_its_containerd() -> None:
    assert changed("", wanted((1, 6)))[1]["version"] == 2
    assert changed("", wanted((2, 1)))[1]["version"] == 3
    assert changed("", wanted((2, 3)))[1]["version"] == 4


def test_the_transfer_service_keeps_overlayfs() -> None:
    _, document = changed("version = 3\n", wanted((2, 1)))
    rows = document["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]  # type: ignore[index]
    assert [row["snapshotter"] for row in rows] == ["overlayfs", "fastpull"]


def test_a_list_of_the_owner_only_grows() -> None:
    text = 'version = 3\n[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n  snapshotter = "native"\n'
    _, document = changed(text, wanted((2, 1)))
    rows = document["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]  # type: ignore[index]
    assert [row["snapshotter"] for row in rows] == ["native", "fastpull"]


def test_a_runtime_class_leaves_the_other_pods_alone() -> None:
    new, document = changed(V2, wanted((1, 7), Cri.RUNTIME_CLASS))
    containerd = document["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]  # type: ignore[index]
    assert containerd["snapshotter"] == "overlayfs"
    assert containerd["runtimes"]["fastpull"] == {
        "runtime_type": "io.containerd.runc.v2",
        "snapshotter": "fastpull",
        "options": {"SystemdCgroup": True},
    }
    assert new.startswith(V2)


@pytest.mark.parametrize("cri", [Cri.NONE, Cri.ALL])
@pytest.mark.parametrize("text", ["", V1, V2])
def test_a_second_time_changes_nothing(text: str, cri: Cri) -> None:
    once, _ = changed(text, wanted((1, 7), cri))
    assert changed(once, wanted((1, 7), cri))[0] == once


@pytest.mark.parametrize(
    ("text", "release", "cri"),
    [
        ("version = 5\n", (2, 1), Cri.NONE),
        ("version = [\n", (2, 1), Cri.NONE),
        (V1, (2, 0), Cri.NONE),
        (V2, (1, 6), Cri.RUNTIME_CLASS),
        ('version = 2\nproxy_plugins = "odd"\n', (1, 6), Cri.NONE),
        ("version = 2\nproxy_plugins = { fastpull = { type = 'x' } }\n", (1, 6), Cri.NONE),
    ],
)
def test_what_cannot_be_changed_safely_is_refused(text: str, release: tuple[int, int], cri: Cri) -> None:
    with pytest.raises(CannotEdit):
        apply(text, edits(text, wanted(release, cri)))


@pytest.mark.parametrize(
    "text",
    [
        'a = """\n[t]\nk = 1\n"""\n[t]\nk = 2\n',
        "[t]\nk = [\n  [1],\n]\n",
        "t.k = 1\n",
        "[t] # k = 5\n  k = 1 # old\n",
        "[ t ]\n'k' = 1\n",
    ],
)
def test_an_edit_means_what_it_says_or_is_refused(text: str) -> None:
    before = tomllib.loads(text)
    try:
        after = tomllib.loads(apply(text, [SetKey(path=("t",), key="k", value=7)]))
    except CannotEdit:
        return
    assert after == {**before, "t": {**before.get("t", {}), "k": 7}}


def test_an_array_of_tables_grows_once() -> None:
    row = AppendTable(path=("a", "b"), values={"x": "1"})
    once = apply("", [row])
    assert tomllib.loads(once) == {"a": {"b": [{"x": "1"}]}}
    assert apply(once, [row]) == once


def test_docker_keeps_its_other_settings() -> None:
    text = '{"log-driver": "local", "features": {"x": true}}'
    document = json.loads(docker_edit.edit(text, "fastpull"))
    assert document == {
        "log-driver": "local",
        "features": {"x": True, "containerd-snapshotter": True},
        "storage-driver": "fastpull",
    }
    assert docker_edit.edit(json.dumps(document), "fastpull") == json.dumps(document)


@pytest.mark.parametrize("text", ["[]", "{", '{"storage-driver": "btrfs"}', '{"features": 1}'])
def test_docker_files_that_are_refused(text: str) -> None:
    with pytest.raises(CannotEdit):
        docker_edit.edit(text, "fastpull")
