"""Who votes: joining, leaving, and being expelled (docs/adr/0074).

A change in the block of height h takes effect at height h + 2: the header of h + 1, which the old validators sign, commits
to the new ones. Joining and leaving need the signatures of 2/3 of the power, and one change is under way at a time;
evidence of equivocation needs nobody's consent.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from core.chain.block import MAX_VALIDATORS
from core.chain.ledger import burn, credit, debit
from core.chain.state import Membership, State, Validator, ValidatorSet, height_key
from core.chain.transaction import (
    DOMAIN_APPROVAL,
    Approval,
    JoinValidator,
    LeaveValidator,
    Refusal,
    ScheduleUpgrade,
    Transaction,
    approval_message,
)
from core.chain.verify import is_quorum, powers
from core.crypto import signing
from core.crypto.hashing import digest
from core.errors import ConfigError, CryptoError, TransactionError
from core.ids import Amount, Height, Milliseconds, NodeId, short
from core.params import ChainParams

__all__ = [
    "DOMAIN_EVIDENCE", "check_approvals", "check_newcomer", "expel", "is_changing", "is_punished", "join", "leave",
    "punishable", "release_bonds", "rotate",
]  # fmt: skip

DOMAIN_EVIDENCE: Final = b"pofl/evidence/1"


def join(state: State, tx: Transaction, payload: JoinValidator, height: Height) -> State:
    """JoinValidator: the sender locks a bond and votes from ``height + 2`` on. Raises TransactionError."""
    name, node = short(payload.validator), payload.validator
    if bytes(node) != tx.sender or payload.nonce != tx.nonce:
        raise TransactionError(
            f"validator {name} joins by its own transaction of nonce {payload.nonce}; this is {tx.nonce} of {short(tx.sender)}",
            Refusal.OUT_OF_RANGE,
        )  # fmt: skip
    _check_open(state, payload.expires_height, height)
    if is_punished(state, node):
        raise TransactionError(f"validator {name} equivocated: its key is never admitted again", Refusal.BAD_EVIDENCE)
    known = state.memberships.get(node)
    if known is not None:
        until = "" if known.release_ms is None else f", its bond is held until block time {known.release_ms}"
        raise TransactionError(f"{name} {'is a validator' if not until else 'has left' + until}", Refusal.DUPLICATE)
    check_newcomer(state.params, payload, [v.power for v in state.next_validators])
    check_approvals(state, payload)
    state = debit(state, node, payload.bond)
    member = Membership(Height(height + 2), payload.bond, payload.endpoint, None)
    joined = (*state.next_validators, Validator(node, payload.power, payload.bond, False))
    return replace(
        state,
        next_validators=tuple(sorted(joined, key=lambda v: v.node_id)),
        memberships=state.memberships.put(node, member),
    )


def check_newcomer(params: ChainParams, payload: JoinValidator, powers_now: Sequence[int]) -> None:
    """Raises TransactionError unless a chain whose validators have ``powers_now`` has room for one of this power and bond."""
    name, strongest, count = short(payload.validator), max(powers_now), len(powers_now) + 1
    least = params.validator_bond * payload.power
    for ok, problem in (
        (1 <= payload.power <= strongest, f"a power of {payload.power}; the strongest validator has {strongest}"),
        (payload.bond >= least, f"a bond of {payload.bond}; a power of {payload.power} asks {least}"),
        (count <= MAX_VALIDATORS, f"there are {MAX_VALIDATORS} validators, the most there may be"),
    ):
        if not ok:
            raise TransactionError(f"validator {name}: {problem}", Refusal.OUT_OF_RANGE)
    try:
        params.check(count)
    except ConfigError as error:
        raise TransactionError(
            f"the windows of this chain are too short for {count} validators: {error.message}", Refusal.LIMIT
        ) from None


def leave(state: State, payload: LeaveValidator, height: Height, time_ms: Milliseconds) -> State:
    """LeaveValidator: votes no more from ``height + 2`` on; the bond is held for ``unbond_ms``. Raises TransactionError."""
    node = payload.validator
    _check_open(state, payload.expires_height, height)
    known = state.memberships.get(node)
    if known is None or known.release_ms is not None or known.since_height != payload.since_height:
        raise TransactionError(f"{short(node)} is no validator since height {payload.since_height}", Refusal.NOT_A_VALIDATOR)
    if len(state.next_validators) == 1:
        raise TransactionError(f"{short(node)} is the last validator: the chain would end", Refusal.LIMIT)
    check_approvals(state, payload)
    member = replace(known, release_ms=Milliseconds(time_ms + state.params.unbond_ms))
    return replace(
        state, next_validators=_without(state.next_validators, node), memberships=state.memberships.put(node, member)
    )


def expel(state: State, node: NodeId) -> State:
    """Who equivocated loses the bond, also one that has left, and its vote; the last validator stays, without its bond."""
    known = state.memberships.get(node)
    following = _without(state.next_validators, node) or _flagged(state.next_validators, node)
    kept = any(v.node_id == node for v in following)
    if known is not None:
        state = burn(state, known.bond)
        table = state.memberships.put(node, replace(known, bond=Amount(0))) if kept else state.memberships.drop(node)
        state = replace(state, memberships=table)
    return replace(state, validators=_flagged(state.validators, node), next_validators=following)


def release_bonds(state: State, time_ms: Milliseconds) -> State:
    """Gives back the bonds of validators that left long enough ago."""
    for node, member in state.memberships.items():
        if member.release_ms is not None and time_ms >= member.release_ms:
            state = credit(state, node, member.bond)
            state = replace(state, memberships=state.memberships.drop(node))
    return state


def rotate(state: State, parent: State) -> State:
    """At the end of a block: who was next votes now. A set that differs from the one before it is kept by its height."""
    voters = parent.next_validators
    if state.evidence is not parent.evidence:
        voters = tuple(replace(v, bond=Amount(0), has_equivocated=True) if is_punished(state, v.node_id) else v for v in voters)
    sets = state.sets
    if powers(voters) != powers(parent.validators):
        sets = sets.put(height_key(parent.height + 2), ValidatorSet(voters))
    if len(sets) > 1:
        # Certificates of the tip, and verdicts on tasks that are being settled, are checked against older sets.
        needed = min([parent.height + 1, *(h for h in (state.tasks[i].ended_height for i in state.settling) if h is not None)])
        for old, newer in itertools.pairwise(tuple(sets)):
            if newer <= height_key(needed):
                sets = sets.drop(old)
    if voters is state.validators and sets is state.sets:
        return state
    return replace(state, validators=voters, sets=sets)


def check_approvals(state: State, payload: JoinValidator | LeaveValidator | ScheduleUpgrade) -> None:
    """Raises TransactionError unless 2/3 of the power of the block's voters signed the change."""
    known = powers(state.validators)
    signers = [a.validator for a in payload.approvals]
    if any(first >= second for first, second in itertools.pairwise(signers)):
        raise TransactionError("approvals: not in ascending order of validators, each once", Refusal.MALFORMED)
    power = sum(known.get(signer, 0) for signer in signers)
    if not is_quorum(power, state.total_power):
        raise TransactionError(
            f"approvals: a power of {power} of {state.total_power} agrees, 2/3 are needed", Refusal.NOT_APPROVED,
            power=power, total=state.total_power,
        )  # fmt: skip
    message = approval_message(state.chain_id, payload)
    for approval in payload.approvals:
        check_approval(approval, message, known)


