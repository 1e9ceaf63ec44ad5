"""One machine, driven by hand: what it signs, when, and what a restart does not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import pytest

from core.chain import build, rules
from core.chain.block import NIL, Block
from core.chain.consensus import Consensus, proposer
from core.chain.messages import (
    Action,
    AuditClaim,
    AuditDone,
    AuditFailed,
    BlockAvailable,
    BlockBuilt,
    BodyHeld,
    Broadcast,
    Faulty,
    Finalise,
    NeedBlock,
    Persist,
    ReceivedProposal,
    ReceivedVerdict,
    ReceivedVote,
    RequestBlock,
    SetTimer,
    Start,
    Timeout,
    Timer,
    TimerKind,
    TransactionsWaiting,
)
from core.chain.outbox import Outbox
from core.chain.state import Validator
from core.chain.transaction import Equivocation, PoolFault, Transfer, Verdicts
from core.chain.vote import Proposal, SignedProposal, SignedVote, Step, VerdictKind, Vote
from core.chain.work_height import commitment_of
from core.codec import decode
from core.errors import BlockError, VoteError, WrongChainError
from core.ids import Amount, BlockHash, Correct, Digest, Height, Milliseconds, NodeId
from tests.chainkit import Chain, account, key, make_verdict, signed_verdict, some

A = TypeVar("A")


class Bench:
    """A machine at height 2 of a fresh chain, as ``name``; the other validators' messages are made here."""

    def __init__(self, name: str = "v0", chain: Chain | None = None, audited: Digest | None = None) -> None:
        if chain is None:
            chain = Chain()
            chain.block()
        self.chain, self.name = chain, name
        chain.clock += 1000
        self.certificate = chain.certificate()
        self.machine = Consensus(chain.state, self.certificate, key(name), audited=audited)
        self.now = chain.clock
        self.actions: list[Action] = []
        self.disk: bytes | None = None
        self.audited = audited

    @property
    def height(self) -> Height:
        return Height(self.chain.state.height + 1)

    def do(self, event: object) -> list[Action]:
        found = self.machine.step(event, Milliseconds(self.now))  # type: ignore[arg-type]
        self.actions += found
        for action in found:
            if isinstance(action, Persist):
                self.disk = action.record
        return found

    def restart(self) -> list[Action]:
        self.machine = Consensus(self.chain.state, self.certificate, key(self.name), self.disk, self.audited)
        return self.do(Start())

    def at(self, round_: int) -> str:
        who = proposer(self.chain.state.validators, self.height, round_)
        return next(n for n in self.chain.names if key(n).public_key == who)

    def block(self, author: str, amount: int = 1) -> Block:
        payload = Transfer(account("x"), Amount(amount))
        tx = build.make_transaction(key("other"), self.chain.state.chain_id, 0, Amount(1), payload)
        return build.build_transaction_block(self.chain.state, key(author), self.certificate, [tx]).block

    def proposal(self, round_: int, block: Block, valid_round: int = -1, by: str | None = None) -> ReceivedProposal:
        who = self.at(round_) if by is None else by
        content = Proposal(
            self.chain.state.chain_id, self.height, round_, valid_round, block.block_hash, NodeId(key(who).public_key)
        )
        return ReceivedProposal(build.make_proposal(key(who), content, block))

    def vote(self, who: str, round_: int, step: Step, block_hash: BlockHash) -> ReceivedVote:
        time_ms = Milliseconds(self.now if step is Step.PRECOMMIT else 0)
        content = Vote(self.chain.state.chain_id, self.height, round_, step, block_hash, time_ms, NodeId(key(who).public_key))
        return ReceivedVote(build.make_vote(key(who), content))

    def votes(self, round_: int, step: Step, block_hash: BlockHash, count: int = 3) -> None:
        for who in [n for n in self.chain.names if n != self.name][:count]:
            self.do(self.vote(who, round_, step, block_hash))

    def timeout(self, kind: TimerKind, key_: int) -> list[Action]:
        return self.do(Timeout(Timer(kind, key_)))


def of(actions: Sequence[Action], kind: type[A]) -> list[A]:
    return [a for a in actions if isinstance(a, kind)]


def own_votes(bench: Bench, actions: Sequence[Action] | None = None) -> list[tuple[int, Step, BlockHash]]:
    found = []
    for action in of(bench.actions if actions is None else actions, Broadcast):
        if isinstance(action.message, SignedVote):
            vote = decode(Vote, action.message.vote)
            if vote.validator == key(bench.name).public_key:
                found.append((vote.round, vote.step, vote.block_hash))
    return list(dict.fromkeys(found))


