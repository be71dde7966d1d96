"""Whose fill waits for whose start."""

import math
import random
import time
from pathlib import Path

from fetcher.layers.layer import Layer
from fetcher.model import GovernorConfig
from fetcher.registry import RegistryClient, RegistryConfig
from fetcher.scheduler.governor import BUSY_S, LINKS_FULL, SHORT_S, Governor
from tests.harness.layers import make_layer


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


async def test_an_image_that_can_be_here_in_a_moment_is_filled_during_its_start(tmp_path: Path) -> None:
    made = make_layer({"data": random.Random(1).randbytes(1 << 20)})
    index = made.blob[made.ref.index_offset : made.ref.index_offset + made.ref.index_size]
    layer = Layer.draft(tmp_path, made.ref, [], index)
    config = GovernorConfig()
    async with Governor(RegistryClient(RegistryConfig()), config, on_complete=lambda _: None) as governor:
        governor.add(layer)
        governor._queues[layer.digest].filling = True
        assert governor._fill_limits() == (config.streams, config.run_bytes)
        governor._start_began = time.monotonic()
        governor._busy_until = governor._start_began + BUSY_S
        assert governor._fill_limits() == (0, 0)  # nothing came yet that would tell
        governor.meter.best_bytes_per_s = 0.9 * layer.absent_bytes / SHORT_S
        assert governor._fill_limits() == (0, 0)
        governor.meter.best_bytes_per_s = 1.1 * layer.absent_bytes / SHORT_S
        assert governor._fill_limits() == (config.streams, config.hint_run_bytes)
    layer.close()


async def test_less_is_on_its_way_while_readers_wait_but_as_much_as_the_link_holds() -> None:
    config = GovernorConfig()
    async with Governor(RegistryClient(RegistryConfig()), config, on_complete=lambda _: None) as governor:
        assert governor._prefetch_limit() == config.prefetch_bytes
        governor._busy_until = time.monotonic() + 60
        assert governor._prefetch_limit() == config.busy_prefetch_bytes
        governor.meter.best_bytes_per_s, governor.meter.least_latency_s = 125e6, 0.005
        assert governor._prefetch_limit() == config.busy_prefetch_bytes
        governor.meter.least_latency_s = 0.02
        assert governor._prefetch_limit() == int(LINKS_FULL * 125e6 * 0.02)
        governor.meter.least_latency_s = math.inf
        assert governor._prefetch_limit() == config.prefetch_bytes
