"""The image, and a node's configuration for each plane that sees reads."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fetcher.model import FetcherConfig
from tests.harness.fake_registry import FakeRegistry
from tests.harness.layers import TestLayer, make_layer
from tests.kernel.profiles.image import (
    FRAME,
    Image,
    node_config,
    served,
)


@pytest.fixture(scope="module")
def layers() -> dict[str, TestLayer]:
    noise = random.Random(11)

    def some(count: int, big: int) -> dict[str, bytes]:
        files = {f"dir/{number}": noise.randbytes(noise.randrange(5000, 20000)) for number in range(count)}
        return files | {"big": noise.randbytes(big)}

    return {"lower": make_layer(some(300, 1 << 20), frame_bytes=FRAME), "upper": make_layer(some(50, 3 << 20))}


@pytest.fixture
async def image(layers: dict[str, TestLayer]) -> AsyncIterator[Image]:
    async with FakeRegistry() as registry:
        yield served(registry, layers)


@pytest.fixture(params=["fanotify", "fuse"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> FetcherConfig:
    return node_config(tmp_path / "a", str(request.param))
