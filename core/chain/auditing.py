"""A validator's own verdicts at a work height: which claim to audit now, by when, and what is said of it.

Given at most twice on a claim: ``unavailable``, and what replaces it (design: consensus, "Work height").
"""

from __future__ import annotations

from core.chain import build
from core.chain.candidates import Candidates
from core.chain.claims import ZERO, Adopted, Undecided, tag
from core.chain.messages import (
    Action,
    AuditClaim,
    AuditDone,
    Broadcast,
    RequestWork,
    SetTimer,
    Timer,
    TimerKind,
)
from core.chain.state import Entry, State
from core.chain.vote import Verdict, VerdictKind
from core.chain.work_height import WorkHeight, commitment_of
from core.crypto.signing import KeyPair
from core.errors import VoteError
from core.ids import Correct, Digest, Height, Milliseconds, ModelCommitment, NodeId, short

__all__ = ["Auditing"]


class Auditing:
    """Methods return the actions to do; a Broadcast among them is a new verdict, to be persisted before it is sent."""

    def __init__(self, state: State, key: KeyPair, work: WorkHeight, blocks: Candidates) -> None:
        self._state, self._params, self._key = state, state.params, key
        self._me = NodeId(key.public_key)
        self._is_validator = self._me in {v.node_id for v in state.validators}
        self._work, self._blocks = work, blocks
        self._bodies: set[ModelCommitment] = set()
        self._top: int | None = None
        self._timed: set[int] = set()
        self._passed: dict[ModelCommitment, AuditDone] = {}
        self._failed: set[ModelCommitment] = set()
        self._waited: set[ModelCommitment] = set()
        """Of the failed ones, those whose second audit_ms runs."""
        self._opening: dict[ModelCommitment, Milliseconds] = {}
        """Claims that the requester called malformed, and until when their pools may open them."""

    def waiting(self, now_ms: Milliseconds) -> list[Action]:
        """Signs ``valid`` for claims whose work block came after the audit's end."""
        ready = [c for c in self._passed if self._blocks.work_block(c) is not None]
        return [action for c in ready for action in self.on_done(self._passed.pop(c), now_ms)]

    def hold_body(self, commitment: ModelCommitment) -> None:
        self._bodies.add(commitment)

    def note_failed(self, commitment: ModelCommitment) -> None:
        """This node could not do its own part of the audit: others' verdicts decide, and the requester is not blamed."""
        self._failed.add(commitment)

    def await_opening(self, commitment: ModelCommitment, now_ms: Milliseconds) -> None:
        """The requester has answered: from now on the time is the pool's, and hers is no longer counted (docs/adr/0088)."""
        self._opening.setdefault(commitment, Milliseconds(now_ms + self._params.open_ms))

    def follow(self) -> list[Action]:
        """Names the top remaining claim when it changes, and times its body and its audit."""
        if not self._work.claims:
            return []
        found = self._work.found
        actions: list[Action] = []
        if isinstance(found, Undecided) and found.index != self._top:
            self._top = found.index
            if not self._given(found.claim) - {VerdictKind.UNAVAILABLE}:
                actions.append(AuditClaim(found.index, found.claim))
                actions.append(SetTimer(Timer(TimerKind.BODY, found.index), self._params.body_ms))
        if self._top is not None and self._top not in self._timed and self._holds(self._work.claims[self._top]):
            self._timed.add(self._top)
            actions.append(SetTimer(Timer(TimerKind.AUDIT, self._top), self._params.audit_ms))
        return actions

    def wanted_work(self) -> RequestWork | None:
        """The adopted claim whose work block is not here."""
        found = self._work.found if self._work.claims else None
        if isinstance(found, Adopted) and self._blocks.work_block(commitment_of(found.claim)) is None:
            return RequestWork(found.claim)
        return None

    def on_timeout(self, timer: Timer, now_ms: Milliseconds) -> list[Action]:
        """``unavailable`` after body_ms as top remaining claim; ``requester_fault`` after audit_ms with its blobs here.

        Where she answered "malformed" in time, the pool's open_ms is waited for: then what this node made of the opening is its
        verdict. If that is not there by then, this node failed.

        Where this node itself failed, nothing at first; ``unavailable`` after another audit_ms, so that the height ends even if
        a third of the nodes has the same defect (docs/adr/0064).
        """
        entry, params = self._work.claims[timer.key], self._params
        given = self._given(entry)
        if timer.kind is TimerKind.BODY and timer.key == self._top and not given and not self._holds(entry):
            reason = f"no work block or body within {params.body_ms} ms"
            return self._give(entry, VerdictKind.UNAVAILABLE, reason, now_ms)
        commitment = commitment_of(entry)
        opened_by = self._opening.get(commitment)
        if timer.kind is TimerKind.AUDIT and opened_by is not None and commitment not in self._failed:
            if now_ms < opened_by:
                return [SetTimer(timer, opened_by - now_ms)]
            self._failed.add(commitment)
        if timer.kind is TimerKind.AUDIT and commitment in self._failed:
            if commitment not in self._waited:
                self._waited.add(commitment)
                return [SetTimer(timer, params.audit_ms)]
            return self._give(entry, VerdictKind.UNAVAILABLE, "this node could not audit it", now_ms) if not given else []
        if timer.kind is TimerKind.AUDIT and not given - {VerdictKind.UNAVAILABLE}:
            reason = f"no right answer within {params.audit_ms} ms"
            return self._give(entry, VerdictKind.REQUESTER_FAULT, reason, now_ms)
        return []

    def on_done(self, done: AuditDone, now_ms: Milliseconds) -> list[Action]:
        """Signs what the audit found, unless a final verdict was given. Raises VoteError if it contradicts itself.

        ``valid`` waits for the work block: a claim adopted on its body alone could never be proposed.
        """
        entry = next((e for e in self._work.claims if commitment_of(e) == done.model_commitment), None)
        if entry is None or entry.claim is None:
            raise VoteError(f"an audit of {short(done.model_commitment)}, which is no claim at this height")
        if done.kind is VerdictKind.VALID and (done.correct != entry.claim.correct or done.z_digest is None):
            raise VoteError(f"an audit found {done.correct} of a claim of {entry.claim.correct}: that is not 'valid'")
        given = self._given(entry)
        if done.kind in given or given - {VerdictKind.UNAVAILABLE}:
            return []
        if done.kind is VerdictKind.VALID and self._blocks.work_block(done.model_commitment) is None:
            self._passed[done.model_commitment] = done
            return []
        return self._give(entry, done.kind, done.reason, now_ms, done.correct, done.z_digest)

    def _given(self, entry: Entry) -> frozenset[VerdictKind]:
        return self._work.own_kinds(commitment_of(entry))

    def _holds(self, entry: Entry) -> bool:
        commitment = commitment_of(entry)
        return commitment in self._bodies and self._blocks.work_block(commitment) is not None

    def _give(
        self,
        entry: Entry,
        kind: VerdictKind,
        reason: str,
        now_ms: Milliseconds,
        correct: Correct | None = None,
        audited: Digest | None = None,
    ) -> list[Action]:
        if not self._is_validator:
            return []
        commitment, mark = commitment_of(entry), ZERO
        if audited is not None and kind in (VerdictKind.VALID, VerdictKind.POOL_FAULT):
            mark = tag(self._state.chain_id, entry.task_id, commitment, audited, self._me)
        verdict = Verdict(
            self._state.chain_id, Height(self._state.height + 1), entry.task_id, entry.pool, commitment, kind,
            correct or Correct(0), reason.encode(errors="replace")[:200].decode(errors="ignore"), mark, self._me,
        )  # fmt: skip
        signed = build.make_verdict(self._key, verdict)
        self._work.add(verdict, signed)
        self._work.note_given(commitment, now_ms)
        return [Broadcast(signed)]
