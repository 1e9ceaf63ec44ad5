"""The mempool's door: several transactions in one call, what it costs, and what is told of each."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from pofl.chain.v1 import chain_pb2 as pb

from core.chain.block import Block, Certificate
from core.chain.state import State, genesis_state, total_supply
from core.chain.transaction import Refusal, SignedTransaction, Transfer
from core.codec import encode
from core.errors import LimitError, MalformedError, TransactionError
from core.ids import AccountId, Amount, Height, Milliseconds, Signature, StateRoot, TxId
from node import api as api_module
from node import queries
from node.api import NodeApi
from node.driver import Driver
from node.links import Acceptance, Links
from node.pending import Pending
from node.servicer import MAX_SUBMITTED_BYTES, SUBMITTED, ChainServicer
from node.signal import Signal
from node.store import ChainStore, StoredBlock
from node.submissions import Submissions
from node.transcripts import TranscriptStore
from node.work import WorkHeights
from services.rpc import auth, convert_submit
from services.rpc.limits import MAX_SUBMITTED, CallerLimits, Limiter
from services.rpc.views import ClaimsView, TxStatus
from services.runtime.clock import SystemClock
from tests.node_world import Maker, keys, make_genesis

VALIDATORS = keys(4)
USERS = keys(2, "user")
GENESIS = make_genesis(VALIDATORS, USERS)


class World:
    """A node's door without a network. It plays the parts of the driver and of the store too."""

    def __init__(self) -> None:
        self.state: State = genesis_state(GENESIS)
        self.sent: list[SignedTransaction] = []
        self.due = 0
        self.finalised = Signal()
        self.tip_certificate = None
        self.tip_root = StateRoot(bytes(32))
        self.peers = ()
        self.pending = Pending(SystemClock(), 1_000)
        self.door = Submissions(self, VALIDATORS[0], self.pending, self.sent.append, self._noted)
        self.submit = self.door.submit
        parts: dict[str, Any] = {"driver": cast(Driver, self), "store": cast(ChainStore, self)}
        others = (cast(WorkHeights, None), cast(Links, self), cast(TranscriptStore, None))
        self.api = NodeApi(GENESIS, VALIDATORS[0].public_key, parts["store"], parts["driver"], *others)  # type: ignore[arg-type]

    def _noted(self) -> None:
        self.due += 1

    def transaction_height(self, _: TxId) -> None:
        return None

    def block(self, height: Height) -> StoredBlock:
        return StoredBlock(cast(Block, None), cast(Certificate, None), self.tip_root)


def transfers(count: int, first: int = 0) -> list[SignedTransaction]:
    maker = Maker(GENESIS, VALIDATORS)
    payload = Transfer(AccountId(USERS[1].public_key), Amount(1))
    return [maker.transaction(USERS[0], payload, nonce) for nonce in range(first, first + count)]


def broken(transaction: SignedTransaction) -> SignedTransaction:
    return SignedTransaction(transaction.transaction, Signature(bytes(64)))


async def hand_in(servicer: ChainServicer, data: list[bytes]) -> pb.SubmitTransactionsResponse:
    return await servicer.SubmitTransactions(pb.SubmitTransactionsRequest(signed_transactions=data), cast(Any, None))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(auth, "caller", lambda _: auth.Caller("user", "tester"))
    return World()


async def test_of_several_each_is_taken_or_refused_by_itself(world: World) -> None:
    good = transfers(20)
    data = [*good[:9], broken(good[9]), *good[10:]]
    answer = await hand_in(ChainServicer(world.api), [encode(t) for t in data])
    refusals = convert_submit.results_from_proto(answer, [t.tx_id for t in data])
    assert [n for n, refusal in enumerate(refusals) if refusal is not None] == [9]
    refusal = refusals[9]
    assert isinstance(refusal, TransactionError)
    assert refusal.reason == Refusal.BAD_SIGNATURE
    assert "does not verify" in refusal.message
    assert len(world.pending) == 19
    assert world.sent == [*good[:9], *good[10:]]
    assert world.due == 19
    assert world.door.status(good[0].tx_id).status is TxStatus.PENDING
    # Again: taken once.
    assert not any(r.refusal for r in (await hand_in(ChainServicer(world.api), [encode(good[0])])).results)
    assert len(world.sent) == 19


