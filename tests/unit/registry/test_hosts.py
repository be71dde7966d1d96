"""certs.d: which endpoints a registry has, and TLS by what the files say."""

import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fetcher.registry import InvalidConfig, Origin, RegistryClient, RegistryConfig, Untrusted
from fetcher.registry.hosts import HostTable, Tls
from layerformat.digest import parse_digest
from tests.harness.fake_registry import FakeRegistry
from tests.unit.registry.contract import DATA, collect


def write(root: Path, name: str, text: str) -> Path:
    directory = root / name
    directory.mkdir()
    (directory / "hosts.toml").write_text(text)
    return directory


def bases(config: RegistryConfig, host: str) -> list[str]:
    return [endpoint.base for endpoint in HostTable(config).endpoints(host)]


def test_without_files(config: RegistryConfig) -> None:
    assert bases(config, "docker.io") == ["https://registry-1.docker.io/v2"]
    assert bases(config, "ghcr.io") == ["https://ghcr.io/v2"]
    assert bases(config, "localhost:5000") == ["http://localhost:5000/v2"]
    assert bases(replace(config, plain_http=frozenset({"10.0.0.0/8"})), "10.1.1.1:5000") == ["http://10.1.1.1:5000/v2"]
    assert bases(replace(config, loopback_https=True), "[::1]:1") == ["https://[::1]:1/v2", "http://[::1]:1/v2"]


def test_hub_is_not_told_its_own_name(config: RegistryConfig) -> None:
    (hub,) = HostTable(config).endpoints("docker.io")
    assert hub.url("library/a/blobs/x") == "https://registry-1.docker.io/v2/library/a/blobs/x"
    assert hub.credential_host == "docker.io"


FULL = """
server = "https://up.example/"
ca = "up.crt"

[host."https://one.example"]
  capabilities = ["pull"]
  ca = ["a.crt", "/etc/b.crt"]
  client = [["c.cert", "c.key"], ["d.pem", ""]]

[host."http://two.example:8080/v2/proxy"]
  override_path = true
  skip_verify = true
  [host."http://two.example:8080/v2/proxy".header]
    x-team = "t"
    x-many = ["1", "2"]
"""


def test_a_full_file(config: RegistryConfig, tmp_path: Path) -> None:
    where = write(tmp_path, "example.com", FULL)
    one, two, up = HostTable(replace(config, certs_dirs=(tmp_path,))).endpoints("example.com")
    assert [one.base, two.base, up.base] == [
        "https://one.example/v2",
        "http://two.example:8080/v2/proxy",
        "https://up.example/v2",
    ]
    assert one.capabilities == {"pull"}
    assert two.capabilities == up.capabilities == {"pull", "resolve", "push"}
    client = ((where / "c.cert", where / "c.key"), (where / "d.pem", None))
    assert replace(one.tls, stamp=()) == Tls(ca=(where / "a.crt", Path("/etc/b.crt")), client=client)
    assert two.tls.skip_verify
    assert two.headers == (("x-team", "t"), ("x-many", "1"), ("x-many", "2"))
    assert [one.upstream, two.upstream, up.upstream] == [False, False, True]
    assert one.url("a/manifests/t", "q=1") == "https://one.example/v2/a/manifests/t?q=1&ns=example.com"


def test_mirrors_of_hub_without_a_server(config: RegistryConfig, tmp_path: Path) -> None:
    write(tmp_path, "docker.io", '[host."https://mirror.example"]\n')
    config = replace(config, certs_dirs=(tmp_path,))
    assert bases(config, "docker.io") == ["https://mirror.example/v2", "https://registry-1.docker.io/v2"]


@pytest.mark.parametrize("name", ["reg.example:5000", "reg.example_5000_", "_default"])
def test_where_files_are_looked_for(config: RegistryConfig, tmp_path: Path, name: str) -> None:
    write(tmp_path, name, '[host."https://mirror.example"]\n')
    config = replace(config, certs_dirs=(tmp_path / "absent", tmp_path))
    assert bases(config, "reg.example:5000")[0] == "https://mirror.example/v2"


def test_docker_style_certificates(config: RegistryConfig, tmp_path: Path) -> None:
    directory = tmp_path / "reg.example"
    directory.mkdir()
    for name in ("ca.crt", "me.cert", "me.key"):
        (directory / name).touch()
    (only,) = HostTable(replace(config, certs_dirs=(tmp_path,))).endpoints("reg.example")
    assert replace(only.tls, stamp=()) == Tls(
        ca=(directory / "ca.crt",), client=((directory / "me.cert", directory / "me.key"),)
    )


