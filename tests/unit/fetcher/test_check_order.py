"""Whose index is checked next."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress

import pytest

from fetcher.check_order import PATIENCE_S, CheckOrder


class Node:
    """Checks that last for a moment, in the order in which they began."""

    def __init__(self) -> None:
        self.order = CheckOrder()
        self.began: list[int] = []
        self.under_way = 0

    async def admit(self, size: int, *, comes_after_s: float) -> None:
        with self.order.coming(size):
            await asyncio.sleep(comes_after_s)
        async with self.order.turn(size):
            self.began.append(size)
            self.under_way += 1
            assert self.under_way == 1
            await asyncio.sleep(0.01)
            self.under_way -= 1

    async def all(self, *admissions: Coroutine[None, None, None]) -> list[int]:
        async with asyncio.timeout(10):
            await asyncio.gather(*admissions)
        return self.began


@pytest.fixture
async def node() -> Node:
    return Node()


async def test_the_smallest_of_those_that_are_here_goes_first(node: Node) -> None:
    assert await node.all(*(node.admit(size, comes_after_s=0.01) for size in (5, 3, 9, 3, 1))) == [1, 3, 3, 5, 9]


async def test_a_large_one_waits_for_a_small_one_that_is_on_its_way(node: Node) -> None:
    large, small = node.admit(100, comes_after_s=0), node.admit(1, comes_after_s=PATIENCE_S / 4)
    assert await node.all(large, small) == [1, 100]


async def test_a_small_one_waits_for_no_large_one(node: Node) -> None:
    large, small = node.admit(100, comes_after_s=PATIENCE_S / 4), node.admit(1, comes_after_s=0)
    assert await node.all(large, small) == [1, 100]


async def test_patience_ends(node: Node) -> None:
    large, small = node.admit(100, comes_after_s=0), node.admit(1, comes_after_s=3 * PATIENCE_S)
    assert await node.all(large, small) == [100, 1]


async def test_who_goes_away_holds_nobody_up(node: Node) -> None:
    async with asyncio.timeout(10), node.order.turn(7):
        waits = asyncio.ensure_future(node.admit(1, comes_after_s=0))
        downloads = asyncio.ensure_future(node.admit(2, comes_after_s=1000))
        rest = asyncio.ensure_future(node.admit(50, comes_after_s=0))
        await asyncio.sleep(0.01)
        for task in (waits, downloads):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    await asyncio.wait_for(rest, 10)
    assert node.began == [50]


async def test_a_check_that_fails_gives_the_turn_back(node: Node) -> None:
    with pytest.raises(ValueError, match="malformed"):
        async with node.order.turn(3):
            raise ValueError("malformed")
    assert await node.all(node.admit(4, comes_after_s=0)) == [4]
