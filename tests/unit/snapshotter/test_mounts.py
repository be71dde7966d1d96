"""From chains to mounts: exactly the options containerd's overlay snapshotter gives."""

from pathlib import Path

import pytest

from layerformat.digest import Digest
from snapshotter.errors import InvalidArgument
from snapshotter.model import GID_MAPPING, UID_MAPPING, Chain, Kind, Layout, Member, Mount, Owner
from snapshotter.mounts import MountOptions, mapped_root, mounts

LAYOUT = Layout(Path("/r"))
LAYER = Digest("sha256:" + "a" * 64)
OTHER = Digest("sha256:" + "b" * 64)
LOWERS = {LAYER: Path("/r/layers/a/fs"), OTHER: Path("/r/layers/b/fs")}
OPTIONS = MountOptions(overlay=("index=off",))
OWN, REMOTE, TOP = Member(id=1), Member(id=2, layer=LAYER), Member(id=3, layer=OTHER)


def bind(source: str, *options: str) -> Mount:
    return Mount(type="bind", source=source, options=(*options, "rbind"))


def overlay(*options: str) -> Mount:
    return Mount(type="overlay", source="overlay", options=options)


UPPER = ("workdir=/r/snapshots/9/work", "upperdir=/r/snapshots/9/fs")


@pytest.mark.parametrize(
    ("kind", "parents", "expected"),
    [
        (Kind.ACTIVE, (), bind("/r/snapshots/9/fs", "rw")),
        (Kind.VIEW, (), bind("/r/snapshots/9/fs", "ro")),
        (Kind.VIEW, (OWN,), bind("/r/snapshots/1/fs", "ro")),
        (Kind.VIEW, (REMOTE,), bind("/r/layers/a/fs", "ro")),
        (Kind.ACTIVE, (OWN,), overlay(*UPPER, "lowerdir=/r/snapshots/1/fs", "index=off")),
        (Kind.VIEW, (REMOTE, OWN), overlay("lowerdir=/r/layers/a/fs:/r/snapshots/1/fs", "index=off")),
        (
            Kind.ACTIVE,
            (OWN, TOP, REMOTE),
            overlay(*UPPER, "lowerdir=/r/snapshots/1/fs:/r/layers/b/fs:/r/layers/a/fs", "index=off"),
        ),
    ],
)
def test_mounts(kind: Kind, parents: tuple[Member, ...], expected: Mount) -> None:
    chain = Chain(id=9, kind=kind, parents=parents, labels={})
    assert mounts(chain, layout=LAYOUT, lowers=LOWERS, options=OPTIONS) == (expected,)


def test_a_layer_may_lie_in_a_chain_twice() -> None:
    chain = Chain(id=9, kind=Kind.VIEW, parents=(REMOTE, OWN, Member(id=4, layer=LAYER)), labels={})
    [mount] = mounts(chain, layout=LAYOUT, lowers=LOWERS)
    assert mount.options == ("lowerdir=/r/layers/a/fs:/r/snapshots/1/fs:/r/layers/a/fs",)


def test_id_mappings_are_passed_on_only_if_told() -> None:
    labels = {UID_MAPPING: "0:1000:65536", GID_MAPPING: "0:2000:65536"}
    chain = Chain(id=9, kind=Kind.ACTIVE, parents=(OWN,), labels=labels)
    [plain] = mounts(chain, layout=LAYOUT, lowers=LOWERS)
    [mapped] = mounts(chain, layout=LAYOUT, lowers=LOWERS, options=MountOptions(remap_ids=True))
    assert mapped.options == ("uidmap=0:1000:65536", "gidmap=0:2000:65536", *plain.options)


@pytest.mark.parametrize(
    ("labels", "owner"),
    [
        ({}, None),
        ({UID_MAPPING: "0:1000:1", GID_MAPPING: "5:7:2,0:2000:9"}, Owner(uid=1000, gid=2000)),
    ],
)
def test_the_mapped_root(labels: dict[str, str], owner: Owner | None) -> None:
    assert mapped_root(labels) == owner


@pytest.mark.parametrize("uid_map", ["", "0:1", "a:b:c", "1:1000:1", "0:1000:0", "0:-1:5"])
def test_a_mapping_without_a_root_is_refused(uid_map: str) -> None:
    with pytest.raises(InvalidArgument, match="uidmapping"):
        mapped_root({UID_MAPPING: uid_map, GID_MAPPING: "0:1:1"})
