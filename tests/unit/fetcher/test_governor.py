"""Whose fill waits for whose start."""

import time

from fetcher.governor import Governor
from fetcher.model import GovernorConfig
from fetcher.registry import RegistryClient, RegistryConfig


async def test_an_image_without_a_profile_does_not_end_anothers_hold() -> None:
    async with Governor(RegistryClient(RegistryConfig()), GovernorConfig(), on_complete=lambda _: None) as governor:
        governor.hold_fill(["shared", "first"], at_most_s=30, quiet_s=2)
        until_known = governor.hold_fill(["shared", "second"], at_most_s=5, quiet_s=2)
        now = time.monotonic()
        assert all(governor._is_held(digest, now) for digest in ("shared", "first", "second"))
        governor.let_fill(until_known)
        assert governor._is_held("shared", now) and governor._is_held("first", now)
        assert not governor._is_held("second", now)
        assert not governor._is_held("shared", now + 31)
