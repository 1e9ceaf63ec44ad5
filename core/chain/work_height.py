"""What a validator knows and thinks at a work height: verdicts, justification, preference (design: consensus, "Work height").

``is_justified`` is the part of the design's is_valid that needs verdicts: it is judged on the set that a proposal brought
or on all that is known, and stays true once it was. ``is_preferred`` is asked for fresh proposals only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from core.chain import claims as claim_rules
from core.chain.block import BlockKind, Header, OutcomeKind
from core.chain.claims import Adopted, ClaimStatus, Found, Tally, Undecided, Void
from core.chain.evidence import is_verdict_equivocation
from core.chain.state import Entry, State
from core.chain.transaction import VerdictEquivocation
from core.chain.verify import check_verdict
from core.chain.vote import SignedVerdict, Verdict, VerdictKind
from core.codec import decode
from core.errors import VoteError
from core.ids import Height, Milliseconds, ModelCommitment, NodeId

__all__ = ["WorkHeight"]

Pair = tuple[Verdict, SignedVerdict]


class WorkHeight:
    """The verdicts of one height. Holds no clock; instants come in."""

    def __init__(self, state: State, me: NodeId) -> None:
        self.claims: tuple[Entry, ...] = state.work_claims() or ()
        self._state = state
        self._me = me
        self._power = {bytes(v.node_id): v.power for v in state.validators}
        self._pairs: dict[tuple[NodeId, ModelCommitment], list[Pair]] = {}
        self._known: set[bytes] = set()
        self._given_ms: dict[ModelCommitment, Milliseconds] = {}
        self._tallies: Mapping[ModelCommitment, Tally] | None = None

    # -- verdicts ------------------------------------------------------------------------------------------------------

    def check(self, signed: SignedVerdict) -> Verdict:
        """The verdict, if a validator signed it and it fits a claim of this height. Raises VoteError, WrongChainError."""
        if not self.claims:
            raise VoteError(f"a verdict at height {self._state.height + 1}, which is no work height")
        if self.is_known(signed):
            return decode(Verdict, signed.verdict, 1024)
        verdict = check_verdict(signed, self._state.chain_id, Height(self._state.height + 1), self._power)
        claim_rules.check_verdict_claim(verdict, self.claims[0].task_id, self.claims)
        return verdict

    def is_known(self, signed: SignedVerdict) -> bool:
        return signed.verdict + signed.signature in self._known

    def add(self, verdict: Verdict, signed: SignedVerdict) -> tuple[bool, VerdictEquivocation | None]:
        """Keeps a checked verdict: whether it was new, and evidence if its signer contradicts itself.

        One of each kind is kept of a signer on a claim. With fewer, nodes that got a liar's verdicts in different orders
        would never come to the same tally.
        """
        if self.is_known(signed):
            return False, None
        pairs = self._pairs.setdefault((verdict.validator, verdict.model_commitment), [])
        evidence = next((VerdictEquivocation(other, signed) for v, other in pairs if is_verdict_equivocation(v, verdict)), None)
        if any(v.kind is verdict.kind for v, _ in pairs):
            return False, evidence
        pairs.append((verdict, signed))
        self._known.add(signed.verdict + signed.signature)
        self._tallies = None
        return True, evidence

    def all_signed(self) -> tuple[SignedVerdict, ...]:
        return tuple(signed for key in sorted(self._pairs) for _, signed in self._pairs[key])

    def own(self) -> tuple[SignedVerdict, ...]:
        return tuple(s for (who, _), pairs in sorted(self._pairs.items()) if who == self._me for _, s in pairs)

    def own_kinds(self, commitment: ModelCommitment) -> frozenset[VerdictKind]:
        return frozenset(v.kind for v, _ in self._pairs.get((self._me, commitment), ()))

    def note_given(self, commitment: ModelCommitment, now_ms: Milliseconds) -> None:
        """When this node gave its latest verdict on a claim: a skip waits gossip_ms from then."""
        self._given_ms[commitment] = now_ms

    # -- what follows from them ----------------------------------------------------------------------------------------

    @property
    def tallies(self) -> Mapping[ModelCommitment, Tally]:
        if self._tallies is None:
            verdicts = (v for pairs in self._pairs.values() for v, _ in pairs)
            self._tallies = claim_rules.tally(verdicts, self._state.validators)
        return self._tallies

    @property
    def found(self) -> Found:
        """What the verdicts known here decide."""
        return claim_rules.outcome_of(self.claims, self.tallies)

    def status(self, entry: Entry) -> ClaimStatus:
        known = self.tallies.get(commitment_of(entry))
        return ClaimStatus.UNDECIDED if known is None else known.status

    def is_justified(self, header: Header, verdicts: Iterable[Verdict] | None = None) -> bool:
        """Whether ``verdicts`` (all known ones if None) lead to exactly this block's winner or outcome."""
        found = (
            self.found
            if verdicts is None
            else claim_rules.outcome_of(self.claims, claim_rules.tally(verdicts, self._state.validators))
        )
        if header.kind is BlockKind.WORK:
            return isinstance(found, Adopted) and found.claim.pool == header.author_id
        return isinstance(found, Void) and found.outcomes == header.outcome

    def is_preferred(self, header: Header, now_ms: Milliseconds, gossip_ms: int) -> bool:
        """Whether this node knows no better outcome than a fresh proposal's.

        Not: a lower claim while a higher one is adopted or dead; a void block that differs from what the verdicts here
        say; a skip within gossip_ms of this node's own verdict on the claim. (A work block does not say whether a higher
        claim was refuted or skipped, so a difference there is none.)
        """
        if header.kind is BlockKind.WORK:
            above: list[Entry] = []
            for entry in self.claims:
                if entry.pool == header.author_id:
                    break
                above.append(entry)
            if any(self.status(e) in (ClaimStatus.ADOPTED, ClaimStatus.DEAD) for e in above):
                return False
            skipped = [commitment_of(e) for e in above if self.status(e) is not ClaimStatus.REFUTED]
        else:
            found = self.found
            if not isinstance(found, Void) or found.outcomes != header.outcome:
                return False
            skipped = [o.model_commitment for o in header.outcome if o.kind is OutcomeKind.SKIPPED]
        return self._is_ripe(skipped, now_ms, gossip_ms)

    def is_ripe(self, now_ms: Milliseconds, gossip_ms: int) -> bool:
        """Whether an outcome is decided here and no skip in it is too fresh for this node to propose."""
        found = self.found
        if isinstance(found, Undecided):
            return False
        ends = found.above if isinstance(found, Adopted) else found.outcomes
        skipped = [o.model_commitment for o in ends if o.kind is OutcomeKind.SKIPPED]
        return self._is_ripe(skipped, now_ms, gossip_ms)

    def _is_ripe(self, skipped: Sequence[ModelCommitment], now_ms: Milliseconds, gossip_ms: int) -> bool:
        return all(now_ms >= self._given_ms[c] + gossip_ms for c in skipped if c in self._given_ms)


def commitment_of(entry: Entry) -> ModelCommitment:
    if entry.claim is None:
        raise VoteError("an entry without a claim is in the ranking")
    return entry.claim.vm.model_commitment
