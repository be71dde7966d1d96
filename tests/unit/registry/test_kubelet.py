"""kubelet's credential provider plugins, run for real."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fetcher.registry import CredentialsUnavailable, InvalidConfig, Origin, RegistryClient, RegistryConfig
from fetcher.registry.kubelet import KubeletProvider, matches, parse_plugins
from layerformat.digest import parse_digest
from tests.harness.fake_registry import FakeAuth, FakeRegistry
from tests.unit.registry.contract import DATA, collect

# Notes its request, wants its argument and variable, prints the answer prepared for it.
PLUGIN = """#!/bin/sh
here=$(dirname "$0")
cat > "$here/request"
[ "$1 $REGION" = "get eu" ] || exit 9
cat "$here/answer"
"""


@pytest.fixture
def plugins(tmp_path: Path) -> KubeletProvider:
    program = tmp_path / "cloud"
    program.write_text(PLUGIN)
    program.chmod(0o755)
    row: dict[str, object] = {"name": "cloud", "matchImages": ["127.0.0.*", "*.cloud.example/team"], "args": ["get"]}
    row |= {"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "env": [{"name": "REGION", "value": "eu"}]}
    config = {"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": [row]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return KubeletProvider(tmp_path / "config.json", tmp_path, {"PATH": "/usr/bin:/bin"})


def answer(tmp_path: Path, auth: Mapping[str, object]) -> None:
    document = {"kind": "CredentialProviderResponse", "cacheKeyType": "Registry", "auth": auth}
    (tmp_path / "answer").write_text(json.dumps(document))


async def test_lookup(plugins: KubeletProvider, tmp_path: Path) -> None:
    wide = {"username": "wide", "password": "x"}
    answer(tmp_path, {"*.cloud.example": wide, "a.cloud.example/team": {"username": "ann", "password": "pw"}})
    found = await plugins.lookup("a.cloud.example", "team/app")
    assert found is not None
    assert (found.username, found.password) == ("ann", "pw")
    assert json.loads((tmp_path / "request").read_text()) == {
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderRequest",
        "image": "a.cloud.example/team/app",
    }


async def test_images_that_are_not_its_own_do_not_run_it(plugins: KubeletProvider, tmp_path: Path) -> None:
    assert await plugins.lookup("a.cloud.example", "other/app") is None
    assert await plugins.lookup("ghcr.io", "team/app") is None
    assert not (tmp_path / "request").exists()


async def test_no_answer_for_the_image(plugins: KubeletProvider, tmp_path: Path) -> None:
    answer(tmp_path, {})
    assert await plugins.lookup("a.cloud.example", "team/app") is None


@pytest.mark.parametrize("text", ["", "[]", '{"auth": {"*.cloud.example": "pw"}}', '{"auth": 3}'])
async def test_nonsense(plugins: KubeletProvider, tmp_path: Path, text: str) -> None:
    (tmp_path / "answer").write_text(text)
    with pytest.raises(CredentialsUnavailable, match="cloud"):
        await plugins.lookup("a.cloud.example", "team/app")


async def test_a_plugin_that_fails(plugins: KubeletProvider) -> None:
    with pytest.raises(CredentialsUnavailable, match="exit status"):
        await plugins.lookup("a.cloud.example", "team/app")


async def test_through_the_client(config: RegistryConfig, plugins: KubeletProvider, tmp_path: Path) -> None:
    async with FakeRegistry(auth=FakeAuth(scheme="basic", users={"ann": "pw"})) as registry:
        answer(tmp_path, {"127.0.0.1": {"username": "ann", "password": "pw"}})
        digest = parse_digest(registry.add_blob("a", DATA))
        told = replace(
            config,
            kubelet_plugins=tmp_path / "config.json",
            kubelet_plugin_dir=tmp_path,
            environment={"PATH": "/usr/bin:/bin"},
        )
        async with RegistryClient(told) as client:
            assert await collect(client.pull_blob(Origin(host=registry.host, repository="a"), digest)) == DATA


@pytest.mark.parametrize(
    "text",
    [
        "",
        "providers:\n- name: ecr",
        "[]",
        "{}",
        '{"providers": 1}',
        '{"providers": [{"name": "../x", "matchImages": []}]}',
        '{"providers": [{"name": "x"}]}',
        '{"providers": [{"name": "x", "matchImages": "all"}]}',
    ],
)
def test_malformed_configuration(text: str) -> None:
    with pytest.raises(InvalidConfig, match="/etc/plugins"):
        parse_plugins(text.encode(), Path("/etc/plugins"))


@pytest.mark.parametrize(
    ("pattern", "image", "expected"),
    [
        ("*.dkr.ecr.*.amazonaws.com", "1234.dkr.ecr.eu-west-1.amazonaws.com/a", True),
        ("*.io", "ghcr.io/a/b", True),
        ("*.io", "a.k8s.io/b", False),
        ("app*.k8s.io", "app1.k8s.io/x", True),
        ("registry.io:8080/path", "registry.io:8080/path/app", True),
        ("registry.io:8080/path", "registry.io/path/app", False),
        ("registry.io", "registry.io:8080/path/app", True),
        ("registry.io/other", "registry.io/path", False),
        ("https://registry.io/", "registry.io/path", True),
    ],
)
def test_matching(pattern: str, image: str, expected: bool) -> None:
    assert matches(pattern, image) is expected
