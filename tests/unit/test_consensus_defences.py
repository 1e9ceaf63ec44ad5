"""Defences of the voting machine that no other test misses when they are taken out (docs/consensus.md, "Faults put in")."""

from __future__ import annotations

import pytest

from core.chain import build
from core.chain.block import NIL
from core.chain.messages import (
    BlockBuilt,
    Broadcast,
    Finalise,
    NeedBlock,
    Persist,
    SetTimer,
    Start,
    TimerKind,
    TransactionsWaiting,
)
from core.chain.state import DOMAIN_TIE
from core.chain.vote import Proposal, SignedProposal, Step
from core.codec import decode
from core.crypto.hashing import digest
from core.ids import Milliseconds
from tests.chainkit import Chain, account, key
from tests.unit.test_consensus_machine import Bench, follower, of, own_votes

NAMES = ("v0", "v1", "v2", "v3")


def proposer_of(round_: int) -> Bench:
    bench = Bench(next(n for n in NAMES if Bench(n).at(round_) == n))
    bench.do(Start())
    bench.do(TransactionsWaiting(True))
    return bench


def proposals(actions: list[object]) -> list[SignedProposal]:
    return [a.message for a in actions if isinstance(a, Broadcast) and isinstance(a.message, SignedProposal)]


def test_a_valid_block_without_a_lock_is_on_disk_as_soon_as_it_is_known() -> None:
    """2/3 prevoted it when this node had precommitted nothing (line 42). Forgotten, it is proposed to nobody again, and the
    only validators who can bring those that locked it to a decision are themselves."""
    bench = proposer_of(1)
    block = bench.block(bench.at(0))
    bench.do(bench.proposal(0, block))
    others = [n for n in bench.chain.names if n != bench.name]
    bench.do(bench.vote(others[0], 0, Step.PREVOTE, NIL))
    bench.do(bench.vote(others[1], 0, Step.PREVOTE, block.block_hash))
    bench.timeout(TimerKind.PREVOTE, 0)
    assert own_votes(bench) == [(0, Step.PREVOTE, block.block_hash), (0, Step.PRECOMMIT, NIL)]
    actions = bench.do(bench.vote(others[2], 0, Step.PREVOTE, block.block_hash))
    assert of(actions, Persist)
    assert (0, Step.PRECOMMIT, block.block_hash) not in own_votes(bench)
    bench.restart()
    bench.votes(0, Step.PRECOMMIT, NIL, 3)
    again = [decode(Proposal, p.proposal) for p in proposals(bench.timeout(TimerKind.PRECOMMIT, 0))]  # type: ignore[arg-type]
    assert [(p.round, p.valid_round, p.block_hash) for p in again] == [(1, 0, block.block_hash)]


def test_a_restarted_proposer_sends_the_block_that_it_sent_before_and_no_other() -> None:
    """Its own prevote still waits, for the tick: nothing but the proposal itself says that the round is used up."""
    bench = proposer_of(0)
    bench.now = bench.chain.state.tip.timestamp_ms + 100
    bench.machine._now = Milliseconds(0)
    empty = build.build_transaction_block(bench.chain.state, key(bench.name), bench.certificate, []).block
    actions = bench.do(BlockBuilt(0, empty))
    assert isinstance(actions[0], Persist)
    sent = proposals(actions)  # type: ignore[arg-type]
    assert len(sent) == 1
    assert own_votes(bench) == []
    after = bench.restart()
    assert of(after, NeedBlock) == []
    assert proposals(after) == sent  # type: ignore[arg-type]
    assert proposals(bench.do(BlockBuilt(0, bench.block(bench.name)))) == []  # type: ignore[arg-type]


def test_only_more_than_a_third_in_one_later_round_skip_to_it() -> None:
    """Neither one validator with all its votes, nor two in different rounds: else one liar and one lagging honest validator
    drive everybody through the rounds, and no round lasts as long as its timeouts say."""
    bench = follower()
    first, second = bench.at(0), bench.at(1)
    for step in Step:
        bench.do(bench.vote(first, 7, step, NIL))
    bench.do(bench.vote(second, 5, Step.PREVOTE, NIL))
    assert bench.machine.round == 0
    bench.do(bench.vote(first, 5, Step.PRECOMMIT, NIL))
    assert bench.machine.round == 5
    assert (5, TimerKind.PROPOSE) in [(a.timer.key, a.timer.kind) for a in of(bench.actions, SetTimer)]
    bench.do(bench.vote(second, 7, Step.PRECOMMIT, NIL))
    assert bench.machine.round == 7


def test_a_node_that_skipped_rounds_still_counts_the_precommits_of_an_earlier_one() -> None:
    bench = follower()
    block = bench.block(bench.at(0))
    bench.do(bench.proposal(0, block))
    bench.votes(0, Step.PRECOMMIT, block.block_hash, 2)
    bench.votes(6, Step.PREVOTE, NIL, 2)
    assert bench.machine.round == 6
    bench.do(bench.vote([n for n in bench.chain.names if n != bench.name][2], 0, Step.PRECOMMIT, block.block_hash))
    assert of(bench.actions, Finalise)[0].certificate.round == 0


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_who_is_first_among_equal_claims_hangs_on_the_closing_block(blocks: int) -> None:
    """Four claims: an order that follows from anything else would have to hit one of 24 in each of three chains."""
    chain = Chain()
    for _ in range(blocks):
        chain.block()
    pools = [f"pool{i}" for i in range(4)]
    chain.to_work_height(**dict.fromkeys(pools, 900))
    ranked = chain.state.work_claims() or ()
    closing = chain.state.tip.block_hash
    ties = {e.pool: digest(DOMAIN_TIE, closing, e.claim.vm.model_commitment) for e in ranked if e.claim is not None}
    assert [e.pool for e in ranked] == sorted((account(p) for p in pools), key=ties.__getitem__)
