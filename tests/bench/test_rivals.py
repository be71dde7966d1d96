"""What is known of other snapshotters without starting them."""

import tomllib
from pathlib import Path

import pytest

from fastpull.lab import tools
from tests.bench import rivals
from tests.bench.starts import MODES

BY_NAME = {rival.name: rival for rival in rivals.ALL}


def test_each_is_a_way_of_starting() -> None:
    assert set(BY_NAME) < set(MODES)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "find_optional", lambda name: None if name == "soci" else Path("/bin") / name)
    assert {name: rivals.missing(rival) for name, rival in BY_NAME.items()} == {
        "stargz": [],
        "soci": ["soci"],
        "nydus": [],
    }


@pytest.mark.parametrize(("name", "mirror"), [("stargz", "10.0.0.2:5000"), ("soci", "http://10.0.0.2:5000")])
def test_the_registry_speaks_plain_http(name: str, mirror: str, tmp_path: Path) -> None:
    config = tomllib.loads(BY_NAME[name].config(tmp_path, "10.0.0.2:5000", Path("/c.sock")))
    assert config["resolver"]["host"]["10.0.0.2:5000"]["mirrors"] == [{"host": mirror, "insecure": True}]


def test_soci_asks_the_private_containerd(tmp_path: Path) -> None:
    config = tomllib.loads(BY_NAME["soci"].config(tmp_path, "10.0.0.2:5000", Path("/c.sock")))
    assert config["content_store"] == {"containerd_address": "/c.sock"}
