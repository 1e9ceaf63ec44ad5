"""What the transcript of an audit or stored check proves to somebody who was not there.

A transcript holds digests only. Beside them its evidence holds the session's first message and what the requester signed: her
answer and her openings. The first two must be messages of the list; the openings are signed over the running hash of all that
came before, so nobody who has not talked to her in just this session can make them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final

from core.codec import Maybe, Record, Var, decode, decode_as, encode, encode_as
from core.crypto.signing import KeyPair
from core.errors import CryptoError, MalformedError
from core.ids import AccountId, Digest, ModelCommitment, NodeId, TaskId
from core.verification.messages import MESSAGE, AuditAnswer, AuditOpen, Message, StoredOpen, ZeroOpenings
from core.verification.receipt import AnswerKind, SignedAnswer, verify_answer
from core.verification.session import verify_openings
from core.verification.transcript import (
    MAX_EVIDENCE,
    ExportedTranscript,
    Purpose,
    Side,
    Transcript,
    head_after,
    verify_transcript,
)

__all__ = ["AuditRecord", "export", "read_record"]

MAX_OPENING: Final = 64 * 1024
MAX_RESULT: Final = 380
_PASSED: Final = ("Valid:", "PoolFault: claimed", "Stored:")
"""How results begin that only a passed zero check allows."""
_SEEN_BY_ALL: Final = "PoolFault:"


@dataclass(frozen=True, slots=True)
class _Evidence:
    opening: Annotated[bytes, Var(MAX_OPENING)]
    """The session's first message as it was hashed; empty if it was longer, or if no session was opened."""
    answer: Annotated[SignedAnswer | None, Maybe(Record(SignedAnswer))]
    openings: Annotated[ZeroOpenings | None, Maybe(Record(ZeroOpenings))]


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """A transcript whose every check holds."""

    purpose: Purpose
    chain_id: Digest
    task_id: TaskId
    session: bytes
    validator: NodeId
    requester: AccountId
    result: str
    """The validator's own word on what it found."""
    head: Digest
    messages: int
    received: int
    """Of ``messages``, those of the requester."""
    size: int
    """Bytes of all messages."""
    pool: AccountId | None
    model_commitment: ModelCommitment | None
    """Of an audit; None in a stored check."""
    attempt: int | None
    answer: SignedAnswer | None
    is_proved: bool
    """Whether the requester's signed openings of a passed zero check are in it."""


def export(
    transcript: Transcript,
    key: KeyPair,
    requester: AccountId,
    result: str,
    opening: AuditOpen | StoredOpen,
    answer: SignedAnswer | None,
    openings: ZeroOpenings | None,
) -> bytes:
    """The encoded SignedTranscript with its evidence."""
    encoded = encode_as(MESSAGE, opening) if transcript.entries else b""
    evidence = _Evidence(encoded if len(encoded) <= MAX_OPENING else b"", answer, openings)
    short = result.encode()[:MAX_RESULT].decode(errors="ignore")
    return transcript.export(key, requester, short, encode(evidence))


def read_record(data: bytes) -> AuditRecord:
    """A transcript that any validator signed, checked as far as it can be without the chain.

    Raises:
        MalformedError, LimitError: no transcript of an audit or stored check, or one that contradicts itself.
        CryptoError: a signature is wrong: the validator's under the whole, or the requester's in it.
    """
    exported = verify_transcript(data)
    if exported.purpose not in (Purpose.AUDIT, Purpose.STORED_CHECK):
        raise MalformedError(f"a transcript of an {exported.purpose.name.lower()}, not of an audit or a stored check")
    try:
        evidence = decode(_Evidence, exported.evidence, MAX_EVIDENCE)
    except MalformedError as error:
        raise MalformedError(f"the transcript's evidence does not decode: {error.message}") from None
    _check_numbers(exported)
    opening = _check_opening(exported, evidence.opening)
    if evidence.answer is not None:
        _check_answer(exported, evidence.answer, opening)
    is_proved = evidence.openings is not None and _check_openings(exported, evidence.openings)
    _check_result(exported, evidence, is_proved)
    audited = opening if isinstance(opening, AuditOpen) else evidence.answer.answer if evidence.answer is not None else None
    return AuditRecord(
        exported.purpose, exported.chain_id, exported.task_id, exported.session, NodeId(exported.caller),
        AccountId(exported.requester), exported.result, exported.head, len(exported.entries),
        sum(entry.side is Side.REQUESTER for entry in exported.entries), sum(entry.size for entry in exported.entries),
        None if audited is None else audited.pool, None if audited is None else audited.model_commitment,
        None if opening is None else opening.attempt, evidence.answer, is_proved,
    )  # fmt: skip


