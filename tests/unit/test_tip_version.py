"""A pool's work block names the version of the protocol that the chain follows at its height, as a node's tip tells it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from core.chain import rules, versions
from core.chain.block import Block
from core.chain.ledger import work_payout_total
from core.chain.state import state_root
from core.chain.transaction import ScheduleUpgrade, SignedTransaction, Transfer
from core.errors import BlockError, WrongChainError
from core.ids import Amount, Digest, Height
from pool.manager.books import Books
from pool.manager.season import Season
from services.rpc.chain_client import ChainClient, Wallet
from services.rpc.views import Tip
from tests.chainkit import Chain, account, key, make_genesis
from tests.light_world import World

PARAMS = replace(make_genesis().params, upgrade_notice=2)


def upgraded(chain: Chain, height: int) -> None:
    """2/3 agree that version 2 begins at ``height``."""
    change = chain.approved(ScheduleUpgrade(2, Height(height), Height(99), ()), "v0", "v1", "v2")
    chain.block(chain.tx("other", change))


async def test_a_tip_tells_the_version_of_the_next_height(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "KNOWN_VERSIONS", frozenset({1, 2}))
    world = World(make_genesis(4, PARAMS))
    world.chain.block()
    upgraded(world.chain, 4)
    world.follow()
    async with world.served() as (address, channel):
        client = ChainClient([(address, channel)])
        told = [(await client.tip()).protocol_version]
        for _ in range(2):
            world.chain.block()
            world.follow()
            told.append((await client.tip()).protocol_version)
    # After heights 2, 3 and 4.
    assert told == [1, 2, 2]


class Folder:
    def __init__(self) -> None:
        self.kept: list[Block] = []

    def work(self, parent: bytes) -> Block | None:
        return None

    def offer(self, parent: bytes, block: Block) -> None:
        self.kept.append(block)


async def at_an_upgrade(monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[Chain, Tip, Any]:
    """Version 2 begins with the work height; the tip, and a pool's season that has claimed."""
    monkeypatch.setattr(versions, "KNOWN_VERSIONS", frozenset({1, 2}))
    plain = Chain(make_genesis(4, PARAMS))
    plain.to_work_height(pool0=900)
    height = plain.state.height + 2
    chain = Chain(make_genesis(4, PARAMS))
    upgraded(chain, height)
    task = chain.to_work_height(pool0=900)
    assert chain.state.height + 1 == height
    state, certificate = chain.state, chain.certificate()
    entry = state.entry(task, account("pool0"))
    assert entry is not None
    assert entry.claim is not None
    tip = Tip(
        state.height, state.tip.block_hash, state_root(state), certificate, rules.next_time(state, certificate), task, True,
        Amount(0), Amount(0), 0, 0, versions.version_at(state, height),
    )  # fmt: skip
    season: Any = Season.__new__(Season)
    season._folder, season._task_id = Folder(), task
    books = Books(folder, key("pool0"), state.chain_id, lambda member, shown: None, weight_factor=4, owner_cut_ppm=0)
    await (await books.open(task)).close()
    season._pool = SimpleNamespace(
        role=SimpleNamespace(genesis=chain.genesis, key=key("pool0")), chain_id=state.chain_id, account=account("pool0"),
        books=books, cfg=SimpleNamespace(owner_cut_ppm=0),
    )  # fmt: skip
    view = SimpleNamespace(reward=state.tasks[task].published.reward, spec=state.tasks[task].published.spec)
    assert work_payout_total(view.reward, chain.genesis.params) > 0
    committed, claimed = SimpleNamespace(contributions=()), SimpleNamespace(correct=entry.claim.correct, vm=entry.claim.vm)
    return chain, tip, lambda told: season._work_block(told, view, committed, claimed)


async def test_a_work_block_at_the_first_height_of_a_new_version_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before, pools named version 1 for ever: at an upgrade every honest pool's block was refused."""
    chain, tip, make = await at_an_upgrade(monkeypatch, tmp_path)
    block = await make(tip)
    assert block.header.decoded().version == 2
    rules.apply_block(chain.state, block)
    with pytest.raises(BlockError, match="protocol version 1, at this height it is 2"):
        rules.apply_block(chain.state, await make(replace(tip, protocol_version=1)))


async def test_a_pool_signs_nothing_by_rules_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, tip, make = await at_an_upgrade(monkeypatch, tmp_path)
    monkeypatch.setattr(versions, "KNOWN_VERSIONS", frozenset({1}))
    with pytest.raises(WrongChainError, match="follows protocol version 2; this software knows up to 1: install a release"):
        await make(tip)


def test_a_wallet_of_the_chain_pays_what_it_asks() -> None:
    """One that pays 1 a KiB is refused on a chain with a higher min_fee."""
    chain = Chain(make_genesis(4, replace(PARAMS, min_fee=7)))
    chain.block()
    wallet = Wallet.of(cast(ChainClient, None), chain.genesis, key("provider"))
    paid = wallet.make(Transfer(account("x"), Amount(1)), 0)
    chain.block(paid)
    low = Wallet(cast(ChainClient, None), Digest(chain.genesis.chain_id), key("provider")).make(
        Transfer(account("x"), Amount(1)), 1
    )
    assert isinstance(low, SignedTransaction)
    assert chain.refused(low)