async def test_one_that_does_not_decode_is_the_callers_fault_and_none_is_taken(world: World) -> None:
    good = transfers(2)
    with pytest.raises(MalformedError):
        await hand_in(ChainServicer(world.api), [encode(good[0]), encode(good[1])[:-1]])
    with pytest.raises(MalformedError, match="no signed transaction"):  # its first bytes read as a length beyond the limit
        await hand_in(ChainServicer(world.api), [encode(good[0]), b"junk"])
    assert len(world.pending) == 0


async def test_a_call_with_many_costs_as_much_as_many_calls(world: World) -> None:
    servicer = ChainServicer(world.api)
    with pytest.raises(MalformedError, match="0 transactions"):
        await hand_in(servicer, [])
    with pytest.raises(MalformedError, match="65 transactions"):
        await hand_in(servicer, [b""] * (MAX_SUBMITTED + 1))
    with pytest.raises(MalformedError, match="bytes"):
        await hand_in(servicer, [bytes(MAX_SUBMITTED_BYTES // 16 + 1)] * 16)
    # Nothing of this was counted; the same few again and again are.
    servicer._submitted = Limiter(SUBMITTED, monotonic=lambda: 0.0)
    data = [encode(t) for t in transfers(MAX_SUBMITTED)]
    for _ in range(SUBMITTED.burst // MAX_SUBMITTED):
        await hand_in(servicer, data)
    with pytest.raises(LimitError, match="slow down"):
        await hand_in(servicer, data)


async def test_a_long_request_lets_others_have_their_turn(world: World) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while len(world.pending) < MAX_SUBMITTED:
            turns += 1
            await asyncio.sleep(0)

    watching = asyncio.create_task(other())
    await hand_in(ChainServicer(world.api), [encode(t) for t in transfers(MAX_SUBMITTED)])
    await watching
    assert turns >= MAX_SUBMITTED // 8


async def test_looking_for_claims_in_a_long_chain_lets_others_have_their_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = turns = 0

    def no_claims(_: object) -> ClaimsView:
        nonlocal read
        read += 1
        return ClaimsView(Height(read), Milliseconds(0), ())

    async def other() -> None:
        nonlocal turns
        while read < 500:
            turns += 1
            await asyncio.sleep(0)

    world.state = replace(world.state, tip=replace(world.state.tip, height=Height(500)))
    monkeypatch.setattr(queries, "claims_view", no_claims)
    reading = asyncio.ensure_future(anext(aiter(world.api.watch_claims(Height(1)))))
    async with asyncio.timeout(60):
        await other()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert turns >= 499


def test_the_supply_is_summed_once_a_block(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = 0

    def summed(state: State) -> Amount:
        nonlocal sums
        sums += 1
        return total_supply(state)

    monkeypatch.setattr(api_module, "total_supply", summed)
    supplies = {world.api.tip().supply for _ in range(20)}
    assert supplies == {Amount(sum(a.balance for a in GENESIS.accounts))}
    assert sums == 1
    world.state = replace(world.state, burned=Amount(7))
    assert world.api.tip().supply == supplies.pop()
    assert sums == 2


def test_a_charge_is_taken_whole_or_not_at_all() -> None:
    now = 0.0
    limiter = Limiter(CallerLimits(rate=10.0, burst=20), monotonic=lambda: now)
    limiter.charge("a", 15)
    with pytest.raises(LimitError):
        limiter.charge("a", 6)
    limiter.charge("a", 5)
    limiter.charge("b", 20)
    now = 1.0
    limiter.charge("a", 10)
    with pytest.raises(LimitError):
        limiter.charge("a", 1)


def test_what_peers_pass_on_is_relayed_once_and_a_refusal_is_no_fault(world: World) -> None:
    (one,) = transfers(1)
    assert world.door.take(one) is Acceptance.RELAY
    assert world.door.take(one) is Acceptance.DROP
    assert world.door.take(broken(one)) is Acceptance.DROP
    assert world.door.status(broken(transfers(1, 3)[0]).tx_id).status is TxStatus.UNKNOWN


def test_an_answer_about_other_transactions_is_refused() -> None:
    made = transfers(2)
    answer = convert_submit.results_to_proto(made, [None, None])
    with pytest.raises(MalformedError):
        convert_submit.results_from_proto(answer, [made[1].tx_id, made[0].tx_id])
