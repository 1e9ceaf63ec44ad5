"""Verdicts that somebody outside the network was told, and which claim they leave on top.

The requester and pools have no state of the chain. What they are told about the claims of a work height they check: a
validator's signature, this chain, height and task, a claim of the ranking. Who leaves verdicts out can hide them, others
bring them; who makes some up needs the keys of more than a third of the validators.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from core.chain.claims import Found, Void, check_verdict_claim, outcome_of, tally
from core.chain.state import Entry, Validator
from core.chain.verify import check_verdict, powers
from core.chain.vote import SignedVerdict, Verdict, VerdictKind
from core.codec import decode
from core.errors import VoteError
from core.ids import Digest, Height, ModelCommitment, NodeId, short

__all__ = ["HeardVerdicts"]


class HeardVerdicts:
    """Of one work height. One verdict of each kind is kept of a validator on a claim: what is counted, and no more."""

    def __init__(self, chain_id: Digest, height: Height, claims: Sequence[Entry], validators: Sequence[Validator]) -> None:
        """``claims`` in rank order, each with its claim."""
        self.height = height
        self._chain_id = chain_id
        self._claims = tuple(claims)
        self._validators = tuple(validators)
        self._powers = powers(self._validators)
        self._verdicts: dict[tuple[NodeId, ModelCommitment, VerdictKind], Verdict] = {}

    def hear(self, verdicts: Iterable[SignedVerdict]) -> None:
        """Adds verdicts, up to the first that nobody may have signed. Raises VoteError, WrongChainError, MalformedError."""
        for signed in verdicts:
            claimed = decode(Verdict, signed.verdict, 1024)
            place = (claimed.validator, claimed.model_commitment, claimed.kind)
            if place in self._verdicts:
                # Known: its signature need not be looked at again, and another one of this kind would count no more.
                continue
            verdict = check_verdict(signed, self._chain_id, self.height, self._powers)
            check_verdict_claim(verdict, self._claims[0].task_id, self._claims)
            self._verdicts[place] = verdict

    @property
    def found(self) -> Found:
        return outcome_of(self._claims, tally(self._verdicts.values(), self._validators))

    def rank(self, commitment: ModelCommitment) -> int:
        """From 0, the best. Raises VoteError for a model that is no claim."""
        for index, entry in enumerate(self._claims):
            if entry.claim is not None and entry.claim.vm.model_commitment == commitment:
                return index
        raise VoteError(f"model {short(commitment)} is no claim at height {self.height}")

    def has_had_its_turn(self, commitment: ModelCommitment) -> bool:
        """Whether every higher claim is refuted or skipped: the claim is the top remaining one, or was it."""
        found = self.found
        rank = self.rank(commitment)
        if isinstance(found, Void):
            return rank < len(found.outcomes)
        return rank <= found.index