def follower() -> Bench:
    """A bench whose machine proposes in none of the first rounds that the tests use."""
    for name in ("v0", "v1", "v2", "v3"):
        bench = Bench(name)
        if name not in (bench.at(0), bench.at(1), bench.at(2)):
            bench.do(Start())
            bench.do(TransactionsWaiting(True))
            return bench
    raise AssertionError("four validators, three rounds")


def test_a_round_of_votes_makes_a_block_final() -> None:
    bench = follower()
    block = bench.block(bench.at(0))
    bench.do(bench.proposal(0, block))
    assert own_votes(bench) == [(0, Step.PREVOTE, block.block_hash)]
    bench.votes(0, Step.PREVOTE, block.block_hash, 2)
    assert own_votes(bench)[1:] == [(0, Step.PRECOMMIT, block.block_hash)]
    bench.votes(0, Step.PRECOMMIT, block.block_hash, 1)
    assert not bench.machine.is_decided
    bench.votes(0, Step.PRECOMMIT, block.block_hash, 2)
    final = of(bench.actions, Finalise)[0]
    assert final.block == block
    assert final.state == rules.apply_block(bench.chain.state, block)
    assert len(final.certificate.signatures) == 3
    assert bench.do(Timeout(Timer(TimerKind.RESEND, 0))) == []


def test_every_own_message_is_on_disk_before_it_is_sent() -> None:
    bench = follower()
    block = bench.block(bench.at(0))
    for event in (bench.proposal(0, block), bench.vote(bench.at(0), 0, Step.PREVOTE, block.block_hash)):
        actions = bench.do(event)
        sent = [i for i, a in enumerate(actions) if isinstance(a, Broadcast)]
        if sent:
            assert isinstance(actions[0], Persist)
            assert min(sent) > 0


def test_a_restart_sends_the_same_bytes_and_never_others() -> None:
    bench = follower()
    block, other = bench.block(bench.at(0)), bench.block(bench.at(0), amount=2)
    bench.do(bench.proposal(0, block))
    first = [a.message for a in of(bench.actions, Broadcast) if isinstance(a.message, SignedVote)]
    bench.now += 5000
    again = [a.message for a in of(bench.restart(), Broadcast) if isinstance(a.message, SignedVote)]
    assert again[: len(first)] == first
    after = bench.do(bench.proposal(0, other))
    assert own_votes(bench, after) == []
    bench.votes(0, Step.PREVOTE, other.block_hash, 3)
    precommits = [v for v in own_votes(bench) if v[1] is Step.PRECOMMIT]
    assert precommits == [(0, Step.PRECOMMIT, other.block_hash)]


def test_a_lock_survives_a_restart_and_refuses_another_fresh_block() -> None:
    bench = follower()
    block = bench.block(bench.at(0))
    bench.do(bench.proposal(0, block))
    bench.votes(0, Step.PREVOTE, block.block_hash, 3)
    bench.restart()
    bench.votes(0, Step.PRECOMMIT, NIL, 2)
    bench.timeout(TimerKind.PRECOMMIT, 0)
    assert bench.machine.round == 1
    bench.do(bench.proposal(1, bench.block(bench.at(1), amount=2)))
    assert (1, Step.PREVOTE, NIL) in own_votes(bench)


def test_a_lock_yields_to_a_later_polka() -> None:
    bench = follower()
    first, second = bench.block(bench.at(0)), bench.block(bench.at(1), amount=2)
    bench.do(bench.proposal(0, first))
    bench.votes(0, Step.PREVOTE, first.block_hash, 3)
    bench.votes(2, Step.PREVOTE, NIL, 2)
    assert bench.machine.round == 2
    bench.do(bench.proposal(2, second, valid_round=1))
    assert (2, Step.PREVOTE) not in [v[:2] for v in own_votes(bench)]
    bench.votes(1, Step.PREVOTE, second.block_hash, 3)
    assert (2, Step.PREVOTE, second.block_hash) in own_votes(bench)


def test_a_lock_does_not_yield_to_an_earlier_polka() -> None:
    bench = follower()
    first, second = bench.block(bench.at(0)), bench.block(bench.at(1), amount=2)
    bench.votes(1, Step.PREVOTE, NIL, 2)
    bench.do(bench.proposal(1, second))
    bench.votes(1, Step.PREVOTE, second.block_hash, 3)
    bench.votes(2, Step.PREVOTE, NIL, 2)
    bench.do(bench.proposal(2, first, valid_round=0))
    bench.votes(0, Step.PREVOTE, first.block_hash, 3)
    assert (2, Step.PREVOTE, NIL) in own_votes(bench)


