"""What hostile validators, pools and requesters try on the voting machine; each test fails without its defence."""

from __future__ import annotations

from dataclasses import replace

from core.chain.block import NIL
from core.chain.claims import ClaimStatus
from core.chain.messages import (
    AuditClaim,
    AuditDone,
    BlockAvailable,
    BodyHeld,
    Broadcast,
    Faulty,
    Finalise,
    Persist,
    ReceivedProposal,
    ReceivedVerdict,
    Start,
    TimerKind,
)
from core.chain.state import Entry
from core.chain.vote import SignedVerdict, Step, Verdict, VerdictKind
from core.chain.work_height import commitment_of
from core.codec import decode
from core.ids import Correct, ModelCommitment, NodeId
from tests.chainkit import account, key, make_verdict, signed_verdict, some
from tests.unit.test_consensus_machine import Bench, at_work, follower, of, own_votes


def verdicts_in(bench: Bench, entry: Entry) -> set[VerdictKind]:
    return set(bench.machine.work.own_kinds(commitment_of(entry)))


def test_no_claim_is_called_valid_before_its_work_block_is_here() -> None:
    """Else a pool that shows its body and never its block is adopted, and nobody can propose: the height never ends."""
    bench, blocks = at_work()
    claim = of(bench.do(Start()), AuditClaim)[0].claim
    bench.do(BodyHeld(commitment_of(claim)))
    actions = bench.do(AuditDone(commitment_of(claim), VerdictKind.VALID, Correct(950), "", some("z")))
    assert of(actions, Broadcast) == []
    bench.timeout(TimerKind.BODY, 0)
    assert verdicts_in(bench, claim) == {VerdictKind.UNAVAILABLE}
    actions = bench.do(BlockAvailable(blocks[0]))
    assert isinstance(actions[0], Persist)
    assert verdicts_in(bench, claim) == {VerdictKind.UNAVAILABLE, VerdictKind.VALID}
    bench.restart()
    assert verdicts_in(bench, claim) == {VerdictKind.UNAVAILABLE, VerdictKind.VALID}


def test_a_pool_at_fault_is_said_to_be_without_its_work_block() -> None:
    bench, _ = at_work()
    claim = of(bench.do(Start()), AuditClaim)[0].claim
    bench.do(BodyHeld(commitment_of(claim)))
    bench.do(AuditDone(commitment_of(claim), VerdictKind.POOL_FAULT, Correct(3), "fewer", some("z")))
    assert verdicts_in(bench, claim) == {VerdictKind.POOL_FAULT}


def test_every_kind_of_verdict_of_one_signer_counts_in_whatever_order() -> None:
    """Else a validator that signs all four leaves honest ones with different tallies for ever, and no block is preferred."""
    kinds = (VerdictKind.UNAVAILABLE, VerdictKind.REQUESTER_FAULT, VerdictKind.POOL_FAULT, VerdictKind.VALID)
    found = []
    for order in (kinds, kinds[::-1], kinds[1:] + kinds[:1]):
        bench, _ = at_work()
        bench.do(Start())
        entry = (bench.chain.state.work_claims() or ())[0]
        bench.do(ReceivedVerdict(signed_verdict(make_verdict(bench.chain.state, entry, "v2", VerdictKind.VALID), "v2")))
        for kind in order:
            bench.do(ReceivedVerdict(signed_verdict(make_verdict(bench.chain.state, entry, "v3", kind), "v3")))
        found.append(bench.machine.work.tallies[commitment_of(entry)])
    assert found[0].status is ClaimStatus.ADOPTED
    assert len(set(found)) == 1


def test_many_verdicts_of_one_kind_are_kept_once_and_their_signer_is_reported_once() -> None:
    bench, _ = at_work()
    bench.do(Start())
    entry = (bench.chain.state.work_claims() or ())[0]
    for number in range(20):
        verdict = make_verdict(bench.chain.state, entry, "v3", VerdictKind.VALID, audited=bytes([number]))
        bench.do(ReceivedVerdict(signed_verdict(verdict, "v3")))
    kept = [s for s in bench.machine.work.all_signed() if decode(Verdict, s.verdict).validator == key("v3").public_key]
    assert len(kept) == 1
    assert len(of(bench.actions, Faulty)) == 1


def test_a_liar_who_votes_three_ways_cannot_hide_a_polka() -> None:
    """He gives this node two other votes first. Then 2/3 have locked a block whose polka this node would never count: it
    would vote for nothing for ever, and those who locked would refuse every other block."""
    bench = follower()
    liar, others = bench.at(2), [n for n in bench.chain.names if n not in (bench.name, bench.at(2))]
    block, other = bench.block(bench.at(0)), bench.block(bench.at(0), amount=2)
    for wrong in (NIL, other.block_hash):
        bench.do(bench.vote(liar, 0, Step.PREVOTE, wrong))
    bench.votes(1, Step.PREVOTE, NIL, 3)
    bench.do(bench.proposal(1, block, valid_round=0))
    for who in others:
        bench.do(bench.vote(who, 0, Step.PREVOTE, block.block_hash))
    bench.do(bench.vote(liar, 0, Step.PREVOTE, block.block_hash))
    assert (1, Step.PREVOTE, block.block_hash) in own_votes(bench)


def test_what_a_liar_votes_beyond_that_is_not_kept() -> None:
    bench = follower()
    liar = bench.at(2)
    for number in range(50):
        bench.do(bench.vote(liar, 0, Step.PREVOTE, some(f"{number}")))  # type: ignore[arg-type]
    assert len(list(bench.machine._votes.votes(0, Step.PREVOTE))) <= 2
    for _ in range(50):
        bench.now += 1
        bench.do(bench.vote(liar, 0, Step.PRECOMMIT, some("one")))  # type: ignore[arg-type]
    assert len(list(bench.machine._votes.votes(0, Step.PRECOMMIT))) <= 2
    assert len(of(bench.actions, Faulty)) == 1


def test_a_liar_who_precommits_three_ways_cannot_hide_a_decision() -> None:
    bench = follower()
    liar, others = bench.at(2), [n for n in bench.chain.names if n not in (bench.name, bench.at(2))]
    block, other = bench.block(bench.at(0)), bench.block(bench.at(0), amount=2)
    bench.do(bench.proposal(0, block))
    for wrong in (NIL, other.block_hash):
        bench.do(bench.vote(liar, 0, Step.PRECOMMIT, wrong))
    for who in (*others, liar):
        bench.do(bench.vote(who, 0, Step.PRECOMMIT, block.block_hash))
    assert of(bench.actions, Finalise)[0].block == block


def test_a_proposal_whose_verdicts_were_stripped_on_its_way_does_no_harm() -> None:
    name = next(n for n in ("v0", "v1", "v2", "v3") if at_work(n)[0].at(0) != n)
    bench, blocks = at_work(name)
    bench.do(Start())
    state, ranked = bench.chain.state, bench.chain.state.work_claims() or ()
    valid = [signed_verdict(make_verdict(state, ranked[0], n, VerdictKind.VALID), n) for n in bench.chain.names[:2]]
    good = bench.proposal(0, blocks[0]).signed
    bench.do(ReceivedProposal(good))
    bench.do(ReceivedProposal(replace(good, verdicts=tuple(valid))))
    assert bench.machine._blocks.is_valid(blocks[0].block_hash)


_ = (account, NodeId, ModelCommitment, SignedVerdict)
