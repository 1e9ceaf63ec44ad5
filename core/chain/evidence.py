"""Faults proven by signatures, and the verdicts of a decided work height (design: consensus, "State and transactions").

Each is valid on the signatures it carries alone, and is applied once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from core.chain import rules_validators
from core.chain.block import BlockKind
from core.chain.claims import ClaimStatus, check_verdict_claim, tag, tally
from core.chain.ledger import burn, credit
from core.chain.rules_tasks import burn_bond
from core.chain.rules_validators import DOMAIN_EVIDENCE, is_punished, punishable
from core.chain.state import Evidence, Pot, Standing, State, Task, Validator
from core.chain.transaction import Equivocation, PoolFault, Refusal, VerdictEquivocation, Verdicts
from core.chain.verify import check_header_signature, check_verdict, check_vote, powers
from core.chain.vote import SignedVerdict, Verdict, VerdictKind, Vote
from core.codec import decode
from core.crypto.hashing import digest
from core.errors import ChainError, InputError, TransactionError
from core.ids import Digest, Height, NodeId, short

__all__ = ["close_pot", "equivocation", "is_equivocation", "pool_fault", "verdict_equivocation", "verdicts"]


def pool_fault(state: State, payload: PoolFault) -> State:
    """PoolFault: two work headers of one pool on one parent burn what is locked of its bond. Raises TransactionError."""
    try:
        first, second = check_header_signature(payload.first), check_header_signature(payload.second)
    except ChainError as error:
        raise TransactionError(f"pool fault: {error.message}", Refusal.BAD_EVIDENCE) from None
    for ok, problem in (
        (payload.first.block_hash != payload.second.block_hash, "the two headers are one"),
        (first.author_id == second.author_id, "the headers have different authors"),
        (first.prev_hash == second.prev_hash, "the headers have different parents"),
        (first.kind is BlockKind.WORK and second.kind is BlockKind.WORK, "they are not both work headers"),
        (first.task_id is not None and first.task_id == second.task_id, "they are for no task, or for different ones"),
        (first.chain_id == second.chain_id == state.chain_id, "they are of another chain"),
    ):
        if not ok:
            raise TransactionError(f"pool fault: {problem}", Refusal.BAD_EVIDENCE)
    assert first.task_id is not None
    entry = state.entry(first.task_id, first.author_id)
    if entry is None or not entry.held:
        raise TransactionError(
            f"pool fault: {short(first.author_id)} has no bond locked in task {short(first.task_id)}", Refusal.DUPLICATE
        )
    return burn_bond(state, entry, Standing.FAULTY)


def is_equivocation(first: Vote, second: Vote) -> bool:
    """Whether no honest validator signs both: same place, other content. (A restarted one sends the same bytes.)"""
    place = (first.validator, first.chain_id, first.height, first.round, first.step)
    return place == (second.validator, second.chain_id, second.height, second.round, second.step) and first != second


def equivocation(state: State, payload: Equivocation, height: Height) -> State:
    """Equivocation by votes: the validator's bond burns, its tags are no longer paid. Raises TransactionError."""
    try:
        at = decode(Vote, payload.first.vote, 512).height
        known = punishable(state)
        first, second = (check_vote(s, state.chain_id, at, known) for s in (payload.first, payload.second))
    except (InputError, ChainError) as error:
        raise TransactionError(f"equivocation: {error.message}", Refusal.BAD_EVIDENCE) from None
    if not is_equivocation(first, second):
        raise TransactionError("equivocation: an honest validator may sign both votes", Refusal.BAD_EVIDENCE)
    return _punish(state, first.validator, height)


def verdict_equivocation(state: State, payload: VerdictEquivocation, height: Height) -> State:
    """Two differing verdicts, neither ``unavailable``, of one signer on one claim. Raises TransactionError."""
    try:
        at = decode(Verdict, payload.first.verdict, 1024).height
        known = punishable(state)
        first, second = (check_verdict(s, state.chain_id, at, known) for s in (payload.first, payload.second))
    except (InputError, ChainError) as error:
        raise TransactionError(f"equivocation: {error.message}", Refusal.BAD_EVIDENCE) from None
    if not is_verdict_equivocation(first, second):
        raise TransactionError("equivocation: an honest validator may sign both verdicts", Refusal.BAD_EVIDENCE)
    return _punish(state, first.validator, height)