def test_a_proposer_with_a_valid_block_proposes_it_again_with_its_polka() -> None:
    name = proposer(Bench().chain.state.validators, Height(2), 1)
    bench = Bench(next(n for n in ("v0", "v1", "v2", "v3") if key(n).public_key == name))
    bench.do(Start())
    bench.do(TransactionsWaiting(True))
    block = bench.block(bench.at(0))
    bench.do(bench.proposal(0, block))
    bench.votes(0, Step.PREVOTE, block.block_hash, 3)
    bench.restart()
    bench.votes(0, Step.PRECOMMIT, NIL, 3)
    actions = bench.timeout(TimerKind.PRECOMMIT, 0)
    sent = [a.message for a in of(actions, Broadcast)]
    proposals = [decode(Proposal, m.proposal) for m in sent if isinstance(m, SignedProposal)]
    assert [(p.round, p.valid_round, p.block_hash) for p in proposals] == [(1, 0, block.block_hash)]
    assert sum(isinstance(m, SignedVote) for m in sent) >= 3
    assert of(actions, NeedBlock) == []


def test_timeouts_vote_for_nothing_and_start_the_next_round() -> None:
    bench = follower()
    bench.timeout(TimerKind.PROPOSE, 0)
    assert own_votes(bench) == [(0, Step.PREVOTE, NIL)]
    bench.timeout(TimerKind.PROPOSE, 0)
    bench.votes(0, Step.PREVOTE, NIL, 2)
    assert own_votes(bench)[1:] == [(0, Step.PRECOMMIT, NIL)]
    bench.votes(0, Step.PRECOMMIT, NIL, 2)
    timers = [a for a in of(bench.actions, SetTimer) if a.timer == Timer(TimerKind.PRECOMMIT, 0)]
    assert len(timers) == 1
    bench.timeout(TimerKind.PRECOMMIT, 0)
    assert bench.machine.round == 1
    bench.timeout(TimerKind.PRECOMMIT, 0)
    assert bench.machine.round == 1


def test_more_than_a_third_in_a_later_round_pulls_this_node_along() -> None:
    bench = follower()
    bench.do(bench.vote(bench.at(0), 7, Step.PREVOTE, NIL))
    assert bench.machine.round == 0
    bench.do(bench.vote(bench.at(1), 7, Step.PRECOMMIT, NIL))
    assert bench.machine.round == 7


def test_one_validator_cannot_fill_the_memory_with_future_rounds() -> None:
    bench = follower()
    for round_ in range(1, 100):
        bench.do(bench.vote(bench.at(0), round_, Step.PREVOTE, NIL))
    assert len(bench.machine._votes.rounds()) <= 16
    bench.do(bench.vote(bench.at(1), 99, Step.PREVOTE, NIL))
    assert bench.machine.round == 99


def test_a_block_that_two_thirds_voted_for_is_asked_for() -> None:
    bench = follower()
    block = bench.block(bench.at(0))
    bench.votes(0, Step.PRECOMMIT, block.block_hash, 3)
    assert RequestBlock(block.block_hash) in bench.actions
    bench.do(BlockAvailable(block))
    assert of(bench.actions, Finalise)[0].block == block


def test_messages_that_are_refused_change_nothing() -> None:
    bench = follower()
    block = bench.block(bench.at(0))
    good = bench.proposal(0, block).signed
    vote = bench.vote("v1" if bench.name != "v1" else "v2", 0, Step.PREVOTE, block.block_hash).signed
    content = decode(Vote, vote.vote)
    before = bench.machine.record()
    wrong_body = Block(block.header, build.build_transaction_block(
        bench.chain.state, key(bench.at(0)), bench.certificate, []
    ).block.body)  # fmt: skip
    foreign = replace(content, chain_id=some("x"))
    cases: list[tuple[object, type[Exception], str]] = [
        (bench.proposal(0, block, by=bench.name), VoteError, "is [0-9a-f]{8}'s"),
        (ReceivedProposal(replace(good, block=bench.block("v0", amount=9).to_bytes())), VoteError, "brings block"),
        (ReceivedProposal(replace(good, block=b"xx")), VoteError, "truncated"),
        (ReceivedProposal(replace(good, block=wrong_body.to_bytes())), BlockError, "the body's root"),
        (bench.proposal(0, block, valid_round=0), VoteError, "valid round 0"),
        (ReceivedVote(SignedVote(vote.vote, good.signature)), VoteError, "does not verify"),
        (ReceivedVote(SignedVote(b"\0", vote.signature)), VoteError, "truncated"),
        (ReceivedVote(build.make_vote(key("v1"), foreign)), WrongChainError, "for chain"),
        (ReceivedVote(build.make_vote(key("v1"), replace(content, height=Height(9)))), VoteError, "for height 9"),
        (bench.vote("other", 0, Step.PREVOTE, NIL), VoteError, "no validator"),
        (
            ReceivedVerdict(build.make_verdict(key("v1"), make_any_verdict(bench.chain))),
            VoteError,
            "no work height",
        ),
    ]
    for event, error, match in cases:
        with pytest.raises(error, match=match):
            bench.do(event)
        assert bench.machine.record() == before
    assert bench.machine.round == 0


