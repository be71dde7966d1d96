"""Proxies: which, and that requests go through them."""

from dataclasses import replace

import pytest

from fetcher.registry import Origin, RegistryClient, RegistryConfig
from fetcher.registry.proxies import proxy_for
from layerformat.digest import parse_digest
from tests.harness.fake_registry import FakeRegistry
from tests.unit.registry.contract import DATA, collect

PROXY = "http://proxy.example:3128"
ENVIRONMENT = {
    "HTTPS_PROXY": PROXY,
    "http_proxy": "plain.example:80",
    "NO_PROXY": "internal.example, .corp ,10.0.0.0/8,port.example:5000,*.star.example",
}


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://ghcr.io/v2/", PROXY),
        ("http://ghcr.io/v2/", "http://plain.example:80"),
        ("https://localhost:5000/v2/", None),
        ("http://127.0.0.1/v2/", None),
        ("https://internal.example/v2/", None),
        ("https://a.internal.example/v2/", None),
        ("https://notinternal.example/v2/", PROXY),
        ("https://reg.corp/v2/", None),
        ("https://10.1.2.3:5000/v2/", None),
        ("https://11.1.2.3:5000/v2/", PROXY),
        ("https://port.example:5000/v2/", None),
        ("https://port.example/v2/", PROXY),
        ("https://a.star.example/v2/", None),
    ],
)
def test_proxy_for(url: str, proxy: str | None) -> None:
    assert proxy_for(url, ENVIRONMENT) == proxy


def test_without_settings() -> None:
    assert proxy_for("https://ghcr.io", {}) is None
    assert proxy_for("https://ghcr.io", {"ALL_PROXY": PROXY}) == PROXY
    assert proxy_for("https://ghcr.io", {"ALL_PROXY": PROXY, "no_proxy": "*"}) is None
    assert proxy_for("https://ghcr.io", {"https_proxy": "http://low.example", **ENVIRONMENT}) == "http://low.example"


async def test_requests_go_through_it(config: RegistryConfig) -> None:
    # A proxy for plain HTTP is asked for the absolute URL; the fake takes its path and answers in the registry's place.
    async with FakeRegistry() as proxy:
        digest = parse_digest(proxy.add_blob("team/app", DATA))
        told = replace(
            config,
            plain_http=frozenset({"registry.test"}),
            environment={"http_proxy": f"http://ann:secret@{proxy.host}"},
            environment_proxies=True,
        )
        async with RegistryClient(told) as client:
            assert await collect(client.pull_blob(Origin(host="registry.test", repository="team/app"), digest)) == DATA
        (seen,) = proxy.requests
        assert seen.headers["Host"] == "registry.test"
        assert seen.headers["Proxy-Authorization"].startswith("Basic ")
