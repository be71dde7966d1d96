"""The daemon's configuration: what the file may say, and the line that tells what it must not."""

import json
from pathlib import Path

import pytest

from fastpull.config import ConfigError, load
from fastpull.registry_hosts import RegistryHosts


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_without_a_file() -> None:
    config = load(None, {"HOME": "/home/x"}, {})
    assert config.socket == Path("/run/fastpull/fastpull.sock")
    assert config.fetcher.root == Path("/var/lib/fastpull")
    assert config.fetcher.registry.docker_config == Path("/home/x/.docker/config.json")


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.toml",
        """
        root = "/from/file"
        run_dir = "/run/file"
        remap_ids = true
        [fetcher]
        data_plane = "fanotify"
        sync_interval_s = 5
        [fetcher.governor]
        streams = 7
        [registry]
        plain_http = ["reg:5000", "10.0.0.0/8"]
        certs_dirs = ["/a", "/b"]
        [registry.timeouts]
        connect_s = 1.5
        """,
    )
    overrides = {"root": Path("/from/flag"), "run_dir": None, "data_plane": "none"}
    config = load(file, {}, overrides)
    assert (config.root, config.run_dir, config.remap_ids) == (Path("/from/flag"), Path("/run/file"), True)
    assert (config.fetcher.root, config.fetcher.run) == (config.root, config.run_dir)
    assert (config.fetcher.data_plane, config.fetcher.sync_interval_s) == ("none", 5.0)
    assert config.fetcher.governor.streams == 7
    assert config.fetcher.registry.plain_http == {"reg:5000", "10.0.0.0/8"}
    assert config.fetcher.registry.certs_dirs == (Path("/a"), Path("/b"))
    assert config.fetcher.registry.timeouts.connect_s == 1.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rot = 1", "rot: unknown setting"),
        ("[fetcher]\nrot = 1", r"fetcher\.rot: unknown setting"),
        ("[fetcher]\nroot = '/x'", r"fetcher\.root: unknown setting"),
        ("[registry]\ncredentials = {}", r"registry\.credentials: unknown setting"),
        ("[fetcher.governor]\nstreams = 'x'", r"fetcher\.governor\.streams: 'x' is not int"),
        ("[fetcher.governor]\nstreams = true", r"fetcher\.governor\.streams: True is not int"),
        ("registry_hosts = ['a', 1]", r"registry_hosts\[1\]: 1 is not str"),
        ("registry_hosts = 'a'", "registry_hosts: 'a' is not"),
        ("remap_ids = 1", "remap_ids: 1 is not bool"),
        ("fetcher = 1", "fetcher: is not a table"),
        ("root = 'relative'", "root: relative must be absolute"),
        ("root = '/a:b'", "root: /a:b must be absolute"),
        ("root = '/a,b'", "without any of"),
        (f"address = '/{'x' * 107}'", "at most 107 bytes"),
        (f"run_dir = '/{'x' * 100}'", "at most 107 bytes"),
        ("log_level = 'loud'", "log_level: 'loud' is none of"),
        ("[fetcher]\ndata_plane = 'x'", r"fetcher\.data_plane: 'x' is none of"),
        ("= 1", r"c\.toml: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path / "c.toml", text), {}, {})


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.toml", {}, {})


def test_hosts_with_ports_come_from_everywhere(tmp_path: Path) -> None:
    for name in ("_default", "mirror.corp:8443", "other.corp_5001_", "docker.io"):
        (tmp_path / "certs" / name).mkdir(parents=True)
    document: dict[str, object] = {"auths": {"login.corp:7000": {}, "https://old.corp:81/v1/": {}, "docker.io": {}}}
    write(tmp_path / "config.json", json.dumps(document))
    file = write(
        tmp_path / "c.toml",
        f"""
        registry_hosts = ["first.corp:5000"]
        [registry]
        plain_http = ["plain.corp:80", "first.corp:5000", "10.0.0.0/8", "noport"]
        certs_dirs = ["{tmp_path}/certs", "{tmp_path}/absent"]
        docker_config = "{tmp_path}/config.json"
        """,
    )
    names = RegistryHosts(load(file, {}, {})).names()
    assert names == (
        "first.corp:5000",
        "plain.corp:80",
        "mirror.corp:8443",
        "other.corp:5001",
        "login.corp:7000",
        "old.corp:81",
    )
    write(tmp_path / "config.json", "{")
    assert "mirror.corp:8443" in RegistryHosts(load(file, {}, {})).names()
