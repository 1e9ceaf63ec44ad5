"""The requester audits the top remaining claim only, and believes nobody but more than a third of the validators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from core.chain.claims import outcome
from core.chain.heard import HeardVerdicts
from core.chain.vote import SignedVerdict, VerdictKind
from core.errors import MalformedError, TurnError, UnavailableError, VoteError
from core.ids import Digest, Height, ModelCommitment, Signature
from node.queries import task_view
from requester.turns import ClaimTurns
from tests.chainkit import Chain, make_verdict, signed_verdict, some

CHAIN = Chain()
TASK = CHAIN.to_work_height(pool0=900, pool1=950, pool2=800)
STATE = CHAIN.state
CLAIMS = STATE.ranking(TASK)
VIEW = task_view(STATE, STATE.tasks[TASK])
HEIGHT = Height(STATE.height + 1)
FIRST, SECOND, THIRD = (e.claim.vm.model_commitment for e in CLAIMS if e.claim is not None)


def verdicts(rank: int, kind: VerdictKind, *validators: str) -> tuple[SignedVerdict, ...]:
    return tuple(signed_verdict(make_verdict(STATE, CLAIMS[rank], v, kind), v) for v in validators)


def turns() -> ClaimTurns:
    return ClaimTurns(STATE.chain_id, STATE.validators)


def check(made: ClaimTurns, commitment: ModelCommitment, higher: Sequence[SignedVerdict] = ()) -> None:
    made.check(HEIGHT, VIEW, commitment, higher)


def test_the_first_claim_needs_no_proof_and_a_lower_one_is_refused() -> None:
    check(turns(), FIRST)
    for commitment in (SECOND, THIRD):
        with pytest.raises(TurnError, match=r"claim 1 of pool \w+ is neither refuted nor skipped"):
            check(turns(), commitment)


def test_verdicts_that_refute_every_higher_claim_open_the_next() -> None:
    made = turns()
    check(made, SECOND, verdicts(0, VerdictKind.POOL_FAULT, "v0", "v1"))
    with pytest.raises(TurnError, match="claim 2"):
        check(made, THIRD)
    skipped = (
        *verdicts(1, VerdictKind.UNAVAILABLE, "v0", "v1"),
        *verdicts(1, VerdictKind.REQUESTER_FAULT, "v2"),
    )
    check(made, THIRD, skipped)
    check(made, FIRST)  # a validator that is late with it is honest


def test_what_one_brings_counts_for_all_and_too_few_are_not_enough() -> None:
    """One validator of four is no third. Defence: the tally, over everything that was brought."""
    made = turns()
    one = verdicts(0, VerdictKind.POOL_FAULT, "v0")
    for _ in range(3):
        with pytest.raises(TurnError):
            check(made, SECOND, one)
    check(made, SECOND, verdicts(0, VerdictKind.POOL_FAULT, "v3"))


def test_who_leaves_verdicts_out_is_answered_by_what_others_brought() -> None:
    """Three said unavailable early, and two of them found the claim valid later. One validator brings the early ones only, to
    have a loser audited. Defence: she keeps all that she was shown."""
    early = verdicts(0, VerdictKind.UNAVAILABLE, "v0", "v1", "v2")
    alone = turns()
    check(alone, SECOND, early)
    warned = turns()
    check(warned, FIRST, verdicts(0, VerdictKind.VALID, "v0", "v1"))
    with pytest.raises(TurnError, match="is adopted"):
        check(warned, SECOND, early)


def test_a_dead_claim_ends_the_search() -> None:
    with pytest.raises(TurnError, match="claim 1 is dead"):
        check(turns(), SECOND, verdicts(0, VerdictKind.REQUESTER_FAULT, "v0", "v1"))


@pytest.mark.parametrize("kind", ["signature", "stranger", "height", "chain", "task", "claim", "bytes"])
def test_a_verdict_that_no_validator_gave_refuses_the_opening(kind: str) -> None:
    good = verdicts(0, VerdictKind.POOL_FAULT, "v0", "v1")
    first = make_verdict(STATE, CLAIMS[0], "v0", VerdictKind.POOL_FAULT)
    bad = {
        "signature": replace(good[0], signature=Signature(bytes(64))),
        "stranger": signed_verdict(make_verdict(STATE, CLAIMS[0], "pool1", VerdictKind.POOL_FAULT), "pool1"),
        "height": signed_verdict(replace(first, height=Height(HEIGHT + 1)), "v0"),
        "chain": signed_verdict(replace(first, chain_id=Digest(bytes(32))), "v0"),
        "task": signed_verdict(replace(first, task_id=some("other task")), "v0"),  # type: ignore[arg-type]
        "claim": signed_verdict(replace(first, model_commitment=ModelCommitment(some("none"))), "v0"),
        "bytes": SignedVerdict(b"\x00" * 40, Signature(bytes(64))),
    }[kind]
    made = turns()
    with pytest.raises(MalformedError):
        check(made, SECOND, (bad, *good))
    with pytest.raises(TurnError):
        check(made, SECOND)  # nothing of it was kept
    check(made, SECOND, good)


def test_one_signer_fills_no_memory() -> None:
    """Any number of verdicts of one kind with other reasons. Defence: one of each kind of a signer on a claim, the first."""
    made = turns()
    base = make_verdict(STATE, CLAIMS[0], "v0", VerdictKind.UNAVAILABLE)
    for number in range(200):
        with pytest.raises(TurnError):
            check(made, SECOND, (signed_verdict(replace(base, reason=f"{number}"), "v0"),))
    assert len(made._places[TASK].heard._verdicts) == 1


def test_more_verdicts_than_count_are_not_read() -> None:
    """Openings before their turn are free: each must be cheap to refuse."""
    one = verdicts(0, VerdictKind.POOL_FAULT, "v0")
    with pytest.raises(MalformedError, match="48 count"):
        check(turns(), SECOND, one * 49)


def test_an_unknown_model_is_not_claimed_here() -> None:
    with pytest.raises(UnavailableError, match="no claim"):
        check(turns(), ModelCommitment(some("nothing")))


def test_tasks_long_past_are_forgotten() -> None:
    made = turns()
    for number in range(20):
        made.check(HEIGHT, replace(VIEW, task_id=some(f"{number}")), FIRST, ())  # type: ignore[arg-type]
    assert len(made._places) == 8


def test_it_agrees_with_the_chains_own_rule() -> None:
    heard = HeardVerdicts(STATE.chain_id, HEIGHT, CLAIMS, STATE.validators)
    told = verdicts(0, VerdictKind.POOL_FAULT, "v0", "v1")
    heard.hear(told)
    made = (make_verdict(STATE, CLAIMS[0], v, VerdictKind.POOL_FAULT) for v in ("v0", "v1"))
    assert heard.found == outcome(STATE, made)
    assert [heard.has_had_its_turn(c) for c in (FIRST, SECOND, THIRD)] == [True, True, False]
    with pytest.raises(VoteError):
        heard.rank(ModelCommitment(some("none")))
