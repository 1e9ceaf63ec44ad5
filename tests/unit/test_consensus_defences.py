"""Defences of the voting machine that no other test misses when they are taken out (docs/consensus.md, "Faults put in")."""

from __future__ import annotations

import pytest

from core.chain import build
from core.chain.block import NIL, Block
from core.chain.messages import (
    BlockAvailable,
    BlockBuilt,
    BodyHeld,
    Broadcast,
    Finalise,
    NeedBlock,
    Persist,
    ReceivedVerdict,
    RequestBlock,
    SetTimer,
    Start,
    TimerKind,
    TransactionsWaiting,
)
from core.chain.state import DOMAIN_TIE
from core.chain.vote import Proposal, SignedProposal, SignedVerdict, SignedVote, Step, VerdictKind, Vote
from core.chain.work_height import commitment_of
from core.codec import decode
from core.crypto.hashing import digest
from core.errors import VoteError
from core.ids import Milliseconds
from tests.chainkit import Chain, account, key, make_verdict, signed_verdict
from tests.unit.test_consensus_machine import Bench, at_work, follower, of, own_votes

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


def test_a_late_polka_is_remembered_and_locks_nobody() -> None:
    """Line 37 locks only from the step prevote: who has precommitted nothing has promised nothing."""
    bench = follower()
    block, other = bench.block(bench.at(0)), bench.block(bench.at(1), amount=2)
    bench.do(bench.proposal(0, block))
    others = [n for n in bench.chain.names if n != bench.name]
    bench.do(bench.vote(others[0], 0, Step.PREVOTE, NIL))
    bench.do(bench.vote(others[1], 0, Step.PREVOTE, block.block_hash))
    bench.timeout(TimerKind.PREVOTE, 0)
    bench.do(bench.vote(others[2], 0, Step.PREVOTE, block.block_hash))
    bench.votes(0, Step.PRECOMMIT, NIL, 3)
    bench.timeout(TimerKind.PRECOMMIT, 0)
    bench.do(bench.proposal(1, other))
    assert (1, Step.PREVOTE, other.block_hash) in own_votes(bench)


def test_who_votes_twice_counts_once_for_the_timeouts_too() -> None:
    bench = follower()
    block = bench.block(bench.at(0))
    bench.do(bench.proposal(0, block))
    others = [n for n in bench.chain.names if n != bench.name]
    for block_hash in (NIL, block.block_hash):
        bench.do(bench.vote(others[0], 0, Step.PREVOTE, block_hash))
    assert not [a for a in of(bench.actions, SetTimer) if a.timer.kind is TimerKind.PREVOTE]
    bench.do(bench.vote(others[1], 0, Step.PREVOTE, NIL))
    assert [a for a in of(bench.actions, SetTimer) if a.timer.kind is TimerKind.PREVOTE]


def test_one_vote_starts_no_round_where_no_block_is_due() -> None:
    bench = Bench()
    bench.now = bench.chain.state.tip.timestamp_ms
    bench.machine._now = Milliseconds(0)
    bench.do(Start())
    others = [n for n in bench.chain.names if n != bench.name]
    bench.do(bench.vote(others[0], 0, Step.PREVOTE, NIL))
    bench.do(bench.vote(others[0], 1, Step.PREVOTE, NIL))
    assert bench.machine.round == -1
    bench.do(bench.vote(others[1], 0, Step.PREVOTE, NIL))
    assert bench.machine.round == 0


def test_every_round_lasts_longer_than_the_one_before() -> None:
    bench, params = follower(), Bench().chain.state.params
    for round_ in range(4):
        bench.timeout(TimerKind.PROPOSE, round_)
        bench.votes(round_, Step.PREVOTE, NIL, 3)
        bench.votes(round_, Step.PRECOMMIT, NIL, 3)
        bench.timeout(TimerKind.PRECOMMIT, round_)
    lasts = {(a.timer.kind, a.timer.key): a.delay_ms for a in of(bench.actions, SetTimer)}
    for round_ in range(4):
        assert lasts[TimerKind.PROPOSE, round_] == params.propose_ms + round_ * params.delta_ms
        assert lasts[TimerKind.PRECOMMIT, round_] == params.precommit_ms + round_ * params.delta_ms


def test_a_block_that_did_not_come_is_asked_for_again() -> None:
    bench = follower()
    block = bench.block(bench.at(0))
    bench.votes(0, Step.PRECOMMIT, block.block_hash, 3)
    bench.do(bench.vote(bench.at(1), 1, Step.PREVOTE, NIL))
    assert of(bench.actions, RequestBlock) == [RequestBlock(block.block_hash)]
    assert RequestBlock(block.block_hash) in bench.timeout(TimerKind.RESEND, 0)


