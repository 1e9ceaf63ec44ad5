"""The exact edges of the rules that validators count by: thresholds, tallies, outcomes, what a verdict may say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from core.chain import build
from core.chain.block import CommitSignature, OutcomeKind
from core.chain.claims import Adopted, ClaimStatus, Undecided, Void, check_verdict_claim, outcome_of, tally
from core.chain.state import Entry, Validator
from core.chain.verify import (
    block_time,
    check_ahead,
    check_certificate,
    check_vote,
    is_quorum,
    is_third,
    is_within_reach,
    powers,
)
from core.chain.vote import Step, Verdict, VerdictKind, Vote
from core.chain.work_height import WorkHeight, commitment_of
from core.errors import BlockError, VoteError
from core.ids import Correct, Digest, Height, Milliseconds, NodeId
from tests.chainkit import Chain, account, key, make_certificate, make_verdict, signed_verdict, some

VALID, FAULT = VerdictKind.VALID, VerdictKind.POOL_FAULT
GONE, DEAD = VerdictKind.UNAVAILABLE, VerdictKind.REQUESTER_FAULT


def test_a_quorum_is_two_thirds_and_a_third_is_more_than_one() -> None:
    assert [p for p in range(10) if is_quorum(p, 9)] == [6, 7, 8, 9]
    assert [p for p in range(11) if is_quorum(p, 10)] == [7, 8, 9, 10]
    assert [p for p in range(10) if is_third(p, 9)] == [4, 5, 6, 7, 8, 9]
    assert [p for p in range(11) if is_third(p, 10)] == [4, 5, 6, 7, 8, 9, 10]
    # Any two quorums share more than any third that may be dishonest, f < total / 3.
    for total in range(1, 40):
        quorum = next(p for p in range(total + 1) if is_quorum(p, total))
        assert 2 * quorum - total > (total - 1) // 3


def work() -> tuple[Chain, tuple[Entry, ...]]:
    chain = Chain()
    chain.to_work_height(pool0=900, pool1=950)
    ranked = chain.state.work_claims()
    assert ranked is not None
    return chain, ranked


def status(chain: Chain, entry: Entry, *said: tuple[str, VerdictKind], voters: Sequence[Validator] = ()) -> ClaimStatus:
    verdicts = [make_verdict(chain.state, entry, who, kind) for who, kind in said]
    found = tally(verdicts, voters or chain.state.validators).get(commitment_of(entry))
    return ClaimStatus.UNDECIDED if found is None else found.status


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ([("v0", VALID)], ClaimStatus.UNDECIDED),
        ([("v0", VALID), ("v1", VALID)], ClaimStatus.ADOPTED),
        ([("v0", VALID), ("v0", VALID), ("v1", GONE)], ClaimStatus.UNDECIDED),
        ([("v0", FAULT), ("v1", FAULT)], ClaimStatus.REFUTED),
        ([("v0", VALID), ("v1", VALID), ("v2", FAULT), ("v3", FAULT)], ClaimStatus.ADOPTED),
        ([("v0", FAULT), ("v1", FAULT), ("v2", DEAD), ("v3", DEAD)], ClaimStatus.REFUTED),
        ([("v0", DEAD), ("v1", DEAD)], ClaimStatus.DEAD),
        ([("v0", GONE), ("v1", GONE)], ClaimStatus.UNDECIDED),
        ([("v0", GONE), ("v1", GONE), ("v2", GONE)], ClaimStatus.SKIPPED),
        ([("v0", VALID), ("v1", FAULT), ("v2", DEAD)], ClaimStatus.SKIPPED),
        # One signer of all kinds, and one of one kind: two validators, not five.
        ([("v0", GONE), ("v0", DEAD), ("v0", FAULT), ("v0", VALID), ("v1", GONE)], ClaimStatus.UNDECIDED),
        ([("other", VALID), ("pool0", VALID), ("pool1", VALID)], ClaimStatus.UNDECIDED),
    ],
)
def test_what_verdicts_make_of_a_claim(said: list[tuple[str, VerdictKind]], wanted: ClaimStatus) -> None:
    chain, ranked = work()
    assert status(chain, ranked[0], *said) is wanted


def test_verdicts_count_by_power() -> None:
    chain, ranked = work()
    heavy = [replace(v, power=4 if v.node_id == key("v0").public_key else 1) for v in chain.state.validators]
    assert status(chain, ranked[0], ("v0", FAULT), voters=heavy) is ClaimStatus.REFUTED
    assert status(chain, ranked[0], ("v1", FAULT), ("v2", FAULT), voters=heavy) is ClaimStatus.UNDECIDED
    even = [replace(v, power=2) for v in chain.state.validators[:3]]
    names = [n for n in chain.names if key(n).public_key in {v.node_id for v in even}]
    assert status(chain, ranked[0], (names[0], VALID), voters=even) is ClaimStatus.UNDECIDED
    assert status(chain, ranked[0], (names[0], GONE), (names[1], GONE), voters=even) is ClaimStatus.SKIPPED


def test_the_search_ends_at_the_first_claim_that_is_adopted_dead_or_undecided() -> None:
    chain, ranked = work()

    def ends(first: VerdictKind | None, second: VerdictKind | None) -> object:
        said = [make_verdict(chain.state, e, v, k) for e, k in zip(ranked, (first, second), strict=True) if k is not None
                for v in ("v0", "v1", "v2")]  # fmt: skip
        found = outcome_of(ranked, tally(said, chain.state.validators))
        if isinstance(found, Void):
            return [o.kind for o in found.outcomes]
        return type(found), found.index, [o.kind for o in found.above] if isinstance(found, Adopted) else None

    assert ends(VALID, VALID) == (Adopted, 0, [])
    assert ends(FAULT, VALID) == (Adopted, 1, [OutcomeKind.REFUTED])
    assert ends(GONE, VALID) == (Adopted, 1, [OutcomeKind.SKIPPED])
    assert ends(DEAD, VALID) == [OutcomeKind.DEAD]
    assert ends(None, VALID) == (Undecided, 0, None)
    assert ends(GONE, FAULT) == [OutcomeKind.SKIPPED, OutcomeKind.REFUTED]
    assert ends(FAULT, None) == (Undecided, 1, None)


def test_what_a_verdict_may_say_of_its_claim() -> None:
    chain, ranked = work()
    entry, state = ranked[0], chain.state

    def refused(verdict: Verdict, match: str) -> None:
        with pytest.raises(VoteError, match=match):
            check_verdict_claim(verdict, entry.task_id, ranked)

    valid = make_verdict(state, entry, "v0", VALID)
    assert check_verdict_claim(valid, entry.task_id, ranked) is entry
    refused(replace(valid, correct=Correct(949)), "claim of 950 says 949")
    refused(replace(valid, tag=Digest(bytes(32))), "carries no tag")
    for kind in (GONE, DEAD):
        refused(replace(make_verdict(state, entry, "v0", kind), tag=some("t")), "though no audit passed")
    refused(replace(valid, pool=account("pool0")), "no claim at this height")
    refused(replace(valid, model_commitment=commitment_of(ranked[1])), "no claim at this height")


def test_a_block_is_justified_by_its_own_winner_and_outcomes_and_by_no_other() -> None:
    chain, ranked = work()
    first, second = (chain.work_block(p, after_ms=0).header.decoded() for p in ("pool1", "pool0"))
    state = chain.state

    def said(*kinds: VerdictKind) -> list[Verdict]:
        return [make_verdict(state, e, v, k) for e, k in zip(ranked, kinds, strict=False) for v in ("v0", "v1", "v2")]

    book = WorkHeight(state, NodeId(key("v3").public_key))
    assert book.is_justified(first, said(VALID))
    assert not book.is_justified(second, said(VALID))
    assert book.is_justified(second, said(FAULT, VALID))
    assert not book.is_justified(first, said(FAULT, VALID))
    assert not book.is_justified(first)
    certificate = chain.certificate()
    assert certificate is not None
    ends = outcome_of(ranked, tally(said(FAULT, GONE), state.validators))
    assert isinstance(ends, Void)
    void = build.build_void_block(state, key("v0"), certificate, ends.outcomes).header.decoded()
    assert book.is_justified(void, said(FAULT, GONE))
    assert not book.is_justified(void, said(GONE, FAULT))
    assert not book.is_justified(void, said(FAULT, VALID))


def test_what_is_preferred_follows_the_verdicts_here() -> None:
    chain, ranked = work()
    state, me = chain.state, NodeId(key("v3").public_key)
    lower = chain.work_block("pool0", after_ms=0).header.decoded()
    certificate = chain.certificate()
    assert certificate is not None

    def book(*said: tuple[int, VerdictKind]) -> WorkHeight:
        made = WorkHeight(state, me)
        for index, kind in said:
            for who in ("v0", "v1", "v2"):
                verdict = make_verdict(state, ranked[index], who, kind)
                made.add(verdict, signed_verdict(verdict, who))
        return made

    now = Milliseconds(chain.clock)
    assert book((0, FAULT), (1, VALID)).is_preferred(lower, now, 100)
    assert not book((0, VALID), (1, VALID)).is_preferred(lower, now, 100)
    assert not book((0, DEAD), (1, VALID)).is_preferred(lower, now, 100)
    skipping = book((0, GONE), (1, VALID))
    assert skipping.is_preferred(lower, now, 100)
    skipping.note_given(commitment_of(ranked[0]), now)
    assert not skipping.is_preferred(lower, Milliseconds(now + 99), 100)
    assert not skipping.is_ripe(Milliseconds(now + 99), 100)
    assert skipping.is_preferred(lower, Milliseconds(now + 100), 100)
    assert skipping.is_ripe(Milliseconds(now + 100), 100)
    ends = outcome_of(ranked, book((0, FAULT), (1, FAULT)).tallies)
    assert isinstance(ends, Void)
    void = build.build_void_block(state, key("v0"), certificate, ends.outcomes).header.decoded()
    assert book((0, FAULT), (1, FAULT)).is_preferred(void, now, 100)
    assert not book((0, FAULT), (1, GONE)).is_preferred(void, now, 100)
    assert not book((0, FAULT), (1, VALID)).is_preferred(void, now, 100)
    assert not book().is_preferred(void, now, 100)


def test_certificates_sign_their_round_and_their_step() -> None:
    chain = Chain()
    chain.block()
    state, voters = chain.state, chain.state.validators
    good = make_certificate(state, chain.clock, chain.names)
    check_certificate(good, state.chain_id, voters)
    for wrong in (replace(good, round=good.round + 1), replace(good, height=Height(good.height + 1))):
        with pytest.raises(BlockError, match="does not verify"):
            check_certificate(wrong, state.chain_id, voters)
    with pytest.raises(BlockError, match="does not verify"):
        check_certificate(good, some("another chain"), voters)

    prevotes = []
    for name in sorted(chain.names, key=lambda n: key(n).public_key):
        node = NodeId(key(name).public_key)
        vote = Vote(state.chain_id, state.height, 0, Step.PREVOTE, state.tip.block_hash, Milliseconds(0), node)
        prevotes.append(CommitSignature(node, Milliseconds(0), build.make_vote(key(name), vote).signature))
    with pytest.raises(BlockError, match="does not verify"):
        check_certificate(replace(good, signatures=tuple(prevotes)), state.chain_id, voters)


def test_a_certificate_that_was_good_is_not_taken_for_good_elsewhere() -> None:
    chain = Chain()
    chain.block()
    state, voters = chain.state, chain.state.validators
    good = make_certificate(state, chain.clock, chain.names)
    for _ in range(2):
        check_certificate(good, state.chain_id, voters)
    with pytest.raises(BlockError, match="does not verify"):
        check_certificate(good, some("another chain"), voters)
    with pytest.raises(BlockError, match="is no validator of that height"):
        check_certificate(good, state.chain_id, voters[1:])
    heavier = tuple(replace(v, power=100 if v is voters[0] else 1) for v in voters)
    without = replace(good, signatures=tuple(s for s in good.signatures if s.validator != voters[0].node_id))
    check_certificate(good, state.chain_id, heavier)
    with pytest.raises(BlockError, match="2/3 are needed"):
        check_certificate(without, state.chain_id, heavier)


def test_what_was_looked_at_ahead_is_checked_in_its_turn() -> None:
    chain = Chain()
    chain.block()
    state, voters = chain.state, chain.state.validators
    good = make_certificate(state, chain.clock, chain.names)
    first, second, *others = good.signatures
    swapped = replace(first, signature=second.signature), replace(second, signature=first.signature)
    for wrong in (
        replace(good, signatures=(*swapped, *others)),
        replace(good, round=good.round + 1),
        replace(good, signatures=(replace(first, time_ms=Milliseconds(first.time_ms + 1)), second, *others)),
    ):
        check_ahead(wrong, state.chain_id, voters)
        with pytest.raises(BlockError, match="does not verify"):
            check_certificate(wrong, state.chain_id, voters)
    thin = replace(good, signatures=good.signatures[:1] * 3)
    check_ahead(thin, state.chain_id, voters)
    with pytest.raises(BlockError, match="not in ascending order"):
        check_certificate(thin, state.chain_id, voters)
    check_ahead(good, state.chain_id, voters)
    check_certificate(good, state.chain_id, voters)


def test_who_is_named_twice_in_a_later_certificate_counts_once() -> None:
    chain = Chain()
    chain.block()
    good = make_certificate(chain.state, chain.clock, chain.names)
    assert is_within_reach(good, chain.state.validators)
    assert not is_within_reach(replace(good, signatures=good.signatures[:1] * 3), chain.state.validators)
    assert not is_within_reach(replace(good, signatures=good.signatures[:2]), chain.state.validators)


def test_block_time_always_goes_on() -> None:
    chain = Chain()
    chain.block()
    certificate = make_certificate(chain.state, chain.clock, chain.names)
    late = Milliseconds(chain.clock + 5_000)
    assert block_time(Height(1), late, certificate, chain.state.validators) == late + 1


def test_a_prevote_carries_no_time() -> None:
    chain = Chain()
    chain.block()
    state, node = chain.state, NodeId(key("v1").public_key)
    vote = Vote(state.chain_id, Height(2), 0, Step.PREVOTE, state.tip.block_hash, Milliseconds(1), node)
    with pytest.raises(VoteError, match="carries no time"):
        check_vote(build.make_vote(key("v1"), vote), state.chain_id, Height(2), powers(state.validators))
