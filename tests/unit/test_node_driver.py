"""node.driver under peers that flood, lie or say things at the wrong time: no network, no clock of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest

from core.chain import build
from core.chain.messages import Message
from core.chain.state import Entry, State
from core.chain.vote import Proposal, SignedVote, Step, Vote
from core.crypto.signing import KeyPair
from core.errors import PoflError
from core.ids import BlockHash, Digest, Height, Milliseconds, NodeId, Signature
from node import early as early_module
from node.driver import Driver
from node.links import Acceptance, Links
from node.pending import Pending
from node.store import AuditTime, ChainStore
from services.rpc.convert_peer import Gossip, Progress
from services.storage import Memory
from tests.node_world import GENESIS_MS, Maker, keys, make_genesis

VALIDATORS = keys(4)
GENESIS = make_genesis(VALIDATORS, keys(3, "user"))
LIAR, FRIEND = (NodeId(VALIDATORS[i].public_key) for i in (1, 2))


class Clock:
    def now_ms(self) -> Milliseconds:
        return Milliseconds(GENESIS_MS - 60_000)


class Wires:
    def __init__(self) -> None:
        self.sent: list[tuple[NodeId, int]] = []

    def broadcast(self, message: Gossip, again: bool = False) -> None: ...

    def send(self, node: NodeId, messages: Sequence[Gossip]) -> None:
        self.sent.append((node, len(messages)))


class NoWork:
    def enter(self, state: State) -> None: ...

    def examine(self, index: int, claim: Entry) -> None: ...

    def need_block(self, claim: Entry) -> None: ...

    def noted(self) -> None: ...

    def audits(self) -> tuple[tuple[AuditTime, ...], dict[bytes, Digest]]:
        return (), {}


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Driver, Wires]]:
    """Validator 0 before genesis time: it waits for others."""
    driver = Driver(ChainStore(Memory(), GENESIS), VALIDATORS[0], Pending(Clock(), 100), Clock())
    wires = Wires()
    driver.connect(cast(Links, wires), NoWork(), lambda _node, _progress: None)
    task = asyncio.create_task(driver.run())
    await asyncio.sleep(0)
    try:
        yield driver, wires
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def vote(key: KeyPair, height: int, round_: int, block_hash: bytes = bytes(32)) -> SignedVote:
    content = Vote(
        GENESIS.chain_id, Height(height), round_, Step.PREVOTE, BlockHash(block_hash), Milliseconds(0), NodeId(key.public_key)
    )
    return build.make_vote(key, content)


def proposal(driver: Driver, round_: int) -> Message:
    who = driver.machine.proposer(round_)
    key = next(k for k in VALIDATORS if k.public_key == who)
    block = build.build_transaction_block(Maker(GENESIS, VALIDATORS).state, key, None, ()).block
    return build.make_proposal(key, Proposal(GENESIS.chain_id, Height(1), round_, -1, block.block_hash, who), block)


async def test_what_the_machine_has_no_place_for_yet_is_looked_at_again() -> None:
    """A message that the links count as seen never reaches the machine again, however often it is sent."""
    async with running() as (driver, _):
        far = proposal(driver, 9)
        assert await driver.receive(FRIEND, far) is Acceptance.LATER
        assert await driver.receive(FRIEND, vote(VALIDATORS[1], 1, 9)) is Acceptance.DROP
        assert await driver.receive(FRIEND, vote(VALIDATORS[2], 1, 9)) is Acceptance.DROP
        assert driver.machine.round == 9
        assert await driver.receive(FRIEND, far) is Acceptance.DROP
        assert 9 in driver.machine._proposals


async def test_one_peer_cannot_fill_the_place_for_early_messages() -> None:
    content = vote(VALIDATORS[1], 2, 0)
    async with running() as (driver, _):
        for number in range(5_000):
            early = SignedVote(content.vote, Signature(number.to_bytes(64, "big")))
            assert await driver.receive(LIAR, early) is Acceptance.LATER
        assert len(driver._early.of(LIAR)) == early_module.MAX_MESSAGES
        await driver.receive(FRIEND, vote(VALIDATORS[2], 2, 0))
        assert driver._early.of(FRIEND) == (vote(VALIDATORS[2], 2, 0),)


async def test_one_validator_cannot_fill_the_place_for_what_was_said_at_this_height() -> None:
    """Every node passes on, and keeps for those who come later, what is new: there is no last round to vote in."""
    async with running() as (driver, _):
        for round_ in range(1, 120):
            await driver.receive(LIAR, vote(VALIDATORS[1], 1, round_))
        assert len(driver._kept) <= 2
        await driver.receive(FRIEND, vote(VALIDATORS[2], 1, 0))
        assert vote(VALIDATORS[2], 1, 0) in driver._kept
        assert vote(VALIDATORS[1], 1, 119) in driver._kept
        # Others in that round bring this node there: its votes counted although those before were forgotten.
        await driver.receive(FRIEND, vote(VALIDATORS[2], 1, 119))
        assert driver.machine.round == 119
        # Rounds that have begun here have an end of their own.
        for round_ in range(119):
            await driver.receive(LIAR, vote(VALIDATORS[1], 1, round_, bytes([1]) * 32))
        assert len(driver._kept) < 64


async def test_early_proposals_of_one_peer_cost_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_module, "MAX_BYTES", 10_000)
    async with running() as (driver, _):
        content = vote(VALIDATORS[1], 2, 0)
        for number in range(100):
            await driver.receive(LIAR, SignedVote(content.vote, Signature(number.to_bytes(64, "big"))))
        assert 1 <= len(driver._early.of(LIAR)) < 50


async def test_a_peer_that_says_all_the_time_where_it_is_is_not_sent_everything_each_time() -> None:
    async with running() as (driver, wires):
        await driver.receive(FRIEND, vote(VALIDATORS[2], 1, 0))
        for number in range(200):
            await driver.receive(LIAR, Progress(Height(1 + number % 2), 0, BlockHash(bytes(32))))
        assert 1 <= len(wires.sent) <= 2


async def test_an_unexpected_failure_over_a_peers_message_costs_the_message_and_not_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as (driver, _):

        def broken(event: object, now_ms: int) -> None:
            raise AssertionError("a rule that nobody thought of")

        good = driver.machine.step
        monkeypatch.setattr(driver.machine, "step", broken)
        with pytest.raises(PoflError, match="could not be handled"):
            await driver.receive(LIAR, vote(VALIDATORS[1], 1, 0))
        monkeypatch.setattr(driver.machine, "step", good)
        assert await driver.receive(FRIEND, vote(VALIDATORS[2], 1, 0)) is Acceptance.DROP
