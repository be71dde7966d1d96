"""What is known of other snapshotters without starting them."""

import tomllib
from pathlib import Path
from typing import cast

import pytest

from fastpull.demo.bench import Bench
from fastpull.demo.image import Layout
from fastpull.lab import tools
from tests.bench import rivals
from tests.bench.prepare import Prepared, push_rivals
from tests.bench.setting import Setting
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


def test_what_is_missing_is_left_out_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "find_optional", lambda name: None)
    said: list[str] = []
    setting = Setting(cache=tmp_path, runs=1, say=said.append, modes=frozenset({"fastpull", "soci"}))
    prepared = Prepared(layout=Layout(tmp_path, "x"), plain="plain", converted="converted")
    assert push_rivals(cast("Bench", None), setting, prepared, prepared.layout) == prepared
    assert said == ["soci: left out, not on PATH: soci-snapshotter-grpc, soci"]


@pytest.mark.parametrize(("name", "mirror"), [("stargz", "10.0.0.2:5000"), ("soci", "http://10.0.0.2:5000")])
def test_the_registry_speaks_plain_http(name: str, mirror: str, tmp_path: Path) -> None:
    config = tomllib.loads(BY_NAME[name].config(tmp_path, "10.0.0.2:5000", Path("/c.sock")))
    assert config["resolver"]["host"]["10.0.0.2:5000"]["mirrors"] == [{"host": mirror, "insecure": True}]


def test_soci_asks_the_private_containerd(tmp_path: Path) -> None:
    config = tomllib.loads(BY_NAME["soci"].config(tmp_path, "10.0.0.2:5000", Path("/c.sock")))
    assert config["content_store"] == {"containerd_address": "/c.sock"}
