"""Where credentials come from: a chain of named providers. Secrets never show in a repr, a log or an error."""

import asyncio
import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fetcher.registry.errors import CredentialsUnavailable, InvalidConfig
from fetcher.registry.exec_helper import run_helper
from fetcher.registry.reference import DOCKER_HUB

# The key Docker files Hub's credentials under, for historical reasons.
HUB_KEY = "https://index.docker.io/v1/"
# A credential helper says with this user name that the secret is an identity token (docker-credential-helpers
# protocol).
_TOKEN_USER = "<token>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A user and password, an identity (refresh) token, or a ready bearer token."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.identity_token or self.registry_token)

    def basic(self) -> str:
        """The value of a Basic Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class CredentialProvider(Protocol):
    """Something that may know credentials. ``name`` is what a person is shown."""

    @property
    def name(self) -> str: ...

    async def lookup(self, host: str, repository: str) -> Credentials | None:
        """None: knows nothing about it.

        :class:`CredentialsUnavailable` or :class:`InvalidConfig`: should know, but failed.
        """
        ...


class StaticProvider:
    """Credentials given in the configuration, by host."""

    name = "configuration"

    def __init__(self, by_host: Mapping[str, Credentials]) -> None:
        self._by_host = by_host

    async def lookup(self, host: str, repository: str) -> Credentials | None:
        return self._by_host.get(host)


class DockerFile:
    """Docker's config.json, read again whenever the file changes (kubelet and login tools replace it under us)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._document: Mapping[str, Any] = {}

    async def document(self) -> Mapping[str, Any]:
        return await asyncio.to_thread(self._load)

    def _load(self) -> Mapping[str, Any]:
        try:
            stat = self.path.stat()
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if stamp != self._stamp:
                self._document = _parse_docker_config(self.path.read_bytes(), self.path)
                self._stamp = stamp
        except FileNotFoundError:
            self._stamp, self._document = None, {}
        except OSError as exc:
            raise InvalidConfig(f"{self.path}: {exc.strerror}") from exc
        return self._document


class DockerAuthsProvider:
    """The ``auths`` member of config.json."""

    def __init__(self, file: DockerFile) -> None:
        self._file = file
        self.name = f"{file.path} (auths)"

    async def lookup(self, host: str, repository: str) -> Credentials | None:
        auths = (await self._file.document()).get("auths")
        if not isinstance(auths, Mapping):
            return None
        by_key = {_normalise_key(key): value for key, value in auths.items()}
        for key in _config_keys(host, repository):
            entry = by_key.get(key)
            if isinstance(entry, Mapping) and (credentials := _parse_auth(entry, key, self._file.path)):
                return credentials
        return None


class DockerHelperProvider:
    """``credHelpers`` (per host) and ``credsStore`` (all hosts) of config.json: programs ``docker-credential-NAME``."""

    def __init__(self, file: DockerFile, member: str, environment: Mapping[str, str]) -> None:
        self._file = file
        self._member = member
        self._environment = environment
        self.name = f"{file.path} ({member})"

    async def lookup(self, host: str, repository: str) -> Credentials | None:
        helper = self._helper((await self._file.document()).get(self._member), host)
        if helper is None:
            return None
        server = HUB_KEY if host == DOCKER_HUB else host
        program = f"docker-credential-{helper}"
        code, output = await run_helper(program, ["get"], server.encode(), self._environment)
        if code != 0:
            if "not found" in output.decode(errors="replace"):  # "credentials not found in native keychain"
                return None
            raise CredentialsUnavailable(f"{program} get: exit status {code} for {host}")
        return _parse_helper_answer(output, program)

    def _helper(self, setting: object, host: str) -> str | None:
        if isinstance(setting, Mapping):
            by_key = {_normalise_key(key): value for key, value in setting.items()}
            setting = by_key.get(_normalise_key(host))
        return setting if isinstance(setting, str) and setting else None


def docker_providers(path: Path, environment: Mapping[str, str]) -> tuple[CredentialProvider, ...]:
    """The providers one config.json stands for, in Docker's order."""
    file = DockerFile(path)
    return (
        DockerHelperProvider(file, "credHelpers", environment),
        DockerHelperProvider(file, "credsStore", environment),
        DockerAuthsProvider(file),
    )


def _parse_docker_config(body: bytes, path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        # Not chained: the decoder's exception holds the whole document, secrets and all.
        raise InvalidConfig(f"{path}: not JSON") from None
    if not isinstance(document, Mapping):
        raise InvalidConfig(f"{path}: not a JSON object")
    return document


def _parse_auth(entry: Mapping[str, Any], key: str, path: Path) -> Credentials | None:
    username, password = _text(entry, "username"), _text(entry, "password")
    if encoded := _text(entry, "auth"):
        with suppress(binascii.Error, ValueError):
            decoded = base64.b64decode(encoded, validate=True).decode()
            username, colon, password = decoded.partition(":")
            encoded = "" if colon else encoded
            password = password.rstrip("\0")  # docker pads with NULs
        if encoded:
            raise InvalidConfig(f"{path}: auths[{key!r}].auth is not base64 of user:password")
    credentials = Credentials(
        username=username,
        password=password,
        identity_token=_text(entry, "identitytoken"),
        registry_token=_text(entry, "registrytoken"),
    )
    return credentials or None


def _parse_helper_answer(output: bytes, program: str) -> Credentials | None:
    try:
        answer = json.loads(output)
    except ValueError:
        answer = None
    if not isinstance(answer, Mapping):
        raise CredentialsUnavailable(f"{program} get: the answer is not a JSON object")
    username, secret = _text(answer, "Username"), _text(answer, "Secret")
    if username == _TOKEN_USER:
        return Credentials(identity_token=secret) or None
    return Credentials(username=username, password=secret) or None


def _normalise_key(key: str) -> str:
    """``https://host/v1/`` and ``host/`` are the same key as ``host``; every alias of Docker Hub is ``docker.io``."""
    bare = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    for suffix in ("/v1", "/v2"):
        bare = bare.removesuffix(suffix)
    return DOCKER_HUB if bare in ("index.docker.io", "registry-1.docker.io", "docker.io") else bare


def _config_keys(host: str, repository: str) -> Iterator[str]:
    """``host/a/b``, ``host/a``, ``host``: containers-auth.json(5) allows keys for parts of a registry, the longest
    wins.
    """
    key = f"{host}/{repository}"
    while key != host:
        yield key
        key = key.rpartition("/")[0]
    yield host


def _text(document: Mapping[str, Any], member: str) -> str:
    value = document.get(member)
    return value if isinstance(value, str) else ""
