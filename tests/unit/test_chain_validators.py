"""Who votes, height by height: joining, leaving, being expelled, and what may not happen on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.chain import build, rules
from core.chain.state import decode_state, encode_state, state_root
from core.chain.transaction import (
    Approval,
    Equivocation,
    JoinValidator,
    LeaveValidator,
    Payload,
    Refusal,
    Transfer,
    VerdictEquivocation,
    Verdicts,
)
from core.chain.vote import Step, VerdictKind, Vote
from core.codec import encode
from core.errors import BlockError
from core.ids import Amount, BlockHash, Height, Milliseconds, NodeId
from tests.chainkit import FUNDS, Chain, account, key, make_certificate, make_genesis, make_verdict, signed_verdict, some

BOND = 1_000_000
ROOM = replace(make_genesis().params, audit_ms=12_000)
"""Windows for up to six validators."""
THREE = ("v0", "v1", "v2")


def node(name: str) -> NodeId:
    return NodeId(account(name))


def started(validators: int = 4) -> Chain:
    chain = Chain(make_genesis(validators, ROOM))
    chain.block()
    return chain


def joining(chain: Chain, name: str = "pool0", *signers: str, **changes: object) -> JoinValidator:
    plain = JoinValidator(
        node(name), 1, Amount(BOND), "a:1", chain.state.account(account(name)).nonce, Height(chain.state.height + 9), ()
    )
    return chain.approved(replace(plain, **changes), *signers)  # type: ignore[arg-type]


def leaving(chain: Chain, name: str, *signers: str, **changes: object) -> LeaveValidator:
    member = chain.state.memberships.get(account(name))
    since = Height(1) if member is None else member.since_height
    plain = LeaveValidator(node(name), since, "tired", Height(chain.state.height + 9), ())
    return chain.approved(replace(plain, **changes), *signers)  # type: ignore[arg-type]


def members(chain: Chain) -> set[str]:
    return {chain.name_of(v.node_id) for v in chain.state.validators}


def double_vote(chain: Chain, name: str, height: int) -> Equivocation:
    votes = (
        Vote(chain.state.chain_id, Height(height), 0, Step.PREVOTE, BlockHash(some(x)), Milliseconds(0), node(name))
        for x in ("a", "b")
    )
    first, second = (build.make_vote(key(name), v) for v in votes)
    return Equivocation(first, second)


def test_a_validator_joins_two_heights_later_and_its_vote_counts() -> None:
    chain = started()
    chain.block(chain.tx("pool0", joining(chain, "pool0", *THREE)))
    height = chain.state.height
    assert chain.state.account(account("pool0")).balance == FUNDS - BOND - 1
    assert members(chain) == {"v0", "v1", "v2", "v3"}  # who votes at height + 1
    chain.block()
    assert members(chain) == {"v0", "v1", "v2", "v3", "pool0"}  # at height + 2
    assert chain.state.memberships[account("pool0")].since_height == height + 2
    assert chain.voters == [chain.name_of(v.node_id) for v in chain.state.validators_at(height + 1)]
    assert "pool0" not in chain.voters  # the certificate of height + 1 is the old validators'
    chain.block(author="pool0")
    assert "pool0" in chain.voters
    assert chain.state.total_power == 5
    again = decode_state(encode_state(chain.state), chain.genesis)
    assert again == chain.state
    assert state_root(again) == state_root(chain.state)


def test_a_certificate_counts_for_the_validators_of_its_own_height() -> None:
    """Three of the old four are enough for the last old height, and not for the first new one of five."""
    chain = started()
    chain.block(chain.tx("pool0", joining(chain, "pool0", *THREE)))
    chain.block()
    chain.clock += 1000
    good = make_certificate(chain.state, chain.clock, list(THREE))
    block = build.build_transaction_block(chain.state, key("v0"), good, []).block
    early = make_certificate(chain.state, chain.clock, ["pool0", "v0", "v1", "v2"])
    with pytest.raises(BlockError, match="is no validator of that height"):
        rules.apply_block(chain.state, replace(block, body=encode(replace(block.decoded_body(), parent_certificate=early))))
    chain.apply(block)
    chain.clock += 1000
    few = make_certificate(chain.state, chain.clock, list(THREE))
    with pytest.raises(BlockError, match="power 3 of 5"):
        rules.apply_block(chain.state, build.build_transaction_block(chain.state, key("v0"), few, []).block)


def test_a_validator_leaves_and_gets_its_bond_when_evidence_is_too_late() -> None:
    chain = started()
    chain.block(chain.tx("pool0", joining(chain, "pool0", *THREE)))
    chain.block()
    chain.block()
    chain.block(chain.tx("other", leaving(chain, "pool0", *THREE, "v3")))
    left = chain.state
    chain.block()
    assert members(chain) == {"v0", "v1", "v2", "v3"}
    until = left.memberships[account("pool0")].release_ms
    assert until == left.tip.timestamp_ms + ROOM.unbond_ms
    assert chain.refused(chain.tx("pool0", joining(chain, "pool0", *THREE))) == Refusal.DUPLICATE
    chain.until(until - 1)
    assert chain.state.memberships[account("pool0")].bond == BOND
    chain.until(until)
    assert account("pool0") not in chain.state.memberships
    assert chain.state.account(account("pool0")).balance == FUNDS - 1
    assert len(chain.state.sets) == 1  # older ones are asked for by no rule any more


def test_evidence_expels_without_anybodys_consent_and_for_ever() -> None:
    chain = started()
    chain.block(chain.tx("pool0", joining(chain, "pool0", *THREE)))
    chain.block()
    chain.block()
    before = chain.state.burned
    chain.block(chain.tx("other", double_vote(chain, "pool0", 3), fee=0))
    assert chain.state.burned == before + BOND
    assert members(chain) == {"v0", "v1", "v2", "v3", "pool0"}
    assert next(v for v in chain.state.validators if v.node_id == node("pool0")).has_equivocated
    assert chain.refused(chain.tx("other", double_vote(chain, "pool0", 2), fee=0)) == Refusal.DUPLICATE
    chain.block()
    assert members(chain) == {"v0", "v1", "v2", "v3"}
    assert chain.refused(chain.tx("other", double_vote(chain, "pool0", 2), fee=0)) == Refusal.BAD_EVIDENCE
    assert chain.refused(chain.tx("pool0", joining(chain, "pool0", *THREE))) == Refusal.BAD_EVIDENCE


def test_who_has_left_still_loses_the_bond() -> None:
    chain = started()
    chain.block(chain.tx("pool0", joining(chain, "pool0", *THREE)))
    for _ in range(2):
        chain.block()
    chain.block(chain.tx("other", leaving(chain, "pool0", *THREE, "v3")))
    for _ in range(3):
        chain.block()
    before = chain.state.burned
    chain.block(chain.tx("other", double_vote(chain, "pool0", 4), fee=0))
    assert chain.state.burned == before + BOND
    assert account("pool0") not in chain.state.memberships
    stranger = double_vote(chain, "pool1", 4)
    assert chain.refused(chain.tx("other", stranger, fee=0)) == Refusal.BAD_EVIDENCE


def test_the_set_is_never_empty() -> None:
    chain = started(1)
    assert chain.refused(chain.tx("other", leaving(chain, "v0", "v0"))) == Refusal.LIMIT
    chain.block(chain.tx("other", double_vote(chain, "v0", 1), fee=0))
    chain.block()
    assert members(chain) == {"v0"}
    assert chain.state.validators[0].has_equivocated


def test_one_change_at_a_time() -> None:
    """Two approved changes in one block could replace more of the set than a third."""
    chain = started()
    first, second = joining(chain, "pool0", *THREE), joining(chain, "pool1", *THREE)
    built = build.build_transaction_block(
        chain.state, key("v0"), chain.certificate(), [chain.tx("pool0", first), chain.tx("pool1", second)]
    )
    assert [d.error.reason for d in built.dropped] == [Refusal.TOO_EARLY]
    chain.apply(built.block)
    assert chain.refused(chain.tx("pool1", second)) == Refusal.TOO_EARLY
    chain.block()
    # Now five vote, and three signatures are not 2/3 any more.
    assert chain.refused(chain.tx("pool1", second)) == Refusal.NOT_APPROVED
    chain.block(chain.tx("pool1", chain.approved(second, *THREE, "pool0")))
    chain.block()
    assert len(members(chain)) == 6
    full = joining(chain, "pool2", *THREE, "pool0", "pool1")
    assert chain.refused(chain.tx("pool2", full)) == Refusal.LIMIT  # the windows are too short for seven


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bond": Amount(BOND - 1)}, Refusal.OUT_OF_RANGE),
        ({"bond": Amount(-1)}, Refusal.OUT_OF_RANGE),
        ({"power": 0}, Refusal.OUT_OF_RANGE),
        ({"power": 2, "bond": Amount(2 * BOND)}, Refusal.OUT_OF_RANGE),
        ({"bond": Amount(FUNDS + 1)}, Refusal.INSUFFICIENT_FUNDS),
        ({"expires_height": Height(1)}, Refusal.EXPIRED),
        ({"nonce": 7}, Refusal.OUT_OF_RANGE),
        ({"validator": node("pool1")}, Refusal.OUT_OF_RANGE),
    ],
)
def test_joinings_that_may_not_be(changes: dict[str, object], reason: Refusal) -> None:
    chain = started()
    assert chain.refused(chain.tx("pool0", joining(chain, "pool0", *THREE, **changes))) == reason


def test_approvals_that_approve_nothing() -> None:
    chain = started()
    good = joining(chain, "pool0", *THREE)
    approvals = good.approvals
    forged = (Approval(approvals[0].validator, approvals[1].signature), *approvals[1:])
    tries: list[tuple[Payload, str]] = [
        (joining(chain, "pool0"), Refusal.NOT_APPROVED),
        (joining(chain, "pool0", "v0", "v1"), Refusal.NOT_APPROVED),
        (joining(chain, "pool0", "v0", "v1", "pool0", "pool1"), Refusal.NOT_APPROVED),
        (joining(chain, "pool0", *THREE, "pool1"), Refusal.NOT_APPROVED),
        (replace(good, bond=Amount(BOND + 1)), Refusal.NOT_APPROVED),
        (replace(good, endpoint="b:1"), Refusal.NOT_APPROVED),
        (replace(good, approvals=forged), Refusal.NOT_APPROVED),
        (replace(good, approvals=tuple(reversed(approvals))), Refusal.MALFORMED),
        (replace(good, approvals=(approvals[0],) * 3), Refusal.MALFORMED),
        (leaving(chain, "v3", "v0", "v1"), Refusal.NOT_APPROVED),
        (leaving(chain, "pool0", *THREE), Refusal.NOT_A_VALIDATOR),
        (leaving(chain, "v3", *THREE, since_height=Height(2)), Refusal.NOT_A_VALIDATOR),
    ]
    for payload, reason in tries:
        assert chain.refused(chain.tx("pool0", payload)) == reason, payload
    elsewhere = Chain(make_genesis(4, replace(ROOM, tick_ms=700)))
    foreign = elsewhere.approved(joining(chain, "pool0"), *THREE)
    assert chain.refused(chain.tx("pool0", foreign)) == Refusal.NOT_APPROVED


def test_an_approval_serves_once() -> None:
    chain = started()
    join = joining(chain, "pool0", *THREE, expires_height=Height(10**6))
    chain.block(chain.tx("pool0", join))
    chain.block()
    leave = leaving(chain, "pool0", *THREE, "v3", expires_height=Height(10**6))
    chain.block(chain.tx("other", leave))
    until = chain.state.memberships[account("pool0")].release_ms
    assert until is not None
    chain.block()
    chain.until(until)
    assert chain.refused(chain.tx("pool0", join)) == Refusal.OUT_OF_RANGE
    chain.block(chain.tx("pool0", joining(chain, "pool0", *THREE)))
    chain.block()
    assert chain.refused(chain.tx("other", leave)) == Refusal.NOT_A_VALIDATOR


def test_verdicts_are_counted_by_the_validators_of_the_work_height() -> None:
    """One joins in the block before the work height: it votes at the height after, where auditors are paid."""
    chain = Chain(make_genesis(4, ROOM))
    task = chain.publish()
    models = {"pool1": "model of pool1"}
    chain.enter(task, "pool1")
    chain.commit(task, **models)
    chain.claim(task, models, pool1=900)
    # The claim-closing block is behind; a change can only be in it. Build the same again with the change in it.
    work = chain.state
    assert rules.is_work_height(work)
    entry = (work.work_claims() or ())[0]
    found = tuple(signed_verdict(make_verdict(work, entry, v, VerdictKind.VALID), v) for v in ("v0", "v1", "v2", "v3"))
    changed = (*work.next_validators, replace(work.next_validators[0], node_id=node("pool0")))
    chain.state = replace(work, next_validators=tuple(sorted(changed, key=lambda v: v.node_id)))
    chain.apply(chain.work_block("pool1"))
    assert len(chain.state.validators) == 5
    pot = chain.state.pot
    assert pot is not None
    before = chain.state.account(account("v3")).balance
    chain.block(chain.tx("v0", Verdicts(pot.height, some(b"z".hex()), found), fee=0))
    assert chain.state.account(account("v3")).balance == before + pot.amount // 4
    outsider = signed_verdict(make_verdict(work, entry, "pool0", VerdictKind.POOL_FAULT), "pool0")
    words = Verdicts(pot.height, some("z"), (outsider,))
    assert chain.refused(chain.tx("v0", words, fee=0)) == Refusal.BAD_EVIDENCE


def test_verdict_equivocation_expels_too() -> None:
    chain = Chain(make_genesis(4, ROOM))
    chain.to_work_height(pool0=900)
    entry = (chain.state.work_claims() or ())[0]
    kinds = (VerdictKind.VALID, VerdictKind.POOL_FAULT)
    first, second = (signed_verdict(make_verdict(chain.state, entry, "v3", kind), "v3") for kind in kinds)
    chain.apply(chain.work_block("pool0"))
    chain.block(chain.tx("other", VerdictEquivocation(first, second), fee=0))
    chain.block()
    assert members(chain) == {"v0", "v1", "v2"}
    chain.block(chain.tx("other", Transfer(account("x"), Amount(1))))