def _check_numbers(exported: ExportedTranscript) -> None:
    following = dict.fromkeys(Side, 0)
    for place, entry in enumerate(exported.entries):
        if entry.index != following[entry.side]:
            raise MalformedError(
                f"entry {place} of the transcript is message {entry.index} of the {entry.side.name.lower()}, "
                f"expected {following[entry.side]}"
            )
        following[entry.side] += 1


def _check_opening(exported: ExportedTranscript, encoded: bytes) -> AuditOpen | StoredOpen | None:
    """The session's first message, if it is in the evidence."""
    if not encoded:
        return None
    opening = decode_as(MESSAGE, encoded, MAX_OPENING)
    kind = AuditOpen if exported.purpose is Purpose.AUDIT else StoredOpen
    if not isinstance(opening, AuditOpen | StoredOpen) or type(opening) is not kind:
        raise MalformedError(f"the evidence begins with {type(opening).__name__}, a session of this kind with {kind.__name__}")
    first = exported.entries[0] if exported.entries else None
    if first is None or first.side is not Side.CALLER or first.digest != hashlib.sha256(encoded).digest():
        raise MalformedError("the opening in the evidence is not the transcript's first message")
    if (opening.chain_id, opening.task_id, opening.validator) != (exported.chain_id, exported.task_id, exported.caller):
        raise MalformedError("the opening in the evidence is of another chain, task or validator")
    return opening


def _check_answer(exported: ExportedTranscript, signed: SignedAnswer, opening: AuditOpen | StoredOpen | None) -> None:
    if exported.purpose is not Purpose.AUDIT:
        raise MalformedError("an answer in the transcript of a stored check")
    answer = signed.answer
    if (answer.chain_id, answer.task_id) != (exported.chain_id, exported.task_id):
        raise MalformedError("the answer in the evidence is about another chain or task")
    if isinstance(opening, AuditOpen) and (answer.pool, answer.model_commitment) != (opening.pool, opening.model_commitment):
        raise MalformedError("the answer in the evidence is about another claim than the session")
    verify_answer(AccountId(exported.requester), signed)
    if not _has(exported, AuditAnswer(signed)):
        raise MalformedError("the answer in the evidence is no message of the transcript")


def _check_openings(exported: ExportedTranscript, openings: ZeroOpenings) -> bool:
    """Whether every run is open. Raises unless the requester signed them over the running hash."""
    place = _find(exported, openings)
    if place is None:
        raise MalformedError("the openings in the evidence are no message of the transcript")
    try:
        verify_openings(exported.requester, head_after(exported, place), openings)
    except CryptoError as error:
        raise CryptoError(f"the requester did not sign these openings at this place: {error.message}") from None
    return bool(openings.openings) and all(opening is not None for opening in openings.openings)


def _check_result(exported: ExportedTranscript, evidence: _Evidence, is_proved: bool) -> None:
    result = exported.result
    if not result.startswith(_PASSED):
        return
    answer = evidence.answer.answer if evidence.answer is not None else None
    if result.startswith(_SEEN_BY_ALL) and not exported.entries:
        # What needed no help, for example a claim of more than I: nobody was asked.
        return
    if not is_proved:
        raise MalformedError(f"the result is {result!r}, and no passed check is in the transcript")
    if exported.purpose is Purpose.AUDIT:
        if answer is None or answer.kind is not AnswerKind.SCORED:
            raise MalformedError(f"the result is {result!r}, and the requester scored no model in the transcript")
        if result.startswith("Valid:") and not result.startswith(f"Valid: {answer.correct} of "):
            raise MalformedError(f"the result is {result!r}, the requester's signed count is {answer.correct}")
        if result.startswith(_SEEN_BY_ALL) and not _tells_another_count(result, answer.correct):
            raise MalformedError(f"the result is {result!r}, and the requester's signed count is {answer.correct}")


def _tells_another_count(result: str, correct: int) -> bool:
    """Of "PoolFault: claimed X, the committed model scores N* of I": whether N* is what she signed and X is not."""
    claimed, _, scored = result.removeprefix("PoolFault: claimed ").partition(", the committed model scores ")
    return scored.startswith(f"{correct} of ") and claimed.isdecimal() and int(claimed) != correct


def _has(exported: ExportedTranscript, message: Message) -> bool:
    return _find(exported, message) is not None


def _find(exported: ExportedTranscript, message: Message) -> int | None:
    """Where in the list a message of the requester is."""
    found = hashlib.sha256(encode_as(MESSAGE, message)).digest()
    places = (i for i, e in enumerate(exported.entries) if e.side is Side.REQUESTER and e.digest == found)
    return next(places, None)
