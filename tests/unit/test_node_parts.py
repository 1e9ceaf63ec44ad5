"""Parts of the node without a network: what waits, what is built of it, what clients are told."""

from __future__ import annotations

import asyncio
import json

import pytest

from core.chain.block import BlockKind
from core.chain.state import state_root
from core.chain.transaction import Refusal, SignedTransaction, Transfer
from core.errors import NotFoundError, TransactionError
from core.ids import AccountId, Amount, Digest, Milliseconds, NodeId
from node import queries
from node.author import BlockAuthor
from node.pending import Pending
from node.signal import Signal
from node.store import ChainStore
from services.rpc.views import TaskPhase
from services.storage import Memory
from tests.node_world import GENESIS_MS, Maker, keys, make_genesis

VALIDATORS, USERS = keys(4), keys(3, "user")
GENESIS = make_genesis(VALIDATORS, USERS)
TO = AccountId(USERS[1].public_key)


class Clock:
    def now_ms(self) -> Milliseconds:
        return Milliseconds(GENESIS_MS + 1)


def transfer(maker: Maker, amount: int, nonce: int, user: int = 0) -> SignedTransaction:
    return maker.transaction(USERS[user], Transfer(TO, Amount(amount)), nonce)


def test_pending_counts_nonces_and_takes_a_transaction_once() -> None:
    maker, pending = Maker(GENESIS, VALIDATORS), Pending(Clock(), 100)
    first = transfer(maker, 1, 0)
    assert pending.add(maker.state, first)
    assert not pending.add(maker.state, first)
    assert first.tx_id in pending
    assert pending.next_nonce(maker.state, AccountId(USERS[0].public_key)) == 1
    assert pending.is_due(maker.state)
    assert pending.candidates(maker.state) == (first,)


def test_pending_remembers_why_it_refused() -> None:
    maker, pending = Maker(GENESIS, VALIDATORS), Pending(Clock(), 100)
    poor = transfer(maker, 10**9, 0)
    with pytest.raises(TransactionError) as caught:
        pending.add(maker.state, poor)
    assert caught.value.reason == Refusal.INSUFFICIENT_FUNDS
    assert "1000000000 is needed" in (pending.refusal(poor.tx_id) or "")
    assert not pending.is_due(maker.state)


def test_pending_has_a_limit() -> None:
    maker, pending = Maker(GENESIS, VALIDATORS), Pending(Clock(), 2)
    for nonce in range(2):
        pending.add(maker.state, transfer(maker, 1, nonce))
    with pytest.raises(TransactionError, match="try again later"):
        pending.add(maker.state, transfer(maker, 1, 2))


async def test_pending_moves_to_a_new_tip_and_keeps_what_came_meanwhile() -> None:
    maker, pending = Maker(GENESIS, VALIDATORS), Pending(Clock(), 100)
    taken, left, late = transfer(maker, 1, 0), transfer(maker, 2, 1), transfer(maker, 3, 0, user=2)
    pending.add(maker.state, taken)
    pending.add(maker.state, left)
    before = maker.state
    made = maker.next(taken)
    moving = asyncio.create_task(pending.advance(made.state))
    await asyncio.sleep(0)
    pending.add(before, late)
    await moving
    assert taken.tx_id not in pending
    assert {t.tx_id for t in pending.candidates(made.state)} == {left.tx_id, late.tx_id}


async def test_the_author_builds_what_applies_and_drops_what_never_will() -> None:
    maker, pending = Maker(GENESIS, VALIDATORS), Pending(Clock(), 100)
    store = ChainStore(Memory(), GENESIS)
    rich, spent = transfer(maker, 900_000, 0), transfer(maker, 900_000, 1)
    pending.add(maker.state, rich)
    pending.add(maker.state, spent)
    author = BlockAuthor(store, VALIDATORS[0], pending)
    block = await author.build()
    view = queries.block_view(block, maker.certify(block, maker.state.height, GENESIS_MS), state_root(maker.state))
    assert view.header.kind is BlockKind.TRANSACTION
    assert [t.tx_id for t in view.transactions] == [rich.tx_id]
    assert spent.tx_id not in pending
    assert pending.refusal(spent.tx_id) is not None
    assert author.own_verdicts() is None


def test_views_show_names_and_plain_details() -> None:
    maker = Maker(GENESIS, VALIDATORS)
    names = queries.Names(GENESIS)
    made = maker.next(transfer(maker, 5, 0))
    view = queries.block_view(made.block, made.certificate, state_root(made.state))
    details = json.loads(view.transactions[0].details_json)
    assert details == {"to": TO.hex(), "amount": 5}
    assert view.transactions[0].kind == "Transfer"
    account = queries.account_view(made.state, names, TO, 4)
    assert (account.balance, account.next_nonce, account.name) == (1_000_005, 4, "user1")
    assert names(b"\x01" * 32) == "01010101"
    explained = queries.explanation(view, None, (), {}, made.state.validators, names, NodeId(VALIDATORS[0].public_key))
    assert explained.lines[0] == "Block 1 is a transaction block by node0 with 1 transaction."
    assert explained.lines[1].startswith("Final in round 0, by the precommits of ")


def test_what_does_not_exist_is_said_so() -> None:
    state = Maker(GENESIS, VALIDATORS).state
    with pytest.raises(NotFoundError, match="no trade"):
        queries.trade_view(state, Digest(bytes(32)))
    assert queries.task_views(state, [TaskPhase.OPEN], 10, None) == ()
    assert queries.provider_views(state) == ()
    market = queries.market_view(state, TO, TO)
    assert (market.bid_high, market.markup_high, market.pool_reputation_ppm) == (0, 0, 100_000)


async def test_a_signal_is_not_missed() -> None:
    signal = Signal()
    seen = signal.count
    signal.notify()
    assert await signal.wait(seen) == 1
    waiting = asyncio.create_task(signal.wait(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    signal.notify()
    assert await waiting == 2