@pytest.mark.parametrize(
    "text",
    [
        "server = ",
        "server = 5",
        'server = "ftp://a"',
        'server = "https://user:secret@a"',
        "host = 1",
        '[host."https://a"]\ncapabilities = ["fly"]',
        '[host."https://a"]\ncapabilities = "pull"',
        '[host."https://a"]\nca = 1',
        '[host."https://a"]\nclient = [["a", "b", "c"]]',
        '[host."https://a"]\nheader = 1',
        "[host]\na = 1",
    ],
)
def test_malformed_files_are_named(config: RegistryConfig, tmp_path: Path, text: str) -> None:
    where = write(tmp_path, "example.com", text)
    with pytest.raises(InvalidConfig, match=str(where / "hosts.toml")) as caught:
        bases(replace(config, certs_dirs=(tmp_path,)), "example.com")
    assert "secret" not in str(caught.value)


# TLS, for real

SELF_SIGNED = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    certificate = path.with_suffix(".pem.crt")
    subprocess.run(
        [
            *SELF_SIGNED,
            "-subj",
            "/CN=fake",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            path,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + certificate.read_text())
    return path


@pytest.fixture
async def secure(certificate: Path) -> AsyncIterator[FakeRegistry]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with FakeRegistry(ssl_context=context) as registry:
        yield registry


async def fetch(config: RegistryConfig, root: Path, registry: FakeRegistry, settings: str) -> bytes:
    digest = parse_digest(registry.add_blob("team/app", DATA))
    write(root, "secure.test", f'server = "{registry.url}"\n{settings}\n')
    async with RegistryClient(replace(config, certs_dirs=(root,))) as client:
        return await collect(client.pull_blob(Origin(host="secure.test", repository="team/app"), digest))


async def test_unknown_certificates_are_refused(config: RegistryConfig, tmp_path: Path, secure: FakeRegistry) -> None:
    with pytest.raises(Untrusted, match="certificate is not trusted"):
        await fetch(config, tmp_path, secure, "")
    assert not secure.requests


async def test_ca_of_hosts_toml(
    config: RegistryConfig, tmp_path: Path, secure: FakeRegistry, certificate: Path
) -> None:
    assert await fetch(config, tmp_path, secure, f'ca = "{certificate}.crt"') == DATA


async def test_edited_files_are_noticed(
    config: RegistryConfig,
    tmp_path: Path,
    secure: FakeRegistry,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fetcher.registry.hosts.LIFETIME_S", 0.0)
    digest = parse_digest(secure.add_blob("team/app", DATA))
    where = write(tmp_path, "secure.test", f'server = "{secure.url}"\nca = "ca.crt"\n')
    other = subprocess.run(
        [*SELF_SIGNED, "-subj", "/CN=other", "-keyout", "/dev/null"],
        check=True,
        capture_output=True,
    )
    (where / "ca.crt").write_bytes(other.stdout)
    origin = Origin(host="secure.test", repository="team/app")
    async with RegistryClient(replace(config, certs_dirs=(tmp_path,))) as client:
        with pytest.raises(Untrusted):
            await collect(client.pull_blob(origin, digest))
        (where / "ca.crt").write_bytes(Path(f"{certificate}.crt").read_bytes())
        assert await collect(client.pull_blob(origin, digest)) == DATA


async def test_skip_verify(config: RegistryConfig, tmp_path: Path, secure: FakeRegistry) -> None:
    assert await fetch(config, tmp_path, secure, "skip_verify = true") == DATA


async def test_absent_ca_is_named(config: RegistryConfig, tmp_path: Path, secure: FakeRegistry) -> None:
    with pytest.raises(InvalidConfig, match=r"absent\.crt"):
        await fetch(config, tmp_path, secure, 'ca = "absent.crt"')


async def test_https_first_on_loopback_if_told(config: RegistryConfig) -> None:
    async with FakeRegistry() as plain:
        digest = parse_digest(plain.add_blob("a", DATA))
        async with RegistryClient(replace(config, loopback_https=True)) as client:
            assert await collect(client.pull_blob(Origin(host=plain.host, repository="a"), digest)) == DATA


async def test_headers_of_hosts_toml_stay_with_the_registry(config: RegistryConfig, tmp_path: Path) -> None:
    async with FakeRegistry(redirect=True) as registry:
        settings = '[header]\nx-team = "t"'
        assert await fetch(config, tmp_path, registry, settings) == DATA
        assert all(seen.headers.get("x-team") == "t" for seen in registry.requests)
        assert "x-team" not in registry.storage.requests[0].headers
