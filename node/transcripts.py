"""What this node keeps of its audits: signed transcripts, how many attempts it began, answers that contradict one another.

A database of its own beside the chain: nothing here is needed to follow the chain. All of it is bounded by count, the oldest
going first. Keys::

    t ‖ number            a transcript with what explain lists of it
    a ‖ task ‖ c_W        attempts that were begun, before a byte of them left
    e ‖ height ‖ c_W      two answers of a requester about one claim that contradict each other
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from core.codec import DIGEST, U8, U32, U64, Maybe, Record, Text, Var, decode, encode
from core.errors import NotFoundError
from core.ids import Digest, Height, ModelCommitment, NodeId, TaskId, short
from core.params import Genesis
from core.verification.audit_evidence import read_record
from core.verification.receipt import SignedAnswer
from core.verification.transcript import MAX_TRANSCRIPT, Purpose
from node.store import store_meta
from services.storage import KeyValueStore, LevelDb

__all__ = ["Contradiction", "KeptTranscript", "TranscriptStore", "open_transcripts"]

MAX_TRANSCRIPTS: Final = 2_000
MAX_ATTEMPTS: Final = 4_000
MAX_CONTRADICTIONS: Final = 1_000
MAX_BYTES: Final = MAX_TRANSCRIPT + 128
_TRANSCRIPT, _ATTEMPTS, _EVIDENCE = b"t", b"a", b"e"


@dataclass(frozen=True, slots=True)
class KeptTranscript:
    """What is known of a transcript without reading it."""

    digest: Annotated[Digest, DIGEST]
    """SHA-256 of its bytes: what it is asked for by."""
    height: Annotated[Height, U64]
    """The height that was being decided when it was made."""
    purpose: Annotated[int, U8]
    """core.verification.transcript.Purpose."""
    task_id: Annotated[TaskId, DIGEST]
    model_commitment: Annotated[ModelCommitment | None, Maybe(DIGEST)]
    result: Annotated[str, Text(400)]
    head: Annotated[Digest, DIGEST]
    size: Annotated[int, U32]


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two answers that the requester signed about one claim."""

    first: SignedAnswer
    second: SignedAnswer


@dataclass(frozen=True, slots=True)
class _Row:
    about: Annotated[KeptTranscript, Record(KeptTranscript)]
    data: Annotated[bytes, Var(MAX_BYTES)]


@dataclass(frozen=True, slots=True)
class _Attempts:
    count: Annotated[int, U8]
    number: Annotated[int, U64]


class TranscriptStore:
    """May be used from several threads. What is put is on disk when the call returns."""

    def __init__(
        self,
        kv: KeyValueStore,
        limit: int = MAX_TRANSCRIPTS,
        attempts: int = MAX_ATTEMPTS,
        contradictions: int = MAX_CONTRADICTIONS,
    ) -> None:
        """Raises CorruptError, MalformedError."""
        self._kv = kv
        self._limits = (limit, attempts, contradictions)
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, KeptTranscript] = OrderedDict()
        for key, value in kv.iterate(_TRANSCRIPT):
            self._kept[int.from_bytes(key[1:], "big")] = decode(_Row, value, 2 * MAX_BYTES).about
        self._next = 1 + max(self._kept, default=-1)
        known = [(decode(_Attempts, value), key) for key, value in kv.iterate(_ATTEMPTS)]
        self._attempts = OrderedDict((key, row) for row, key in sorted(known, key=lambda pair: pair[0].number))
        self._counter = 1 + max((row.number for row in self._attempts.values()), default=-1)
        self._evidence = [key for key, _ in kv.iterate(_EVIDENCE)]

    def close(self) -> None:
        self._kv.close()

    # Transcripts

    def put(self, height: Height, data: bytes) -> KeptTranscript:
        """A transcript of this node. Raises what core.verification.audit_evidence.read_record raises, StorageError."""
        record = read_record(data)
        kept = KeptTranscript(
            Digest(hashlib.sha256(data).digest()), height, record.purpose, record.task_id, record.model_commitment,
            record.result, record.head, len(data),
        )  # fmt: skip
        with self._lock:
            gone = list(self._kept)[: max(0, len(self._kept) + 1 - self._limits[0])]
            self._kv.put_batch({_number(self._next): encode(_Row(kept, data))}, [_number(number) for number in gone])
            for number in gone:
                del self._kept[number]
            self._kept[self._next] = kept
            self._next += 1
        return kept

    def listed(self, height: Height, task_id: TaskId | None) -> tuple[KeptTranscript, ...]:
        """The audits of a height and the stored checks of its task, oldest first."""
        with self._lock:
            kept = tuple(self._kept.values())
        return tuple(
            one
            for one in kept
            if (one.height == height and one.purpose == Purpose.AUDIT)
            or (one.task_id == task_id and one.purpose == Purpose.STORED_CHECK)
        )

    def get(self, digest: Digest) -> bytes:
        """The transcript's bytes. Raises NotFoundError, CorruptError."""
        with self._lock:
            number = next((n for n, one in self._kept.items() if one.digest == digest), None)
        data = None if number is None else self._kv.get(_number(number))
        if data is None:
            raise NotFoundError(f"no transcript {short(digest)} here: this node keeps its own last {self._limits[0]}")
        return decode(_Row, data, 2 * MAX_BYTES).data

    # Attempts

    def attempts(self, task_id: TaskId, commitment: ModelCommitment) -> int:
        """Attempts at auditing this claim that this node has begun, in this life and former ones."""
        row = self._attempts.get(_ATTEMPTS + task_id + commitment)
        return 0 if row is None else row.count

    def begin(self, task_id: TaskId, commitment: ModelCommitment, attempt: int) -> None:
        """Before the first byte of ``attempt`` leaves. Raises StorageError."""
        key = _ATTEMPTS + task_id + commitment
        with self._lock:
            known = self._attempts.get(key)
            row = _Attempts(max(attempt + 1, 0 if known is None else known.count), self._counter)
            gone = [k for k in self._attempts if k != key][: max(0, len(self._attempts) + 1 - self._limits[1])]
            self._kv.put_batch({key: encode(row)}, gone)
            for old in gone:
                del self._attempts[old]
            self._counter += 1
            self._attempts[key] = row
            self._attempts.move_to_end(key)

    # Answers that contradict one another

    def put_contradiction(self, height: Height, found: Contradiction) -> None:
        """Kept for `explain`. Raises StorageError."""
        key = _EVIDENCE + height.to_bytes(8, "big") + found.first.answer.model_commitment
        with self._lock:
            if key in self._evidence:
                return
            gone = sorted(self._evidence)[: max(0, len(self._evidence) + 1 - self._limits[2])]
            self._kv.put_batch({key: encode(found)}, gone)
            self._evidence = [*(k for k in self._evidence if k not in gone), key]

    def contradictions(self, height: Height) -> tuple[Contradiction, ...]:
        return tuple(self._contradictions(height))

    def _contradictions(self, height: Height) -> Iterator[Contradiction]:
        for _, value in self._kv.iterate(_EVIDENCE + height.to_bytes(8, "big")):
            yield decode(Contradiction, value)


def open_transcripts(data_dir: Path, genesis: Genesis, node: NodeId) -> TranscriptStore:
    """The folder ``audits`` of a node. Raises LockedError, WrongChainError, CorruptError, StorageFullError."""
    return TranscriptStore(LevelDb(data_dir / "audits", store_meta(genesis, node)))


def _number(number: int) -> bytes:
    return _TRANSCRIPT + number.to_bytes(8, "big")
