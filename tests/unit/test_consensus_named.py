"""The schedules that the design names, in networks of four and seven: each by the seeded scheduler, all nodes judged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise

import pytest

from core.chain import rules
from core.chain.block import Block, BlockKind, Header, OutcomeKind
from core.chain.messages import BlockAvailable, BodyHeld
from core.chain.records import TaskEnd
from core.chain.state import Entry, State
from core.chain.transaction import PublishTask, Stored, task_id
from core.chain.vote import SignedVote, Step, Vote
from core.chain.work_height import commitment_of
from core.ids import Amount, Milliseconds, TaskId
from tests.chainkit import FUNDS, GENESIS_MS, Chain, account, make_spec, some
from tests.consensus_sim import Answer, Link, Sim, SimNode, found, remember_signatures, remembered, transfers
from tests.unit.test_consensus_networks import genesis_of

RANKED = ("pool2", "pool1", "pool0")
SIZES = (4, 7)
R, D = OutcomeKind.REFUTED, OutcomeKind.DEAD


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    remember_signatures(monkeypatch)


# Transaction heights


def follow(chain: Chain, seed: int, heights: int) -> Sim:
    """A network that goes on from the chain's tip by itself; nobody hands in anything."""
    certificate = chain.certificate() if chain.state.height else None
    start = chain.clock + 50 if chain.state.height else GENESIS_MS + 100
    return Sim(seed, chain.state, certificate, chain.names, chain.state.height + heights, start)


def final(sim: Sim) -> tuple[State, list[Header]]:
    """What every node came to."""
    states = {n.state.tip.block_hash for n in sim.nodes.values()}
    assert len(states) == 1
    node = next(iter(sim.nodes.values()))
    return node.state, [node.chain[h][0].header.decoded() for h in sorted(node.chain)]


@pytest.mark.parametrize("validators", SIZES)
def test_no_task(validators: int) -> None:
    """Nothing to do: two empty blocks in idle_ms (a block's time is that of its parent's votes), no work height, no haste."""
    chain = Chain(genesis_of(validators))
    chain.block()
    sim = follow(chain, 1, 4)
    took = sim.run()
    state, headers = final(sim)
    idle = state.params.idle_ms
    assert [h.kind for h in headers] == [BlockKind.TRANSACTION] * 4
    times = [chain.state.tip.timestamp_ms, *(h.timestamp_ms for h in headers)]
    assert all(later - former >= idle for former, later in zip(times, times[2:], strict=False))
    assert all(later - former >= state.params.tick_ms for former, later in pairwise(times))
    assert took < 2 * idle + 2_000
    assert state.current is None
    assert not rules.is_work_height(state)


@pytest.mark.parametrize("validators", SIZES)
def test_zero_entries(validators: int) -> None:
    """A task that nobody enters: the block of its entries' close ends it; nobody waits for claims, no work height comes."""
    chain = Chain(genesis_of(validators))
    task = chain.publish()
    assert chain.state.current == task
    sim = follow(chain, 2, 3)
    took = sim.run()
    state, headers = final(sim)
    assert [h.kind for h in headers] == [BlockKind.TRANSACTION] * 3
    assert state.task(task).ended is TaskEnd.NO_ENTRIES
    assert state.current is None
    assert took < state.params.entry_ms + 2_000
    # The reward is back, and 5 % of the bond is burned.
    assert state.burned - chain.state.burned == 1_000_000 * state.params.void_bond_ppm // 1_000_000
    assert state.account(account("requester")).balance == FUNDS - 1 - (state.burned - chain.state.burned)


