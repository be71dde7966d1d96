"""containerd's configuration as the laboratory writes it."""

import tomllib
from pathlib import Path

import pytest

from fastpull.lab.containerd import containerd_config

TRANSFER = "io.containerd.transfer.v1.local"


def config(*, version: int = 3, cri: bool = False) -> dict[str, object]:
    text = containerd_config(
        version=version,
        root=Path("/r"),
        state=Path("/s"),
        address=Path("/a.sock"),
        proxies={"fastpull": (Path("/f.sock"), Path("/f"))},
        cri=cri,
    )
    return tomllib.loads(text)


@pytest.mark.parametrize("version", [2, 3])
def test_overlayfs_stays_usable_beside_the_proxy(version: int) -> None:
    found = config(version=version)
    unpack = found["plugins"][TRANSFER]["unpack_config"]  # type: ignore[index]
    assert [entry["snapshotter"] for entry in unpack] == ["overlayfs", "fastpull"]
    proxy = found["proxy_plugins"]["fastpull"]  # type: ignore[index]
    assert proxy["address"] == "/f.sock"
    assert proxy["exports"] == {"root": "/f", "enable_remote_snapshot_annotations": "true"}


def test_cri_only_when_asked() -> None:
    assert "io.containerd.grpc.v1.cri" in config()["disabled_plugins"]  # type: ignore[operator]
    assert "io.containerd.grpc.v1.cri" not in config(cri=True)["disabled_plugins"]  # type: ignore[operator]