def make_any_verdict(chain: Chain):  # type: ignore[no-untyped-def]
    work = Chain()
    work.to_work_height(pool0=900)
    entry = (work.state.work_claims() or ())[0]
    return make_verdict(work.state, entry, "v1", VerdictKind.UNAVAILABLE)


def test_equivocation_is_reported_and_both_votes_count_once_each() -> None:
    bench = follower()
    first, second = bench.block(bench.at(0)), bench.block(bench.at(0), amount=2)
    bench.do(bench.vote(bench.at(0), 0, Step.PREVOTE, first.block_hash))
    actions = bench.do(bench.vote(bench.at(0), 0, Step.PREVOTE, second.block_hash))
    assert isinstance(of(actions, Faulty)[0].evidence, Equivocation)
    third = bench.do(bench.vote(bench.at(0), 0, Step.PREVOTE, NIL))
    assert of(third, Faulty) == []


def test_an_empty_block_within_the_tick_waits_and_then_is_voted_for() -> None:
    bench = follower()
    bench.now = bench.chain.state.tip.timestamp_ms + 100
    empty = build.build_transaction_block(bench.chain.state, key(bench.at(0)), bench.certificate, []).block
    bench.machine._now = Milliseconds(0)
    actions = bench.do(bench.proposal(0, empty))
    assert own_votes(bench) == []
    assert any(a.timer.kind is TimerKind.DUE for a in of(actions, SetTimer))
    bench.now += bench.chain.state.params.tick_ms
    bench.timeout(TimerKind.DUE, 0)
    assert own_votes(bench) == [(0, Step.PREVOTE, empty.block_hash)]


def test_the_proposer_asks_for_a_block_once_and_proposes_what_it_gets() -> None:
    name = next(n for n in ("v0", "v1", "v2", "v3") if Bench(n).at(0) == n)
    bench = Bench(name)
    bench.do(Start())
    bench.do(TransactionsWaiting(True))
    assert of(bench.actions, NeedBlock) == [NeedBlock(0)]
    block = bench.block(name)
    bench.do(BlockBuilt(1, block))
    assert bench.machine.round == 0
    assert own_votes(bench) == []
    bench.do(BlockBuilt(0, block))
    assert own_votes(bench) == [(0, Step.PREVOTE, block.block_hash)]
    assert [a for a in bench.restart() if isinstance(a, NeedBlock)] == []


# -- work heights ------------------------------------------------------------------------------------------------------


def at_work(name: str = "v0") -> tuple[Bench, list[Block]]:
    chain = Chain()
    chain.to_work_height(pool0=900, pool1=950)
    blocks = [chain.work_block("pool1", after_ms=0), chain.work_block("pool0", after_ms=0)]
    return Bench(name, chain), blocks


def test_an_audit_is_asked_for_timed_and_its_verdict_signed_once() -> None:
    bench, blocks = at_work()
    actions = bench.do(Start())
    asked = of(actions, AuditClaim)[0]
    assert asked.claim.pool == account("pool1")
    assert any(a.timer.kind is TimerKind.BODY for a in of(actions, SetTimer))
    bench.do(BlockAvailable(blocks[0]))
    actions = bench.do(BodyHeld(commitment_of(asked.claim)))
    assert any(a.timer.kind is TimerKind.AUDIT for a in of(actions, SetTimer))
    assert bench.timeout(TimerKind.BODY, 0) == []
    done = AuditDone(commitment_of(asked.claim), VerdictKind.VALID, Correct(950), "", some("z"))
    actions = bench.do(done)
    assert isinstance(actions[0], Persist)
    assert len(of(actions, Broadcast)) == 1
    assert bench.do(done) == []
    assert bench.timeout(TimerKind.AUDIT, 0) == []
    with pytest.raises(VoteError, match="that is not 'valid'"):
        bench.do(replace(done, correct=Correct(951)))


