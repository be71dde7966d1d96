"""What unit tests of several packages share."""

from collections.abc import AsyncIterator

import pytest

from fetcher.registry import RegistryClient, RegistryConfig


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    """A registry client as it comes."""
    async with RegistryClient(RegistryConfig()) as client:
        yield client