def test_a_precommit_is_later_than_the_tip_whatever_this_nodes_clock_says() -> None:
    bench = follower()
    bench.machine._now = Milliseconds(0)
    bench.now = 5
    bench.votes(0, Step.PREVOTE, NIL, 3)
    bench.timeout(TimerKind.PROPOSE, 0)
    sent = [a.message for a in of(bench.actions, Broadcast) if isinstance(a.message, SignedVote)]
    votes = [decode(Vote, s.vote) for s in sent]
    times = [v.time_ms for v in votes if v.step is Step.PRECOMMIT]
    assert times == [bench.chain.state.tip.timestamp_ms + 1]


# -- work heights ------------------------------------------------------------------------------------------------------


def waiting_at_work() -> tuple[Bench, list[Block], list[SignedVerdict]]:
    """A machine that does not propose first, the two pools' blocks, and verdicts of two others that adopt the first one's."""
    name = next(n for n in NAMES if at_work(n)[0].at(0) != n)
    bench, blocks = at_work(name)
    bench.do(Start())
    entry = (bench.chain.state.work_claims() or ())[0]
    others = [n for n in bench.chain.names if n != name]
    said = [signed_verdict(make_verdict(bench.chain.state, entry, n, VerdictKind.VALID), n) for n in others[:2]]
    return bench, blocks, said


def test_a_work_block_is_voted_for_when_verdicts_justify_it_and_not_before() -> None:
    bench, blocks, said = waiting_at_work()
    bench.do(bench.vote(bench.at(0), 0, Step.PREVOTE, blocks[0].block_hash))
    others = [n for n in bench.chain.names if n not in (bench.name, bench.at(0))]
    bench.do(bench.vote(others[0], 0, Step.PREVOTE, blocks[0].block_hash))
    assert bench.machine.round == 0
    bench.do(bench.proposal(0, blocks[0]))
    assert own_votes(bench) == []
    bench.do(bench.vote(others[1], 0, Step.PREVOTE, blocks[0].block_hash))
    assert own_votes(bench) == []
    for verdict in said:
        bench.do(ReceivedVerdict(verdict))
    assert (0, Step.PREVOTE, blocks[0].block_hash) in own_votes(bench)


def test_once_justified_is_justified_for_ever() -> None:
    """A lower claim's block came with verdicts that skip the higher one; then others adopt that. Who locked the block must
    still find it valid, else nobody could ever re-propose it."""
    bench, blocks, said = waiting_at_work()
    state, ranked = bench.chain.state, bench.chain.state.work_claims() or ()
    gone = [signed_verdict(make_verdict(state, ranked[0], n, VerdictKind.UNAVAILABLE), n) for n in NAMES[:3]]
    lower = [signed_verdict(make_verdict(state, ranked[1], n, VerdictKind.VALID), n) for n in NAMES[:2]]
    bench.do(BlockAvailable(blocks[1], (*gone, *lower)))
    assert bench.machine._blocks.is_valid(blocks[1].block_hash)
    for verdict in said:
        bench.do(ReceivedVerdict(verdict))
    assert not bench.machine.work.is_justified(blocks[1].header.decoded())
    assert bench.machine._blocks.is_valid(blocks[1].block_hash)


def test_more_verdicts_than_there_can_be_are_refused_with_their_block() -> None:
    bench, blocks, _ = waiting_at_work()
    entry = (bench.chain.state.work_claims() or ())[0]
    said = (make_verdict(bench.chain.state, entry, "v0", VerdictKind.VALID, audited=bytes([n])) for n in range(33))
    made = [signed_verdict(verdict, "v0") for verdict in said]
    with pytest.raises(VoteError, match="at most 32"):
        bench.do(BlockAvailable(blocks[0], tuple(made)))
    assert blocks[0].block_hash not in bench.machine._blocks
    assert bench.machine.work.all_signed() == ()


def test_the_requesters_time_does_not_run_while_the_body_is_not_here() -> None:
    """Else a pool that shows its work block and withholds the body has her blamed for it."""
    bench, blocks = at_work()
    bench.do(Start())
    assert not [a for a in of(bench.do(BlockAvailable(blocks[0])), SetTimer) if a.timer.kind is TimerKind.AUDIT]
    bench.timeout(TimerKind.BODY, 0)
    commitment = commitment_of((bench.chain.state.work_claims() or ())[0])
    assert bench.machine.work.own_kinds(commitment) == {VerdictKind.UNAVAILABLE}
    assert [a for a in of(bench.do(BodyHeld(commitment)), SetTimer) if a.timer.kind is TimerKind.AUDIT]
