"""The pure parts: references, descriptors, challenges, ranges, statuses, retries."""

import json
from email.utils import formatdate
from time import monotonic, time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.registry import (
    Denied,
    Descriptor,
    InvalidReference,
    NotFound,
    Platform,
    ProtocolViolation,
    RateLimited,
    Reference,
    RegistryError,
    Rejected,
    RetryPolicy,
    Unauthorized,
    Unavailable,
    is_loopback,
    is_plain,
    is_transient,
)
from fetcher.registry.challenge import Challenge, merge_scopes, parse_challenges, pull, push
from fetcher.registry.descriptor import descriptors, parse_json_object
from fetcher.registry.ranges import BodyPlan, parse_count, plan_body, range_header
from fetcher.registry.status import MAX_RETRY_AFTER_S, error_from, parse_retry_after
from fetcher.registry.tokens import parse_token

HEX = "a1" * 32
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("bitnami/redis", "docker.io/bitnami/redis:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/a/b:t", "docker.io/a/b:t"),
        ("registry-1.docker.io/alpine", "docker.io/library/alpine:latest"),
        ("localhost/a", "localhost/a:latest"),
        ("localhost:5000/a/b/c:v1", "localhost:5000/a/b/c:v1"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("Registry/a", "Registry/a:latest"),
        (f"ghcr.io/a/b@{DIGEST}", f"ghcr.io/a/b@{DIGEST}"),
        (f"ghcr.io/a/b:t@{DIGEST}", f"ghcr.io/a/b:t@{DIGEST}"),
        ("ghcr.io/a__b/c--d.e_f:T.a-_g", "ghcr.io/a__b/c--d.e_f:T.a-_g"),
        ("foo:5000", "docker.io/library/foo:5000"),
        ("foo:5000/bar", "foo:5000/bar:latest"),
    ],
)
def test_reference(text: str, canonical: str) -> None:
    ref = Reference.parse(text)
    assert str(ref) == canonical
    assert Reference.parse(canonical) == ref


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "@",
        "/",
        "a/",
        "/a",
        "a//b",
        "A",
        "a:",
        "a:-t",
        "a@",
        "a@sha256:00",
        "a@md5:00",
        "a b",
        "a_/b",
        "-a",
        "a___b",
        "ghcr.io/A/b",
        "http://ghcr.io/a",
        "a:t:t",
        HEX,
        f"a:{'t' * 129}",
        "a" * 256,
        "a\n",
        "é",
        "host:port/a",
        "host:/a",
        f"a@sha512:{HEX}{HEX}",
        f"a@{DIGEST.upper()}",
    ],
)
def test_no_reference(text: str) -> None:
    with pytest.raises(InvalidReference):
        Reference.parse(text)


@given(st.text(alphabet="aA0._-:/@[]", max_size=30))
def test_reference_is_total_and_canonical(text: str) -> None:
    try:
        ref = Reference.parse(text)
    except InvalidReference:
        return
    assert Reference.parse(str(ref)) == ref


def test_reference_target() -> None:
    assert Reference.parse("a:t").target == "t"
    assert Reference.parse(f"a:t@{DIGEST}").target == DIGEST


_json = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@given(
    extra=st.dictionaries(st.text(), _json, max_size=3),
    annotations=st.dictionaries(st.text(), st.text(), max_size=3),
    platform=st.none() | st.just({"os": "linux", "architecture": "arm64", "variant": "v8", "os.features": ["x"]}),
)
def test_descriptor_keeps_what_it_does_not_know(
    extra: dict[str, Any], annotations: dict[str, str], platform: dict[str, Any] | None
) -> None:
    document: dict[str, Any] = {**extra, "mediaType": "a/b", "digest": DIGEST, "size": 3, "artifactType": "c/d"}
    document.pop("annotations", None)
    document.pop("platform", None)
    document |= {"annotations": annotations} if annotations else {}
    document |= {"platform": platform} if platform else {}
    assert Descriptor.from_json(document).to_json() == document


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": "3"},
        {"size": True},
        {"size": None},
        {"digest": "sha256:zz"},
        {"digest": 5},
        {"annotations": {"a": 1}},
        {"annotations": []},
    ],
)
def test_no_descriptor(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolViolation):
        Descriptor.from_json({"mediaType": "a/b", "digest": DIGEST, "size": 3} | change)


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"{", b"[" * 100_000])
def test_no_manifest(body: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="thing"):
        parse_json_object(body, "thing")