def test_no_body_then_a_late_one_replaces_the_verdict_but_nothing_else_does() -> None:
    bench, blocks = at_work()
    claim = of(bench.do(Start()), AuditClaim)[0].claim
    assert len(of(bench.timeout(TimerKind.BODY, 0), Broadcast)) == 1
    bench.restart()
    bench.do(BlockAvailable(blocks[0]))
    bench.do(BodyHeld(commitment_of(claim)))
    assert len(of(bench.timeout(TimerKind.AUDIT, 0), Broadcast)) == 1
    assert bench.do(AuditDone(commitment_of(claim), VerdictKind.VALID, Correct(950), "", some("z"))) == []
    kinds = bench.machine.work.own_kinds(commitment_of(claim))
    assert kinds == {VerdictKind.UNAVAILABLE, VerdictKind.REQUESTER_FAULT}


def test_a_lower_claim_is_not_preferred_while_a_higher_one_is_adopted_here() -> None:
    name = next(n for n in ("v0", "v1", "v2", "v3") if at_work(n)[0].at(0) != n)
    bench, blocks = at_work(name)
    bench.do(Start())
    ranked = bench.chain.state.work_claims() or ()
    for who in [n for n in bench.chain.names if n != name][:2]:
        verdict = signed_verdict(make_verdict(bench.chain.state, ranked[0], who, VerdictKind.VALID), who)
        bench.do(ReceivedVerdict(verdict))
    state = bench.chain.state
    gone = [signed_verdict(make_verdict(state, ranked[0], n, VerdictKind.UNAVAILABLE), n) for n in bench.chain.names[:3]]
    lower = [signed_verdict(make_verdict(state, ranked[1], n, VerdictKind.VALID), n) for n in ("v1", "v2")]
    good = bench.proposal(0, blocks[1]).signed
    bench.do(ReceivedProposal(replace(good, verdicts=(*gone, *lower))))
    assert bench.machine._blocks.is_valid(blocks[1].block_hash)
    assert own_votes(bench) == []
    bench.timeout(TimerKind.PROPOSE, 0)
    assert own_votes(bench) == [(0, Step.PREVOTE, NIL)]


def test_a_better_claim_revealed_after_a_lock_does_not_break_it() -> None:
    """2/3 locked on the lower claim; then verdicts adopt the higher one: the lower one is still what is decided."""
    name = next(n for n in ("v0", "v1", "v2", "v3") if at_work(n)[0].at(0) != n)
    bench, blocks = at_work(name)
    bench.do(Start())
    state, ranked = bench.chain.state, bench.chain.state.work_claims() or ()
    gone = [signed_verdict(make_verdict(state, ranked[0], n, VerdictKind.UNAVAILABLE), n) for n in bench.chain.names[:3]]
    valid = [signed_verdict(make_verdict(state, ranked[1], n, VerdictKind.VALID), n) for n in bench.chain.names[:2]]
    lower = blocks[1]
    bench.do(ReceivedProposal(replace(bench.proposal(0, lower).signed, verdicts=(*gone, *valid))))
    bench.do(bench.vote(bench.at(0), 0, Step.PREVOTE, lower.block_hash))
    bench.now += 2000
    bench.votes(0, Step.PREVOTE, lower.block_hash, 3)
    assert (0, Step.PRECOMMIT, lower.block_hash) in own_votes(bench)
    for n in bench.chain.names[1:3]:
        bench.do(ReceivedVerdict(signed_verdict(make_verdict(state, ranked[0], n, VerdictKind.VALID), n)))
    bench.votes(1, Step.PREVOTE, NIL, 3)
    bench.do(ReceivedProposal(replace(bench.proposal(1, lower, valid_round=0).signed, verdicts=(*gone, *valid))))
    if bench.at(1) != name:
        assert (1, Step.PREVOTE, lower.block_hash) in own_votes(bench)


def test_two_work_blocks_of_one_pool_are_reported() -> None:
    bench, blocks = at_work()
    bench.do(Start())
    second = bench.chain.work_block("pool1")
    bench.do(BlockAvailable(blocks[0]))
    assert isinstance(of(bench.do(BlockAvailable(second)), Faulty)[0].evidence, PoolFault)