def check_approval(approval: Approval, message: bytes, known: Mapping[bytes, int]) -> None:
    """Raises TransactionError unless a validator signed exactly this message."""
    if approval.validator not in known:
        raise TransactionError(f"approvals: {short(approval.validator)} is no validator", Refusal.NOT_APPROVED)
    try:
        signing.verify(approval.validator, DOMAIN_APPROVAL, message, approval.signature)
    except CryptoError as error:
        raise TransactionError(f"approvals: {error.message}", Refusal.NOT_APPROVED) from None


def is_changing(state: State) -> bool:
    """Whether a change of the validators is decided and not yet in effect."""
    return powers(state.validators) != powers(state.next_validators)


def is_punished(state: State, node: bytes) -> bool:
    """Whether equivocation of this validator was proven on the chain."""
    return digest(DOMAIN_EVIDENCE, node) in state.evidence


def punishable(state: State) -> Mapping[bytes, int]:
    """Whose votes and verdicts can be evidence: who votes, will vote, or left and has not got its bond back."""
    return dict.fromkeys((*state.memberships, *(v.node_id for v in state.validators)), 1)


def _check_open(state: State, expires_height: Height, height: Height) -> None:
    if height > expires_height:
        raise TransactionError(f"the change was to be made by height {expires_height}, this is {height}", Refusal.EXPIRED)
    if is_changing(state):
        raise TransactionError(
            f"another change of the validators takes effect by height {height + 1}: hand it in again then", Refusal.TOO_EARLY
        )


def _without(validators: Sequence[Validator], node: bytes) -> tuple[Validator, ...]:
    return tuple(v for v in validators if v.node_id != node)


def _flagged(validators: Sequence[Validator], node: bytes) -> tuple[Validator, ...]:
    return tuple(replace(v, bond=Amount(0), has_equivocated=True) if v.node_id == node else v for v in validators)