@pytest.mark.parametrize("validators", SIZES)
@pytest.mark.parametrize("seed", range(2))
def test_two_tasks_of_equal_reward(validators: int, seed: int) -> None:
    """In one block, stored in the other order in one block: all nodes take the first of the block, and then the second."""
    chain = Chain(genesis_of(validators))
    chain.block()
    tasks: list[TaskId] = []

    def publish(requester: str) -> PublishTask:
        tasks.append(task_id(chain.state.chain_id, account(requester), some("nonce")))
        until = Milliseconds(chain.clock + 10_000_000)
        return PublishTask(
            make_spec(chain.state.params), Amount(1_000_000), Amount(1_000_000), Amount(50_000), some("nonce"), until
        )

    chain.block(*(chain.tx(r, publish(r)) for r in ("requester", "other")))
    voters = chain.names[: -(-2 * validators // 3)]
    chain.block(*(chain.tx(v, Stored(t), fee=0) for t in reversed(tasks) for v in voters))
    assert chain.state.current == tasks[0]
    sim = follow(chain, seed, 6)
    sim.run()
    state, _ = final(sim)
    seen = [state.task(t).ended for t in tasks]
    assert seen == [TaskEnd.NO_ENTRIES, TaskEnd.NO_ENTRIES]
    current = []
    replayed = chain.state
    node = next(iter(sim.nodes.values()))
    for height in sorted(node.chain):
        replayed = rules.apply_block(replayed, node.chain[height][0])
        current.append(replayed.current)
    assert [task for task, _ in groupby(current)] == [tasks[0], tasks[1], None]


# Work heights


@functools.cache
def prepared(validators: int) -> tuple[Chain, tuple[Block, ...]]:
    chain = Chain(genesis_of(validators))
    chain.to_work_height(pool0=800, pool1=900, pool2=950)
    return chain, tuple(chain.work_block(p, after_ms=0) for p in RANKED)


def at_work(
    validators: int, seed: int, answers: Callable[[int, str], dict[str, Answer]], gone: str = "", link: Link | None = None
) -> Sim:
    """``answers`` by a validator's place and name. ``gone`` neither sends nor hears."""
    chain, blocks = prepared(validators)
    said = {name: answers(place, name) for place, name in enumerate(chain.names)}
    return Sim(
        seed, chain.state, chain.certificate(), chain.names, chain.state.height + 1, chain.clock + 50, link or Link(),
        frozenset({gone} if gone else ()), said, list(blocks), cut=(lambda a, b, _: gone in (a, b)) if gone else None,
    )  # fmt: skip


def result(sim: Sim) -> Header:
    """What all honest nodes finalised."""
    made = {n.chain[sim.stop_height][0].block_hash for n in sim.nodes.values() if sim.is_honest(n.name)}
    assert len(made) == 1
    node = next(n for n in sim.nodes.values() if sim.is_honest(n.name))
    return node.chain[sim.stop_height][0].header.decoded()


def ends(header: Header) -> list[OutcomeKind]:
    return [o.kind for o in header.outcome]


@pytest.mark.parametrize("answered", ["half", "f+1"])
@pytest.mark.parametrize("validators", SIZES)
def test_a_requester_answers_exactly_half_or_f_plus_one(validators: int, answered: str) -> None:
    f = (validators - 1) // 3
    count = validators // 2 if answered == "half" else f + 1
    sim = at_work(validators, 3, lambda place, _: {} if place < count else {"pool2": "no answer"})
    sim.run()
    assert result(sim).author_id == account("pool2")


@pytest.mark.parametrize("validators", SIZES)
def test_a_requester_answers_only_f(validators: int) -> None:
    """The liars among the validators are no third: her bond burns."""
    f = (validators - 1) // 3
    sim = at_work(validators, 4, lambda place, _: {} if place < f else {"pool2": "no answer"})
    sim.run()
    assert ends(result(sim)) == [D]


@pytest.mark.parametrize("validators", SIZES)
def test_a_three_way_split_of_verdicts_with_one_node_silent(validators: int) -> None:
    kinds: tuple[Answer, ...] = ("valid", "pool_fault", "no answer")
    last = f"v{validators - 1}"
    sim = at_work(validators, 5, lambda place, _: {"pool2": kinds[place % 3]}, gone=last)
    sim.run(200_000)
    assert result(sim).author_id == account("pool1")


@pytest.mark.parametrize("validators", SIZES)
def test_audits_that_differ(validators: int) -> None:
    """f validators call the best claim false, whatever the reason: it wins all the same."""
    f = (validators - 1) // 3
    sim = at_work(validators, 6, lambda place, _: {"pool2": "pool_fault"} if place < f else {})
    sim.run()
    assert result(sim).author_id == account("pool2")


@pytest.mark.parametrize("validators", SIZES)
def test_all_refuted(validators: int) -> None:
    sim = at_work(validators, 7, lambda *_: dict.fromkeys(RANKED, "pool_fault"))
    sim.run()
    assert ends(result(sim)) == [R, R, R]


@pytest.mark.parametrize("validators", SIZES)
def test_a_requester_dead_before_and_during_audits(validators: int) -> None:
    sim = at_work(validators, 8, lambda *_: {"pool2": "no answer"})
    sim.run()
    assert ends(result(sim)) == [D]
    sim = at_work(validators, 8, lambda *_: {"pool2": "pool_fault", "pool1": "no answer"})
    sim.run()
    assert ends(result(sim)) == [R, D]


@dataclass
class Vanished:
    """The winner's block reached f + 1 nodes; then the pool is gone. Bodies and answers came to all."""

    sim: Sim
    blocks: tuple[Block, ...]

    def serve(self, node: SimNode, claim: Entry) -> None:
        sim = self.sim
        first = sim.names[: (len(sim.names) - 1) // 3 + 1]
        for block in self.blocks:
            if block.header.decoded().author_id == claim.pool and node.name in first:
                sim.later(node, 60, BlockAvailable(block))
        sim.later(node, 30, BodyHeld(commitment_of(claim)))
        sim.later(node, 200, found(claim, True))

    def serve_work(self, node: SimNode, claim: Entry) -> None:
        for peer in self.sim.nodes.values():
            block = None if peer.machine is None else peer.machine.work_block(commitment_of(claim))
            if block is not None and peer is not node:
                self.sim.later(node, 40, BlockAvailable(block))
                return


@pytest.mark.parametrize("validators", SIZES)
def test_the_winner_vanishes(validators: int) -> None:
    """Whoever called it valid has its block, and gives it to the others."""
    sim = at_work(validators, 9, lambda *_: {})
    sim.blobs = Vanished(sim, prepared(validators)[1])
    sim.run()
    assert result(sim).author_id == account("pool2")


@pytest.mark.parametrize("validators", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_a_better_claim_revealed_after_a_third_are_locked(validators: int, seed: int) -> None:
    """Nobody had the best claim's body; more than a third lock the next one's block, and their precommits get lost. Then the
    best claim's body and answers come to all: whatever wins, all decide the same, and progress does not stop."""
    sim = at_work(validators, seed, lambda *_: {"pool2": "no body"}, link=Link(calm_ms=prepared(validators)[0].clock + 20_000))
    third = validators // 3 + 1
    revealed: list[int] = []

    def lost(_: str, receiver: str, message: object) -> bool:
        if not isinstance(message, SignedVote):
            return False
        vote = remembered(Vote, message.vote)
        # Some of them do not see the prevotes of the first round either, and lock nothing.
        late = int(receiver[1:]) >= third
        return vote.round == 0 and (vote.step is Step.PRECOMMIT or late)

    def locked() -> int:
        return sum(n.machine is not None and n.machine._locked is not None for n in sim.nodes.values())

    def watch() -> None:
        if locked() < third:
            sim.at(sim.now + 20, watch)
            return
        revealed.append(locked())
        for node in sim.nodes.values():
            best = (node.state.work_claims() or ())[0]
            sim.later(node, 10, BodyHeld(commitment_of(best)))
            sim.later(node, 30, found(best, True))

    sim.lost = lost
    sim.at(sim.start_ms, watch)
    sim.run()
    assert third <= revealed[0] < validators
    assert result(sim).author_id in (account("pool1"), account("pool2"))
    assert not any(n.faults for n in sim.nodes.values())


@pytest.mark.parametrize("validators", SIZES)
def test_a_restart_of_everybody_in_mid_vote(validators: int) -> None:
    chain = Chain(genesis_of(validators))
    sim = Sim(10, chain.state, None, chain.names, 2, GENESIS_MS + 100, transactions=transfers(chain.state, 3))
    for at in (250, 400, 700, 1_300):
        for node in sim.nodes.values():
            sim.at(GENESIS_MS + at, lambda node=node: node.crash() if node.is_up else None)  # type: ignore[misc]
    sim.run()
    assert not any(n.faults for n in sim.nodes.values())


@pytest.mark.parametrize("validators", SIZES)
def test_a_restart_of_everybody_at_a_work_height(validators: int) -> None:
    """Before, in and after the audits."""
    sim = at_work(validators, 11, lambda *_: {"pool2": "pool_fault"})
    for at in (40, 250, 420, 900):
        for node in sim.nodes.values():
            sim.at(sim.start_ms + at, lambda node=node: node.crash() if node.is_up else None)  # type: ignore[misc]
    sim.run()
    assert result(sim).author_id == account("pool1")
    assert not any(n.faults for n in sim.nodes.values())