def test_descriptors_of_something_else() -> None:
    assert descriptors({}, "layers") == ()
    with pytest.raises(ProtocolViolation):
        descriptors({"layers": {"0": {}}}, "layers")


def test_platform() -> None:
    assert str(Platform.parse("linux/arm64/v8")) == "linux/arm64/v8"
    for text in ("linux", "linux/", "a/b/c/d", ""):
        with pytest.raises(ValueError, match="platform"):
            Platform.parse(text)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            ['Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"'],
            [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"})],
        ),
        (['Basic realm="a, \\"b\\" = c"'], [("basic", {"realm": 'a, "b" = c'})]),
        (
            ['Negotiate, Basic realm=x , Bearer Realm = "y"'],
            [("negotiate", {}), ("basic", {"realm": "x"}), ("bearer", {"realm": "y"})],
        ),
        (["Bearer realm=a", "Basic"], [("bearer", {"realm": "a"}), ("basic", {})]),
        (["", '"', "=x", "Bearer realm="], [("bearer", {})]),
    ],
)
def test_challenges(values: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    found = parse_challenges(values)
    assert found[: len(expected)] == tuple(Challenge(scheme=one, parameters=rest) for one, rest in expected)


@given(st.text(alphabet='aB ",=\\/;'))
def test_challenges_are_total(text: str) -> None:
    parse_challenges([text])


def test_scopes() -> None:
    assert merge_scopes((pull("a"),), "") == ("repository:a:pull",)
    assert merge_scopes((push("a"),), "repository:a:pull") == ("repository:a:pull,push",)
    assert merge_scopes((pull("a"),), "repository:proxy/a:pull") == (
        "repository:a:pull",
        "repository:proxy/a:pull",
    )


@pytest.mark.parametrize(
    ("status", "headers", "offset", "length", "plan"),
    [
        (206, {"Content-Range": "bytes 10-19/100"}, 10, 10, BodyPlan(skip=0, take=10)),
        (206, {"Content-Range": "bytes 10-99/*"}, 10, None, BodyPlan(skip=0, take=90)),
        (200, {"Content-Length": "100"}, 10, 10, BodyPlan(skip=10, take=10)),
        (200, {"Content-Length": "100"}, 0, None, BodyPlan(skip=0, take=100)),
        (200, {}, 0, None, BodyPlan(skip=0, take=None)),
        (206, {"Content-Range": "bytes 10-18/19"}, 10, 10, None),
        (206, {"Content-Range": "bytes 10-20/100"}, 10, 10, None),
        (206, {"Content-Range": "bytes 0-9/100"}, 10, 10, None),
        (206, {"Content-Range": "items 10-19/100"}, 10, 10, None),
        (206, {"Content-Type": "multipart/byteranges"}, 10, 10, None),
        (200, {"Content-Length": "15"}, 10, 10, None),
        (200, {"Content-Length": "9999999"}, (1 << 20) + 1, 10, None),
        (206, {"Content-Range": "bytes 10-19/100", "Content-Encoding": "gzip"}, 10, 10, None),
    ],
)
def test_plan_of_a_body(
    status: int, headers: dict[str, str], offset: int, length: int | None, plan: BodyPlan | None
) -> None:
    if plan is None:
        with pytest.raises(ProtocolViolation, match="thing"):
            plan_body(status, headers, offset, length, "thing")
    else:
        assert plan_body(status, headers, offset, length, "thing") == plan


@pytest.mark.parametrize("text", [None, "", "-1", "+1", "1_0", "1e3", "\u00b2", "\u0663", "9" * 5000, " 1"])
def test_no_count(text: str | None) -> None:
    assert parse_count(text) is None


@pytest.mark.parametrize(
    ("lifetime", "seconds"),
    [("300", 270), ("10", 8), ("0", 48), ("-5", 48), ('"x"', 48), ("null", 48), ("NaN", 48), ("1" + "0" * 400, 86370)],
)
def test_lifetime_of_tokens(lifetime: str, seconds: float) -> None:
    token = parse_token(b'{"token": "t", "expires_in": %s}' % lifetime.encode(), "thing")
    assert token.expires - monotonic() == pytest.approx(seconds, abs=5)
    assert "'t'" not in repr(token)


@pytest.mark.parametrize("body", [b"{}", b'{"token": ""}', b'{"token": 5}', b"[]", b"no"])
def test_no_token(body: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="thing"):
        parse_token(body, "thing")


def test_range_header() -> None:
    assert range_header(0, None) == {}
    assert range_header(0, 1) == {"Range": "bytes=0-0"}
    assert range_header(5, None) == {"Range": "bytes=5-"}
    for offset, length in ((-1, 1), (0, 0), (0, -1)):
        with pytest.raises(ValueError, match="no byte range"):
            range_header(offset, length)


@pytest.mark.parametrize(
    ("status", "kind", "transient"),
    [
        (400, Rejected, False),
        (401, Unauthorized, False),
        (403, Denied, False),
        (404, NotFound, False),
        (408, Unavailable, True),
        (416, Rejected, False),
        (429, RateLimited, True),
        (500, Unavailable, True),
        (501, Rejected, False),
        (503, Unavailable, True),
        (504, Unavailable, True),
        (304, Rejected, False),
    ],
)
def test_status(status: int, kind: type[RegistryError], transient: bool) -> None:
    error = error_from(status, {"Retry-After": "3"}, "host/repo")
    assert type(error) is kind
    assert is_transient(error) is transient
    assert str(error) == f"host/repo: HTTP {status}"


def test_foreign_errors_are_not_transient() -> None:
    assert not is_transient(ConnectionResetError())


def test_retry_after() -> None:
    assert parse_retry_after("7") == 7
    assert parse_retry_after("999999") == MAX_RETRY_AFTER_S
    assert 50 < (parse_retry_after(formatdate(time() + 60, usegmt=True)) or 0) <= 60
    assert parse_retry_after(formatdate(time() - 60, usegmt=True)) == 0
    for nonsense in (None, "", "soon", "-1", "1e9", "٣"):
        assert parse_retry_after(nonsense) is None


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True), st.none() | st.floats(0, 300))
def test_delays(failures: int, jitter: float, asked_s: float | None) -> None:
    policy = RetryPolicy(base_s=0.2, cap_s=10)
    delay_s = policy.delay_s(failures, asked_s, jitter)
    assert delay_s >= (asked_s or 0)
    assert delay_s <= max(10, (asked_s or 0) * 1.1)
    assert delay_s >= 0.1


def test_loopback_and_plain_hosts() -> None:
    assert all(map(is_loopback, ("localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:1", "[::1]:80", "[::1]")))
    assert not any(map(is_loopback, ("10.0.0.1", "localhost.example", "example.com:127", "0.0.0.0")))
    told = frozenset({"10.0.0.0/8", "build.test", "other.test:5000"})
    assert all(is_plain(host, told) for host in ("10.1.2.3:5000", "build.test:1", "other.test:5000", "localhost"))
    assert not any(is_plain(host, told) for host in ("11.0.0.1", "other.test:5001", "other.test", "a.build.test"))


def test_json_of_a_descriptor_is_stable() -> None:
    text = json.dumps({"mediaType": "a/b", "digest": DIGEST, "size": 3})
    assert json.dumps(Descriptor.from_json(json.loads(text)).to_json()) == text
