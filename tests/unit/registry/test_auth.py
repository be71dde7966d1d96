"""Authentication: where credentials come from, when tokens are renewed, and that secrets stay secret."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from fetcher.registry import (
    Credentials,
    Denied,
    Origin,
    ProviderAnswer,
    RegistryClient,
    RegistryConfig,
    Unauthorized,
    Untrusted,
)
from layerformat.digest import Digest, parse_digest
from tests.harness.fake_registry import FakeAuth, FakeRegistry, Fault
from tests.unit.registry.contract import DATA, collect

SECRET = "s3cr3t-pa55"
REFRESH = "identity-t0ken"
Connect = Callable[..., AbstractAsyncContextManager[RegistryClient]]


@pytest.fixture
def auth() -> FakeAuth:
    return FakeAuth(users={"ann": SECRET}, refresh=frozenset({REFRESH}))


@pytest.fixture
async def fake(auth: FakeAuth) -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry(auth=auth) as registry:
        yield registry


@pytest.fixture
def digest(fake: FakeRegistry) -> Digest:
    return parse_digest(fake.add_blob("team/app", DATA))


@pytest.fixture
def connect(fake: FakeRegistry, config: RegistryConfig, tmp_path: Path) -> Connect:
    """A client with a config.json of the given members and the helpers in ``tmp_path/bin``."""

    @asynccontextmanager
    async def make(docker: object = None, *, static: Credentials | None = None) -> AsyncIterator[RegistryClient]:
        path = tmp_path / "config.json"
        if docker is not None:
            path.write_text(docker if isinstance(docker, str) else json.dumps(docker))
        full = replace(
            config,
            docker_config=path,
            environment={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)},
            credentials={fake.host: static} if static else {},
        )
        async with RegistryClient(full) as client:
            yield client

    return make


def auths(host: str, user: str = "ann", password: str = SECRET) -> dict[str, object]:
    return {"auths": {host: {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}}}


def helper(root: Path, name: str, script: str) -> None:
    (root / "bin").mkdir(exist_ok=True)
    path = root / "bin" / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


async def works(client: RegistryClient, origin: Origin, digest: Digest) -> bool:
    async with client.read_blob(origin, digest, offset=3, length=4) as chunks:
        return await collect(chunks) == DATA[3:7]


@pytest.mark.parametrize("scheme", ["bearer", "basic"])
async def test_config_json(
    connect: Connect, fake: FakeRegistry, auth: FakeAuth, origin: Origin, digest: Digest, scheme: str
) -> None:
    auth.scheme = scheme
    async with connect(auths(fake.host)) as client:
        assert await works(client, origin, digest)


@pytest.mark.parametrize("spelling", ["https://{}/v1/", "http://{}", "{}/", "{}/team", "{}/team/app"])
async def test_keys_of_config_json(
    connect: Connect, fake: FakeRegistry, origin: Origin, digest: Digest, spelling: str
) -> None:
    async with connect(auths(spelling.format(fake.host))) as client:
        assert await works(client, origin, digest)


async def test_identity_token_is_posted(
    connect: Connect, fake: FakeRegistry, auth: FakeAuth, origin: Origin, digest: Digest
) -> None:
    async with connect({"auths": {fake.host: {"identitytoken": REFRESH}}}) as client:
        assert await works(client, origin, digest)
    ((method, form),) = auth.token_requests
    assert method == "POST"
    assert (form["grant_type"], form["scope"]) == ("refresh_token", "repository:team/app:pull")


async def test_cred_helper(
    connect: Connect, fake: FakeRegistry, origin: Origin, digest: Digest, tmp_path: Path
) -> None:
    answer = json.dumps({"ServerURL": fake.host, "Username": "ann", "Secret": SECRET})
    helper(tmp_path, "test", f'read server; [ "$1 $server" = "get {fake.host}" ] && echo \'{answer}\'')
    async with connect({"credHelpers": {fake.host: "test"}}) as client:
        assert await works(client, origin, digest)


async def test_creds_store_with_an_identity_token(
    connect: Connect, fake: FakeRegistry, origin: Origin, digest: Digest, tmp_path: Path
) -> None:
    helper(tmp_path, "store", f"echo '{json.dumps({'Username': '<token>', 'Secret': REFRESH})}'")
    async with connect({"credsStore": "store"}) as client:
        assert await works(client, origin, digest)


@pytest.mark.parametrize(
    "script",
    [
        "exit 7",
        "echo nonsense",
        f"echo '{SECRET}' >&2; exit 1",
        "echo credentials not found in native keychain; exit 1",
    ],
)
async def test_a_helper_that_fails_is_passed_over(
    connect: Connect, fake: FakeRegistry, origin: Origin, digest: Digest, tmp_path: Path, script: str
) -> None:
    helper(tmp_path, "bad", script)
    with structlog.testing.capture_logs() as logs:
        async with connect({"credsStore": "bad", **auths(fake.host)}) as client:
            assert await works(client, origin, digest)
    assert SECRET not in f"{logs}"


async def test_an_absent_helper_is_passed_over(
    connect: Connect, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    async with connect({"credsStore": "is-not-installed", **auths(fake.host)}) as client:
        assert await works(client, origin, digest)


async def test_wrong_credentials_fall_back_to_anonymous(
    connect: Connect, fake: FakeRegistry, auth: FakeAuth, origin: Origin, digest: Digest
) -> None:
    auth.anonymous_pull = True
    async with connect(auths(fake.host, password="outdated")) as client:
        assert await works(client, origin, digest)


async def test_the_next_provider_is_tried_when_one_is_wrong(
    connect: Connect, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    wrong = Credentials(username="ann", password="wrong")
    async with connect(auths(fake.host), static=wrong) as client:
        assert await works(client, origin, digest)


@pytest.mark.parametrize("scheme", ["bearer", "basic"])
async def test_no_credentials_help(
    connect: Connect, fake: FakeRegistry, auth: FakeAuth, origin: Origin, digest: Digest, scheme: str
) -> None:
    auth.scheme = scheme
    async with connect(auths(fake.host, password="outdated")) as client:
        with pytest.raises(Unauthorized):
            await works(client, origin, digest)


async def test_anonymous_may_not_push(connect: Connect, auth: FakeAuth, origin: Origin) -> None:
    auth.anonymous_pull = True
    async with connect() as client:
        with pytest.raises((Unauthorized, Denied)):
            await client.push_blob_bytes(origin, b"mine")


@pytest.mark.parametrize("status", [401, 403])
async def test_expired_tokens_are_renewed_unseen(
    connect: Connect, fake: FakeRegistry, auth: FakeAuth, origin: Origin, digest: Digest, status: int
) -> None:
    auth.stale_status = status
    async with connect(auths(fake.host)) as client:
        for _ in range(3):
            assert await works(client, origin, digest)
        assert len(auth.token_requests) == 1
        auth.expire()
        assert await works(client, origin, digest)
    assert len(auth.token_requests) == 2


async def test_tokens_are_renewed_before_they_expire(
    connect: Connect, fake: FakeRegistry, auth: FakeAuth, origin: Origin, digest: Digest
) -> None:
    auth.lifetime_s = 1
    async with connect(auths(fake.host)) as client:
        assert await works(client, origin, digest)
        await asyncio.sleep(0.9)
        assert await works(client, origin, digest)
    refused = [seen for seen in fake.seen("GET", "/blobs/") if seen.status == 401]
    assert len(refused) == 1  # the very first request


async def test_many_readers_cause_one_renewal(
    connect: Connect, fake: FakeRegistry, auth: FakeAuth, origin: Origin, digest: Digest
) -> None:
    async with connect(auths(fake.host)) as client:
        assert all(await asyncio.gather(*(works(client, origin, digest) for _ in range(20))))
        assert len(auth.token_requests) == 1
        auth.expire()
        assert all(await asyncio.gather(*(works(client, origin, digest) for _ in range(20))))
    assert len(auth.token_requests) == 2


async def test_a_renewal_whose_first_waiter_is_cancelled_goes_on(
    connect: Connect, fake: FakeRegistry, auth: FakeAuth, origin: Origin, digest: Digest
) -> None:
    fake.fault(Fault(path="/token", delay_s=0.3))
    async with connect(auths(fake.host)) as client:
        first = asyncio.ensure_future(works(client, origin, digest))
        await asyncio.sleep(0.1)
        second = asyncio.ensure_future(works(client, origin, digest))
        await asyncio.sleep(0.1)
        first.cancel()
        assert await second


async def test_cancelled_while_a_token_is_fetched(
    connect: Connect, fake: FakeRegistry, origin: Origin, digest: Digest
) -> None:
    fake.fault(Fault(path="/token", delay_s=5))
    async with connect(auths(fake.host)) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await works(client, origin, digest)
        assert await works(client, origin, digest)


async def test_pull_and_push_have_their_own_tokens(
    connect: Connect, fake: FakeRegistry, auth: FakeAuth, origin: Origin, digest: Digest
) -> None:
    async with connect(auths(fake.host)) as client:
        await works(client, origin, digest)
        await client.push_blob_bytes(origin, b"mine")
    scopes = [form["scope"] for _, form in auth.token_requests]
    assert scopes == ["repository:team/app:pull", "repository:team/app:pull,push"]


async def test_a_new_config_json_is_noticed(
    connect: Connect, fake: FakeRegistry, auth: FakeAuth, origin: Origin, digest: Digest, tmp_path: Path
) -> None:
    async with connect(auths(fake.host, password="outdated")) as client:
        with pytest.raises(Unauthorized):
            await works(client, origin, digest)
        (tmp_path / "config.json").write_text(json.dumps(auths(fake.host)))
        assert await works(client, origin, digest)


async def test_basic_credentials_do_not_go_to_a_plain_token_server(
    connect: Connect, fake: FakeRegistry, auth: FakeAuth, origin: Origin, digest: Digest
) -> None:
    auth.realm = "http://tokens.example/token"
    async with connect(auths(fake.host)) as client:
        with pytest.raises(Untrusted, match="plain HTTP"):
            await works(client, origin, digest)


async def test_explain(connect: Connect, fake: FakeRegistry, origin: Origin, tmp_path: Path) -> None:
    helper(tmp_path, "bad", "exit 3")
    async with connect({"credsStore": "bad", **auths(fake.host)}) as client:
        answers = await client.explain_credentials(origin)
    path = tmp_path / "config.json"
    problem = f"docker-credential-bad get: exit status 3 for {fake.host}"
    assert answers == (
        ProviderAnswer(provider=f"{path} (credHelpers)", answered=False),
        ProviderAnswer(provider=f"{path} (credsStore)", answered=False, problem=problem),
        ProviderAnswer(provider=f"{path} (auths)", answered=True, username="ann"),
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"HOST": {"auth": "%%%"}}}'])
async def test_a_broken_config_json_names_the_file_and_no_secret(
    connect: Connect, fake: FakeRegistry, origin: Origin, tmp_path: Path, text: str
) -> None:
    async with connect(text.replace("HOST", fake.host)) as client:
        problems = [answer.problem for answer in await client.explain_credentials(origin) if answer.problem]
    assert problems
    assert all(str(tmp_path / "config.json") in problem and "%%%" not in problem for problem in problems)


async def test_secrets_are_nowhere_to_be_seen(
    connect: Connect, fake: FakeRegistry, auth: FakeAuth, origin: Origin, digest: Digest
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with connect(auths(fake.host), static=Credentials(username="ann", password=SECRET)) as client:
            await works(client, origin, digest)
            tokens = list(auth.tokens)
            fake.fault(Fault(path="/blobs/", status=403, times=None))
            with pytest.raises(Denied) as caught:
                await works(client, origin, digest)
            shown = f"{logs}{caught.value!r}{client.config!r}{vars(client)!r}"
    assert SECRET not in shown
    assert not any(token in shown for token in tokens)
