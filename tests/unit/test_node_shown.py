"""node.shown: descriptions of final blocks, made once and beside the event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from core.errors import NotFoundError
from core.ids import Height
from node import shown as shown_module
from node.queries import block_view
from node.shown import Key, ShownBlocks
from services.rpc.views import BlockView
from tests.chainkit import Chain, make_certificate


def view() -> BlockView:
    chain = Chain()
    chain.block()
    certificate = make_certificate(chain.state, chain.clock, chain.names)
    return block_view(chain.blocks[-1], certificate, chain.blocks[-1].header.decoded().parent_state_root)


class Blocks:
    def __init__(self, height: int) -> None:
        self.height = height
        self.found = view()
        self.asked: list[tuple[Key, bool]] = []

    def __call__(self, key: Key) -> BlockView:
        self.asked.append((key, threading.current_thread() is threading.main_thread()))
        if isinstance(key, int) and key > self.height:
            raise NotFoundError(f"no block at height {key} here")
        return self.found


async def test_a_block_is_described_once_for_all_and_in_another_thread() -> None:
    blocks = Blocks(9)
    shown = ShownBlocks(blocks)
    found = await asyncio.gather(*(shown.get(Height(3)) for _ in range(20)))
    assert blocks.asked == [(3, False)]
    assert {bytes(one.block_hash) for one in found} == {bytes(blocks.found.block_hash)}


async def test_a_caller_that_goes_away_takes_nothing_from_the_others() -> None:
    blocks = Blocks(9)
    shown = ShownBlocks(blocks)
    first, second = (asyncio.create_task(shown.get(Height(3))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).block_hash == blocks.found.block_hash
    assert len(blocks.asked) == 1


async def test_a_block_that_is_not_here_yet_is_looked_for_again() -> None:
    blocks = Blocks(2)
    shown = ShownBlocks(blocks)
    with pytest.raises(NotFoundError, match="no block at height 3"):
        await shown.get(Height(3))
    blocks.height = 3
    assert (await shown.get(Height(3))).block_hash == blocks.found.block_hash


async def test_few_are_kept() -> None:
    shown = ShownBlocks(Blocks(99))
    for height in range(1, 50):
        await shown.get(Height(height))
    assert len(shown._jobs) == shown_module.KEPT