def test_an_auditor_does_not_vote_for_a_block_that_pays_by_wrong_tags() -> None:
    bench, blocks = at_work()
    chain, ranked, at_height = bench.chain, bench.chain.state.work_claims() or (), bench.height
    audits = [signed_verdict(make_verdict(chain.state, ranked[0], v, VerdictKind.VALID), v) for v in chain.names]
    chain.apply(blocks[0])
    name = "v0"
    bench = Bench(name, chain, audited=some(b"z".hex()))
    if bench.at(0) == name:
        name = "v1"
        bench = Bench(name, chain, audited=some(b"z".hex()))
    bench.do(Start())
    for z, voted in ((some("made up"), False), (some(b"z".hex()), True)):
        tx = chain.tx(bench.at(0), Verdicts(at_height, z, tuple(audits)), fee=0, nonce=0)
        block = build.build_transaction_block(chain.state, key(bench.at(0)), bench.certificate, [tx]).block
        assert len(block.decoded_body().transactions) == 1
        bench.do(bench.proposal(0, block))
        assert ((0, Step.PREVOTE, block.block_hash) in own_votes(bench)) is voted
        if not voted:
            bench.restart()


def test_turns_follow_power_and_successive_rounds_differ() -> None:
    def made(*powers: int) -> tuple[Validator, ...]:
        return tuple(Validator(NodeId(some(f"{i}")), p, Amount(0), False) for i, p in enumerate(powers))

    equal = [proposer(made(5, 5, 5, 5), Height(1), r) for r in range(8)]
    assert len(set(equal[:4])) == 4
    assert equal[:4] == equal[4:]
    uneven = [proposer(made(3, 1), Height(1), r) for r in range(400)]
    assert uneven.count(some("0")) == 300  # type: ignore[arg-type]
    huge = made(10**9, 10**9 + 1, 1)
    assert {proposer(huge, Height(h), 0) for h in range(5000)} == {v.node_id for v in huge}


def test_a_nodes_own_failure_blames_nobody_and_does_not_halt_the_height() -> None:
    """Before, ``requester_fault`` was signed after audit_ms. Now nothing, and ``unavailable`` after as long again."""
    bench, blocks = at_work()
    claim = of(bench.do(Start()), AuditClaim)[0].claim
    commitment = commitment_of(claim)
    bench.do(BlockAvailable(blocks[0]))
    bench.do(BodyHeld(commitment))
    assert bench.do(AuditFailed(commitment)) == []
    actions = bench.timeout(TimerKind.AUDIT, 0)
    assert of(actions, Broadcast) == []
    assert [a.timer.kind for a in of(actions, SetTimer)] == [TimerKind.AUDIT]
    assert bench.machine.work.own_kinds(commitment) == frozenset()
    assert len(of(bench.timeout(TimerKind.AUDIT, 0), Broadcast)) == 1
    assert bench.machine.work.own_kinds(commitment) == {VerdictKind.UNAVAILABLE}


def test_evidence_of_two_answers_is_a_verdict_only_before_the_own_one() -> None:
    bench, blocks = at_work()
    commitment = commitment_of(of(bench.do(Start()), AuditClaim)[0].claim)
    bench.do(BlockAvailable(blocks[0]))
    guilty = AuditDone(commitment, VerdictKind.REQUESTER_FAULT, Correct(0), "two answers", None)
    assert len(of(bench.do(guilty), Broadcast)) == 1
    assert bench.do(AuditDone(commitment, VerdictKind.VALID, Correct(950), "", some("z"))) == []
    assert bench.machine.work.own_kinds(commitment) == {VerdictKind.REQUESTER_FAULT}
    bench, blocks = at_work()
    bench.do(Start())
    bench.do(BlockAvailable(blocks[0]))
    bench.do(AuditDone(commitment, VerdictKind.VALID, Correct(950), "", some("z")))
    assert bench.do(guilty) == []
    assert bench.machine.work.own_kinds(commitment) == {VerdictKind.VALID}


def test_of_two_instants_to_look_again_at_neither_is_lost() -> None:
    out, now, due = Outbox(125), Milliseconds(10_000), Timer(TimerKind.DUE, 0)
    for at in (now + 500, now + 200, now + 500):
        out.wake(at, now)

    def timers(at: int) -> list[int]:
        out.woke(Milliseconds(at))
        return [a.delay_ms for a in out.take() if isinstance(a, SetTimer) and a.timer == due]

    assert timers(now)[:2] == [500, 200]
    assert timers(now + 200) == [300]
    assert timers(now + 500) == []
