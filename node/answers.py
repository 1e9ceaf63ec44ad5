"""The requester's signed answers at one work height: she signs one a claim, the same for all (design: verification, section 5).

Nodes pass them on. Two different ones about one claim prove her fault to whoever holds both, without any audit; an answer
shows no digest that would help a validator who did not audit (core.verification.receipt.z_mark).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from core.chain.state import Entry
from core.errors import NotFoundError, WrongChainError
from core.ids import AccountId, Digest, ModelCommitment, TaskId, short
from core.verification.receipt import SignedAnswer, contradict, verify_answer
from node.transcripts import Contradiction

__all__ = ["Answers", "Heard"]


class Heard(Enum):
    NEW = auto()
    """The first one about its claim."""
    CONTRADICTS = auto()
    """The second one, another than the first."""
    KNOWN = auto()
    """Nothing new: one of the two that are kept, or a third."""


class Answers:
    """At most two of each claim are kept, so nobody can fill the memory with them, not even the requester."""

    def __init__(self, chain_id: Digest, task_id: TaskId, requester: AccountId, claims: Sequence[Entry]) -> None:
        self._chain_id, self._task_id, self._requester = chain_id, task_id, requester
        self._claims = {e.claim.vm.model_commitment: e.pool for e in claims if e.claim is not None}
        self._kept: dict[ModelCommitment, list[SignedAnswer]] = {}

    def take(self, signed: SignedAnswer) -> Heard:
        """One answer, from the requester or passed on by a node.

        Raises:
            WrongChainError, CryptoError: no honest node passes this on.
            NotFoundError: about another task, or a claim that is none at this height.
        """
        answer = signed.answer
        if answer.chain_id != self._chain_id:
            raise WrongChainError(f"an answer on chain {short(answer.chain_id)}, this is chain {short(self._chain_id)}")
        commitment = answer.model_commitment
        if answer.task_id != self._task_id or self._claims.get(commitment) != answer.pool:
            raise NotFoundError(f"an answer about model {short(commitment)}, which is no claim at this height")
        kept = self._kept.setdefault(commitment, [])
        # The answer is compared and not its signature, of which a requester can make as many as she likes.
        if len(kept) == 2 or any(one.answer == answer for one in kept):
            return Heard.KNOWN
        if not kept:
            verify_answer(self._requester, signed)
            kept.append(signed)
            return Heard.NEW
        contradict(self._requester, kept[0], signed)
        kept.append(signed)
        return Heard.CONTRADICTS

    def contradiction(self, commitment: ModelCommitment) -> Contradiction | None:
        kept = self._kept.get(commitment, ())
        return Contradiction(kept[0], kept[1]) if len(kept) == 2 else None
