"""Claims at a work height: what validators' verdicts make of each, and which outcome follows (design: consensus).

``tally`` is a function of a set of verdicts only. Signers are counted by power per kind; a verdict that its signer
replaced still counts, so that every power here only grows as verdicts come in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from core.chain.block import DOMAIN_RECEIPT, Outcome, OutcomeKind, Receipt
from core.chain.state import ClaimRecord, Entry, State, Validator
from core.chain.verify import is_quorum, is_third
from core.chain.vote import DOMAIN_TAG, Verdict, VerdictKind
from core.crypto import signing
from core.crypto.hashing import digest
from core.errors import VoteError
from core.ids import AccountId, Digest, ModelCommitment, NodeId, TaskId, short

__all__ = [
    "Adopted", "ClaimStatus", "Found", "Tally", "Undecided", "Void", "check_receipt", "check_verdict_claim", "outcome",
    "model_commitment", "outcome_of", "receipt_message", "tag", "tally",
    "DOMAIN_MODEL",
]  # fmt: skip

DOMAIN_MODEL: Final = b"pofl/verify/model-commitment/1"

ZERO: Final = Digest(bytes(32))


class ClaimStatus(IntEnum):
    UNDECIDED = 0
    ADOPTED = 1
    REFUTED = 2
    DEAD = 3
    SKIPPED = 4


@dataclass(frozen=True, slots=True)
class Tally:
    """Power of the signers of each kind of verdict on one claim, of those of any, and what follows."""

    valid: int
    pool_fault: int
    requester_fault: int
    total_in: int
    status: ClaimStatus


@dataclass(frozen=True, slots=True)
class Adopted:
    """``claim`` wins; ``above`` are the ends of all higher claims."""

    index: int
    claim: Entry
    above: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Void:
    """Nobody wins; the ends in rank order, ending at the first dead claim."""

    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Undecided:
    """``claim``, number ``index`` in rank order, is the top remaining one."""

    index: int
    claim: Entry


Found = Adopted | Void | Undecided

_ENDS: Final = {
    ClaimStatus.REFUTED: OutcomeKind.REFUTED,
    ClaimStatus.SKIPPED: OutcomeKind.SKIPPED,
    ClaimStatus.DEAD: OutcomeKind.DEAD,
}


def tally(verdicts: Iterable[Verdict], validators: Sequence[Validator]) -> Mapping[ModelCommitment, Tally]:
    """By claim: *adopted* with valid > 1/3 of the power; else *refuted* with pool_fault > 1/3; else *dead* with
    requester_fault > 1/3; else, with verdicts of >= 2/3 in, *skipped*; else undecided.

    Verdicts of others than ``validators`` do not count.
    """
    power = {v.node_id: v.power for v in validators}
    total = sum(power.values())
    signers: dict[ModelCommitment, dict[VerdictKind, set[NodeId]]] = {}
    for verdict in verdicts:
        if verdict.validator in power:
            signers.setdefault(verdict.model_commitment, {}).setdefault(verdict.kind, set()).add(verdict.validator)

    def sum_of(kinds: Mapping[VerdictKind, set[NodeId]], *wanted: VerdictKind) -> int:
        return sum(power[v] for v in set().union(*(kinds.get(kind, set()) for kind in wanted)))

    found: dict[ModelCommitment, Tally] = {}
    for commitment, kinds in signers.items():
        valid = sum_of(kinds, VerdictKind.VALID)
        pool_fault = sum_of(kinds, VerdictKind.POOL_FAULT)
        requester_fault = sum_of(kinds, VerdictKind.REQUESTER_FAULT)
        total_in = sum_of(kinds, *VerdictKind)
        if is_third(valid, total):
            status = ClaimStatus.ADOPTED
        elif is_third(pool_fault, total):
            status = ClaimStatus.REFUTED
        elif is_third(requester_fault, total):
            status = ClaimStatus.DEAD
        elif is_quorum(total_in, total):
            status = ClaimStatus.SKIPPED
        else:
            status = ClaimStatus.UNDECIDED
        found[commitment] = Tally(valid, pool_fault, requester_fault, total_in, status)
    return found


def outcome_of(claims: Sequence[Entry], tallies: Mapping[ModelCommitment, Tally]) -> Found:
    """What the tallies decide over ``claims`` in rank order.

    Adopted: done. Refuted or skipped: the next claim becomes top remaining. Dead: the search ends, the task is void.
    """
    ends: list[Outcome] = []
    for index, entry in enumerate(claims):
        commitment = _claim(entry).vm.model_commitment
        known = tallies.get(commitment)
        status = ClaimStatus.UNDECIDED if known is None else known.status
        if status is ClaimStatus.ADOPTED:
            return Adopted(index, entry, tuple(ends))
        if status is ClaimStatus.UNDECIDED:
            return Undecided(index, entry)
        ends.append(Outcome(commitment, _ENDS[status]))
        if status is ClaimStatus.DEAD:
            break
    return Void(tuple(ends))


def outcome(state: State, verdicts: Iterable[Verdict]) -> Found:
    """What ``verdicts`` decide at the work height after ``state``. Raises VoteError if it is not a work height."""
    claims = state.work_claims()
    if claims is None:
        raise VoteError(f"height {state.height + 1} is no work height")
    return outcome_of(claims, tally(verdicts, state.validators))


def check_verdict_claim(verdict: Verdict, task_id: TaskId, claims: Sequence[Entry]) -> Entry:
    """The claim that a verdict is on, if the verdict's fields fit it.

    Raises:
        VoteError: no such claim, or correct count, reason and tag do not go with the kind.
    """
    for entry in claims:
        claim = _claim(entry)
        if (verdict.task_id, verdict.pool, verdict.model_commitment) != (task_id, entry.pool, claim.vm.model_commitment):
            continue
        if verdict.kind is VerdictKind.VALID and (verdict.correct != claim.correct or verdict.tag == ZERO):
            raise VoteError(
                f"a verdict 'valid' on the claim of {claim.correct} says {verdict.correct}"
                + (", and carries no tag" if verdict.tag == ZERO else ""),
                claimed=claim.correct, audited=verdict.correct,
            )  # fmt: skip
        if verdict.kind in (VerdictKind.UNAVAILABLE, VerdictKind.REQUESTER_FAULT) and verdict.tag != ZERO:
            raise VoteError(f"a verdict '{verdict.kind.name.lower()}' carries a tag, though no audit passed")
        return entry
    raise VoteError(f"a verdict on {short(verdict.model_commitment)}, which is no claim at this height")


def model_commitment(chain_id: Digest, task_id: TaskId, pool: AccountId, body_digest: Digest) -> ModelCommitment:
    """``c_W``, from the SHA-256 of the body. Only who knows a body of this pool can say what makes it (docs/adr/0081)."""
    return ModelCommitment(digest(DOMAIN_MODEL, chain_id, task_id, pool, body_digest))


def receipt_message(
    chain_id: Digest,
    task_id: TaskId,
    pool: AccountId,
    model_commitment: ModelCommitment,
    garbled_circuit_digest: Digest,
    output_keys_digest: Digest,
) -> bytes:
    """What the requester's receipt signs under DOMAIN_RECEIPT, with her account key (design: verification, section 3).

    Six values of 32 bytes, one after another: the encoding of core.verification.receipt.ReceiptMessage.
    """
    return chain_id + task_id + pool + model_commitment + garbled_circuit_digest + output_keys_digest


def check_receipt(
    receipt: Receipt,
    requester: AccountId,
    chain_id: Digest,
    task_id: TaskId,
    pool: AccountId,
    model_commitment: ModelCommitment,
    garbled_circuit_digest: Digest,
) -> None:
    """Raises CryptoError unless the requester signed this receipt for this model, pool and task."""
    message = receipt_message(chain_id, task_id, pool, model_commitment, garbled_circuit_digest, receipt.output_keys_digest)
    signing.verify(requester, DOMAIN_RECEIPT, message, receipt.signature)


def tag(chain_id: Digest, task_id: TaskId, model_commitment: ModelCommitment, audited: Digest, validator: NodeId) -> Digest:
    """A verdict's tag from ``audited``, the z_digest: shows, once that is revealed, that its signer audited too."""
    return digest(DOMAIN_TAG, chain_id, task_id, model_commitment, audited, validator)


def _claim(entry: Entry) -> ClaimRecord:
    if entry.claim is None:
        raise VoteError(f"pool {short(entry.pool)} has no claim")
    return entry.claim
