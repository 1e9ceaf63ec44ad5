"""What the machines of all three protocols share: order, replay, parts, transcript, one-use marks.

``step(envelope)`` gives the replies. A message that is out of order, malformed or too large raises and changes nothing. The
same message under the same number again gives the stored replies, byte for byte; another one under that number is refused.
An error that means the run is used up (CheatingError, BudgetError, AbortError, InconclusiveError) ends the session.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from core.codec import decode_as, encode, encode_as
from core.crypto.hashing import digest
from core.crypto.signing import KeyPair, sign, verify
from core.crypto.zero_check import ZeroOpening
from core.errors import (
    AbortError,
    BudgetError,
    CheatingError,
    InconclusiveError,
    LimitError,
    MalformedError,
    SequenceError,
    WrongChainError,
)
from core.ids import Digest, Signature
from core.verification.messages import MESSAGE, PART_BYTES, Abort, Envelope, Message, Part, ZeroOpenings
from core.verification.task import TaskContext
from core.verification.transcript import Purpose, Side, Transcript

__all__ = ["DOMAIN_OPENINGS", "OneUse", "Session", "mark_key", "sign_openings", "verify_openings"]

DOMAIN_OPENINGS: Final = b"pofl/verify/zero-openings/1"
DOMAIN_MARK: Final = b"pofl/verify/mark/1"
_ENDING = (CheatingError, BudgetError, AbortError, InconclusiveError)


class OneUse(Protocol):
    """Marks that outlive the process. ``mark`` returns only when the mark is on disk."""

    def mark(self, key: bytes) -> None:
        """Raises BudgetError if ``key`` is marked already; two callers never both succeed."""


def mark_key(name: bytes, *parts: bytes) -> bytes:
    """The 32-byte key of a one-use value or a counted run."""
    return digest(DOMAIN_MARK, name, *parts)


@dataclass(frozen=True, slots=True)
class _Received:
    digest: bytes
    replies: tuple[Envelope, ...]


class Session(ABC):
    """One side of one session. ``side`` is its own; the other side's messages come in through ``step``."""

    def __init__(self, side: Side, purpose: Purpose, task: TaskContext, session: bytes, limit: int) -> None:
        self.task = task
        self.session = session
        self.transcript = Transcript(purpose, task.chain_id, task.task_id, session)
        self._side = side
        self._peer = Side.REQUESTER if side is Side.CALLER else Side.CALLER
        self._limit = limit
        self._sent = 0
        self._received: list[_Received] = []
        self._parts: tuple[bytes, ...] = ()
        self._part_count = 0
        self._head_before = self.transcript.head
        """The transcript before the message that is being handled, all its parts included."""
        self._ended: str | None = None
        self._expected: tuple[type, ...] = ()

    @property
    def is_over(self) -> bool:
        """Nothing but replays is answered from now on."""
        return self._ended is not None

    def step(self, envelope: Envelope) -> tuple[Envelope, ...]:
        """The replies to one message.

        Raises:
            SequenceError, MalformedError, LimitError: refused, nothing changed.
            CheatingError, BudgetError, AbortError, InconclusiveError: the session is over.
        """
        if envelope.session != self.session:
            raise SequenceError(f"a message of session {envelope.session.hex()[:16]} in session {self.session.hex()[:16]}")
        encoded = encode_as(MESSAGE, envelope.message)
        found = hashlib.sha256(encoded).digest()
        number = len(self._received)
        if envelope.index < number:
            if self._received[envelope.index].digest != found:
                raise SequenceError(f"another message under number {envelope.index}, which is used", index=envelope.index)
            return self._received[envelope.index].replies
        if self._ended is not None:
            raise SequenceError(f"the session is over: {self._ended}")
        if envelope.index > number:
            raise SequenceError(f"message {envelope.index} arrived, {number} is next", index=envelope.index, expected=number)
        entries, head = self.transcript.entries, self.transcript.head
        if not self._parts:
            self._head_before = head
        self.transcript.absorb(self._peer, number, encoded[0], len(encoded), Digest(found))
        try:
            replies = self._take(envelope.message)
        except _ENDING as error:
            self._end(error.message)
            raise
        except Exception:
            self.transcript.restore(entries, head)
            raise
        sent = self._send(replies)
        self._received.append(_Received(found, sent))
        return sent

    def work_ahead(self) -> None:  # noqa: B027  a session without anything to prepare is as good
        """Computes what the next messages will not change, while the peer works. May be called after every step, or never:
        it changes how long later steps take and nothing else."""

    @abstractmethod
    def _handle(self, message: Message) -> Sequence[Message]:
        """The replies to an expected, whole message. Everything is checked before the first change of state."""

    def _take(self, message: Message) -> Sequence[Message]:
        if isinstance(message, Abort):
            raise AbortError(f"the peer ended the session: {message.reason}", reason=message.reason)
        if isinstance(message, Part):
            return self._take_part(message)
        if self._parts:
            raise SequenceError(f"{type(message).__name__} between the parts of another message")
        return self._dispatch(message)

    def _take_part(self, part: Part) -> Sequence[Message]:
        if part.count < 2 or (part.count - 1) * PART_BYTES > self._limit:
            raise LimitError(f"a message of {part.count} parts; one here has at most {self._limit} bytes", count=part.count)
        if part.index != len(self._parts) or (self._parts and part.count != self._part_count):
            raise SequenceError(f"part {part.index} of {part.count} arrived, expected part {len(self._parts)}")
        is_last = part.index == part.count - 1
        if not part.data or (not is_last and len(part.data) != PART_BYTES):
            raise MalformedError(
                f"part {part.index} of {part.count} has {len(part.data)} bytes; all but the last have {PART_BYTES}"
            )
        if not is_last:
            self._parts, self._part_count = (*self._parts, part.data), part.count
            return ()
        whole = decode_as(MESSAGE, b"".join((*self._parts, part.data)), self._limit)
        if isinstance(whole, Part | Abort):
            raise MalformedError("parts hold a part or an abort")
        replies = self._dispatch(whole)
        self._parts = ()
        return replies

    def _dispatch(self, message: Message) -> Sequence[Message]:
        if type(message) not in self._expected:
            wanted = " or ".join(kind.__name__ for kind in self._expected) or "nothing"
            raise SequenceError(f"{type(message).__name__} arrived, expected {wanted}", expected=wanted)
        return self._handle(message)

    def _send(self, messages: Sequence[Message]) -> tuple[Envelope, ...]:
        envelopes = []
        for message in messages:
            for piece in _split(message):
                encoded = encode_as(MESSAGE, piece)
                found = Digest(hashlib.sha256(encoded).digest())
                self.transcript.absorb(self._side, self._sent, encoded[0], len(encoded), found)
                envelopes.append(Envelope(self.session, self._sent, piece))
                self._sent += 1
        return tuple(envelopes)

    def _end(self, why: str) -> None:
        self._ended = why
        self._expected = ()

    def _check_task(self, chain_id: bytes, task_id: bytes) -> None:
        if chain_id != self.task.chain_id:
            raise WrongChainError(f"a session of chain {chain_id.hex()}, this one is {self.task.chain_id.hex()}")
        if task_id != self.task.task_id:
            raise MalformedError(f"a session of task {task_id.hex()}, this one is {self.task.task_id.hex()}")


def _split(message: Message) -> list[Message]:
    encoded = encode_as(MESSAGE, message)
    if len(encoded) <= PART_BYTES:
        return [message]
    count = -(-len(encoded) // PART_BYTES)
    return [Part(i, count, encoded[i * PART_BYTES : (i + 1) * PART_BYTES]) for i in range(count)]


def sign_openings(key: KeyPair, head: Digest, openings: tuple[ZeroOpening | None, ...]) -> ZeroOpenings:
    """The requester's signed word on each run: equal, with the opening, or not equal."""
    unsigned = ZeroOpenings(openings, Signature(bytes(64)))
    return ZeroOpenings(openings, sign(key, DOMAIN_OPENINGS, head + encode(unsigned)))


def verify_openings(requester: bytes, head: Digest, message: ZeroOpenings) -> None:
    """Raises CryptoError unless the requester signed these openings in this session at this place."""
    unsigned = ZeroOpenings(message.openings, Signature(bytes(64)))
    verify(requester, DOMAIN_OPENINGS, head + encode(unsigned), message.signature)