def is_verdict_equivocation(first: Verdict, second: Verdict) -> bool:
    place = (first.validator, first.height, first.task_id, first.model_commitment)
    return (
        place == (second.validator, second.height, second.task_id, second.model_commitment)
        and first != second
        and VerdictKind.UNAVAILABLE not in (first.kind, second.kind)
    )


def _punish(state: State, validator: NodeId, height: Height) -> State:
    """A validator is punished once: its whole bond burns, and it does not vote two heights later."""
    if is_punished(state, validator):
        raise TransactionError(f"equivocation: {short(validator)} was punished already", Refusal.DUPLICATE)
    evidence = state.evidence.put(digest(DOMAIN_EVIDENCE, validator), Evidence(height))
    return rules_validators.expel(replace(state, evidence=evidence), validator)


def verdicts(state: State, payload: Verdicts, index: int, height: Height) -> State:
    """Verdicts: pays right tags, if it opens the block after a work block; and burns the bonds of claims it refutes.

    ``z_digest`` is not checked here beyond the tags: validators that audited refuse a block with a wrong one.

    Raises:
        TransactionError: a verdict is not one on a claim of that height, or the transaction would do nothing.
    """
    task = next((t for t in (state.tasks[i] for i in state.settling) if t.ended_height == payload.height), None)
    if task is None:
        raise TransactionError(
            f"verdicts of height {payload.height}: no task that ended there is still being settled", Refusal.EXPIRED
        )
    voters = state.validators_at(payload.height)
    found = _check_verdicts(state, task, payload.verdicts, powers(voters))
    pot = state.pot
    pays = index == 0 and pot is not None and pot.height == payload.height == height - 1
    if pays and pot is not None:
        state = _pay(state, pot, payload.z_digest, found, voters)
    after = _refute(state, task, found, voters)
    if not pays and after is state:
        raise TransactionError(f"verdicts of height {payload.height}: they pay and refute nothing", Refusal.DUPLICATE)
    return after


def _check_verdicts(
    state: State, task: Task, signed: tuple[SignedVerdict, ...], known: Mapping[bytes, int]
) -> tuple[Verdict, ...]:
    claims = state.ranking(task.task_id)
    assert task.ended_height is not None
    found: list[Verdict] = []
    if len(set(signed)) != len(signed):
        # Before the signatures: one verdict, a thousand times, costs its sender nothing.
        raise TransactionError("verdicts: one is listed twice", Refusal.DUPLICATE)
    for item in signed:
        try:
            verdict = check_verdict(item, state.chain_id, task.ended_height, known)
            check_verdict_claim(verdict, task.task_id, claims)
        except ChainError as error:
            raise TransactionError(f"verdicts: {error.message}", Refusal.BAD_EVIDENCE) from None
        found.append(verdict)
    if len(set(found)) != len(found):
        raise TransactionError("verdicts: one is listed twice", Refusal.DUPLICATE)
    return tuple(found)


def _pay(state: State, pot: Pot, z_digest: Digest, found: tuple[Verdict, ...], voters: Sequence[Validator]) -> State:
    """Each right tag gets its signer's share of the pot by power: nobody gains by leaving another's verdict out."""
    total = sum(v.power for v in voters)
    paid = 0
    for validator in voters:
        right = tag(state.chain_id, pot.task_id, pot.model_commitment, z_digest, validator.node_id)
        if not is_punished(state, validator.node_id) and any(
            v.validator == validator.node_id and v.kind is VerdictKind.VALID and v.tag == right for v in found
        ):
            share = pot.amount * validator.power // total
            state, paid = credit(state, validator.node_id, share), paid + share
    return replace(burn(state, pot.amount - paid), pot=None)


def _refute(state: State, task: Task, found: tuple[Verdict, ...], voters: Sequence[Validator]) -> State:
    """Claims above the winner stand as skipped; verdicts of more than 1/3 of the power refute them."""
    tallies = tally(found, voters)
    for entry in state.ranking(task.task_id):
        known = None if entry.claim is None else tallies.get(entry.claim.vm.model_commitment)
        if entry.standing is Standing.SKIPPED and entry.held and known is not None and known.status is ClaimStatus.REFUTED:
            state = burn_bond(state, entry, Standing.REFUTED)
    return state


def close_pot(state: State) -> State:
    """What nobody claimed of the auditors' share in the block after a work block burns."""
    if state.pot is None:
        return state
    return replace(burn(state, state.pot.amount), pot=None)
