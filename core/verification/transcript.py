"""What was said in one session, as a hash chain that both sides keep, and its signed export.

``h_0 = H(purpose, chain, task, session)`` and ``h_{i+1} = H(h_i, sender, index, tag, SHA-256(message))``. Signatures and
commitments inside a session cover the chain's head, so they mean nothing anywhere else. The export holds digests and sizes
only, no plaintext.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final

from core.codec import DIGEST, PUBLIC_KEY, SIGNATURE, U8, U32, Enum, Record, Seq, Text, Var, decode, encode
from core.crypto.hashing import digest
from core.crypto.signing import KeyPair, sign, verify
from core.errors import CryptoError
from core.ids import Digest, Signature, TaskId

__all__ = [
    "Entry", "ExportedTranscript", "Purpose", "Side", "SignedTranscript", "Transcript", "head_after", "verify_transcript",
    "DOMAIN_TRANSCRIPT", "DOMAIN_TRANSCRIPT_SIGNATURE", "DOMAIN_TRANSCRIPT_STEP", "MAX_EVIDENCE", "MAX_TRANSCRIPT",
]  # fmt: skip

DOMAIN_TRANSCRIPT: Final = b"pofl/verify/transcript/1"
DOMAIN_TRANSCRIPT_STEP: Final = b"pofl/verify/transcript-step/1"
DOMAIN_TRANSCRIPT_SIGNATURE: Final = b"pofl/verify/transcript-signature/1"
MAX_ENTRIES: Final = 4096
MAX_TRANSCRIPT: Final = 512 * 1024
MAX_EVIDENCE: Final = 128 * 1024


class Purpose(IntEnum):
    EVALUATION = 1
    AUDIT = 2
    STORED_CHECK = 3


class Side(IntEnum):
    """Who sent a message."""

    CALLER = 1
    """Pool or node: opens the session."""
    REQUESTER = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """One message: who, its number on that side, which kind, its size and digest."""

    side: Annotated[Side, Enum(Side)]
    index: Annotated[int, U32]
    tag: Annotated[int, U8]
    size: Annotated[int, U32]
    digest: Annotated[Digest, DIGEST]


class Transcript:
    """The running hash and the list of what went into it."""

    __slots__ = ("chain_id", "entries", "head", "purpose", "session", "task_id")

    def __init__(self, purpose: Purpose, chain_id: Digest, task_id: TaskId, session: bytes) -> None:
        self.purpose, self.chain_id, self.task_id, self.session = purpose, chain_id, task_id, session
        self.entries: tuple[Entry, ...] = ()
        self.head = _start(purpose, chain_id, task_id, session)

    def absorb(self, side: Side, index: int, tag: int, size: int, message_digest: Digest) -> None:
        entry = Entry(side, index, tag, size, message_digest)
        self.entries += (entry,)
        self.head = _follow(self.head, entry)

    def restore(self, entries: tuple[Entry, ...], head: Digest) -> None:
        """Back to an earlier state: a refused message leaves no trace."""
        self.entries, self.head = entries, head

    def export(self, key: KeyPair, requester: bytes, result: str, evidence: bytes) -> bytes:
        """The encoded SignedTranscript by ``key``. ``evidence``: see core.verification.audit_evidence."""
        exported = ExportedTranscript(
            self.purpose, self.chain_id, self.task_id, self.session, key.public_key, requester, self.entries, result, evidence
        )
        data = encode(exported)
        return encode(SignedTranscript(data, sign(key, DOMAIN_TRANSCRIPT_SIGNATURE, data)))


@dataclass(frozen=True, slots=True)
class ExportedTranscript:
    purpose: Annotated[Purpose, Enum(Purpose)]
    chain_id: Annotated[Digest, DIGEST]
    task_id: Annotated[TaskId, DIGEST]
    session: Annotated[bytes, DIGEST]
    caller: Annotated[bytes, PUBLIC_KEY]
    """Who exports and signs."""
    requester: Annotated[bytes, PUBLIC_KEY]
    entries: Annotated[tuple[Entry, ...], Seq(Record(Entry), MAX_ENTRIES)]
    result: Annotated[str, Text(400)]
    evidence: Annotated[bytes, Var(MAX_EVIDENCE)]
    """What the requester signed, see core.verification.audit_evidence."""

    @property
    def head(self) -> Digest:
        return head_after(self, len(self.entries))


@dataclass(frozen=True, slots=True)
class SignedTranscript:
    transcript: Annotated[bytes, Var(MAX_TRANSCRIPT)]
    signature: Annotated[Signature, SIGNATURE]


def verify_transcript(data: bytes, caller: bytes | None = None) -> ExportedTranscript:
    """The transcript that ``caller`` signed; None: whoever it says made it.

    Raises:
        MalformedError, LimitError: not an encoded SignedTranscript.
        CryptoError: signed by someone else.
    """
    signed = decode(SignedTranscript, data, MAX_TRANSCRIPT + 128)
    exported = decode(ExportedTranscript, signed.transcript, MAX_TRANSCRIPT)
    if caller is not None and exported.caller != caller:
        raise CryptoError(f"the transcript is of {exported.caller.hex()[:16]}, not of {caller.hex()[:16]}")
    verify(exported.caller, DOMAIN_TRANSCRIPT_SIGNATURE, signed.transcript, signed.signature)
    return exported


def head_after(exported: ExportedTranscript, count: int) -> Digest:
    """The running hash after the first ``count`` messages."""
    head = _start(exported.purpose, exported.chain_id, exported.task_id, exported.session)
    for entry in exported.entries[:count]:
        head = _follow(head, entry)
    return head


def _start(purpose: Purpose, chain_id: Digest, task_id: TaskId, session: bytes) -> Digest:
    return digest(DOMAIN_TRANSCRIPT, bytes([purpose]), chain_id, task_id, session)


def _follow(head: Digest, entry: Entry) -> Digest:
    return digest(DOMAIN_TRANSCRIPT_STEP, head, encode(entry))
