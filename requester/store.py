"""What a requester keeps on disk: tasks, their secrets, one-use marks, sessions, won models.

Secrets (decryption key and test rows) are files of their own that only the owner can read; everything else is in the key-value
store. Sessions are kept as their coins and the digests of what was received: with the caller sending the same messages again,
the same replies are computed after any restart (docs/adr/0050).
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np

from core.chain.transaction import PublishTask
from core.codec import BOOL, DIGEST, PUBLIC_KEY, U8, U32, U64, Fixed, Maybe, Seq, Text, Var, decode, encode
from core.crypto.homomorphic import SecretKey
from core.errors import BudgetError, CorruptError, InputError, StorageError
from core.ids import AccountId, Correct, Height, ModelCommitment, TaskId
from core.ports import Rng
from core.verification.model_file import MAX_MODEL_FILE
from core.verification.test_set import TestSet
from services.runtime.durable import write_private
from services.storage import KeyValueStore

__all__ = ["RequesterStore", "SessionCoins", "SessionRecord", "TaskRecord", "TaskSecret", "TaskSecrets", "WonModel"]

DOMAIN_COINS: Final = b"pofl/requester/session-coins/1"
MAX_SECRET: Final = 256 << 20
_TASK, _MARK, _SESSION, _MESSAGE, _MODEL, _WON = b"t", b"m", b"s", b"e", b"d", b"w"


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task of ours, from before it is handed in."""

    task_id: Annotated[TaskId, DIGEST]
    number: Annotated[int, U32]
    """Running number of this requester's tasks, from 1."""
    is_auto: Annotated[bool, BOOL]
    published: PublishTask
    warnings: Annotated[tuple[str, ...], Seq(Text(500), 16)]
    height: Annotated[Height | None, Maybe(U64)] = None
    """Of the block that holds it; None while it is not final."""
    is_ended: Annotated[bool, BOOL] = False
    """Won or void, and nothing is left to do."""


@dataclass(frozen=True, slots=True)
class TaskSecret:
    """What decrypts and what is tested."""

    key: SecretKey
    test_set: TestSet


@dataclass(frozen=True, slots=True)
class _SecretFile:
    key: Annotated[bytes, Var(1 << 20)]
    classes: Annotated[int, U32]
    samples: Annotated[int, U32]
    features: Annotated[bytes, Var(MAX_SECRET)]
    """int8, row-major."""
    labels: Annotated[bytes, Var(MAX_SECRET)]
    """uint16, little-endian."""


class TaskSecrets:
    """One file a task, mode 0600, written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, task_id: TaskId, secret: TaskSecret) -> None:
        """On disk when this returns. Raises StorageError."""
        plain = secret.test_set
        labels = plain.labels.astype("<u2").tobytes()
        data = encode(_SecretFile(secret.key.to_bytes(), plain.classes, plain.samples, plain.features.tobytes(), labels))
        path = self._path(task_id)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, data)
        except OSError as error:
            raise StorageError(f"cannot write the secrets of a task to {path}: {error.strerror or error}") from error

    def load(self, task_id: TaskId) -> TaskSecret:
        """Raises CorruptError where the file is not what `save` wrote, or is gone."""
        path = self._path(task_id)
        try:
            stored = decode(_SecretFile, path.read_bytes(), 2 * MAX_SECRET)
            features = np.frombuffer(stored.features, dtype=np.int8).reshape(stored.samples, -1).copy()
            labels = np.frombuffer(stored.labels, dtype="<u2").astype(np.int64)
            return TaskSecret(SecretKey.from_bytes(stored.key), TestSet(features, labels, stored.classes))
        except (OSError, InputError, ValueError) as error:
            raise CorruptError(f"{path} holds no secrets of a task ({error}): restore it, its task cannot go on") from None

    def delete(self, task_id: TaskId) -> None:
        with contextlib.suppress(OSError):
            self._path(task_id).unlink(missing_ok=True)

    def _path(self, task_id: TaskId) -> Path:
        return self._folder / f"{task_id.hex()}.secret"


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One session. ``purpose``: core.verification.transcript.Purpose."""

    purpose: Annotated[int, U8]
    task_id: Annotated[TaskId, DIGEST]
    caller: Annotated[bytes, PUBLIC_KEY]
    session: Annotated[bytes, Fixed(32)]
    seed: Annotated[bytes, Fixed(32)]
    """Of all coins of this session; from the operating system."""
    failure: Annotated[str, Text(300)] = ""
    """Why the session ended before its end; empty otherwise."""

    @property
    def key(self) -> bytes:
        return self.task_id + self.caller + self.session


class SessionCoins:
    """Secret coins of one session (core.ports.Rng): a function of its stored seed and of the message being answered.

    The same message is answered with the same coins after a restart, and no two answered messages share any.
    """

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._index = 0
        self._drawn = 0

    def at(self, index: int) -> None:
        """Before message ``index`` is handled."""
        self._index, self._drawn = index, 0

    def bytes(self, count: int) -> bytes:
        place = self._index.to_bytes(4, "big") + self._drawn.to_bytes(4, "big")
        self._drawn += 1
        return hashlib.shake_256(DOMAIN_COINS + self._seed + place).digest(count)


@dataclass(frozen=True, slots=True)
class WonModel:
    """What a task brought."""

    task_id: Annotated[TaskId, DIGEST]
    winner: Annotated[AccountId, PUBLIC_KEY]
    model_commitment: Annotated[ModelCommitment, DIGEST]
    correct: Annotated[Correct, U32]
    total: Annotated[int, U32]
    height: Annotated[Height, U64]
    model: Annotated[bytes, Var(MAX_MODEL_FILE)]
    """core.verification.model_file."""


class RequesterStore:
    """Typed access to the key-value store. May be used from several threads; writes are on disk when they return."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._lock = threading.Lock()

    # Tasks

    def save_task(self, record: TaskRecord) -> None:
        self._put(_TASK + record.task_id, encode(record))

    def delete_task(self, task_id: TaskId) -> None:
        self._store.put_batch({}, [_TASK + task_id])

    def tasks(self) -> list[TaskRecord]:
        """All of them, oldest first."""
        found = [decode(TaskRecord, value) for _, value in self._store.iterate(_TASK)]
        return sorted(found, key=lambda record: record.number)

    # One-use values and budgets

    def mark(self, key: bytes, session: bytes) -> None:
        """Gives the value or run ``key`` to ``session``, for ever. Raises BudgetError if another session has it."""
        with self._lock:
            owner = self._store.get(_MARK + key)
            if owner is None:
                self._put(_MARK + key, session)
            elif owner != session:
                raise BudgetError("this run or one-use value is used up: another session had it", key=key)

    # Sessions

    def session(self, purpose: int, task_id: TaskId, caller: bytes, session: bytes, rng: Rng) -> SessionRecord:
        """The stored record, or a new one with fresh coins that is not stored yet."""
        fresh = SessionRecord(purpose, task_id, caller, session, rng.bytes(32))
        stored = self._store.get(_SESSION + fresh.key)
        return fresh if stored is None else decode(SessionRecord, stored)

    def received(self, record: SessionRecord) -> list[bytes]:
        """Digests of the messages that were answered, in order."""
        return [value for _, value in self._store.iterate(_MESSAGE + record.key)]

    def add_received(self, record: SessionRecord, index: int, digest: bytes) -> None:
        """Before the replies to message ``index`` leave."""
        self._store.put_batch({_SESSION + record.key: encode(record), _MESSAGE + record.key + index.to_bytes(4, "big"): digest})

    def end_session(self, record: SessionRecord) -> None:
        """``record`` with its failure: nothing is answered in it any more."""
        self._put(_SESSION + record.key, encode(record))

    def forget_sessions(self, task_id: TaskId) -> None:
        """When a task has ended. Its marks stay."""
        keys = [key for prefix in (_SESSION, _MESSAGE) for key, _ in self._store.iterate(prefix + task_id)]
        self._store.put_batch({}, keys)

    # Models

    def save_decrypted(self, task_id: TaskId, model_commitment: ModelCommitment, model: bytes) -> None:
        """A claimed model, in case it wins."""
        self._put(_MODEL + task_id + model_commitment, model)

    def decrypted(self, task_id: TaskId, model_commitment: ModelCommitment) -> bytes | None:
        return self._store.get(_MODEL + task_id + model_commitment)

    def save_won(self, won: WonModel) -> None:
        """Replaces every other decrypted model of the task: losing models are nobody's."""
        others = [key for key, _ in self._store.iterate(_MODEL + won.task_id)]
        self._store.put_batch({_WON + won.task_id: encode(won)}, others)

    def won(self, task_id: TaskId) -> WonModel | None:
        stored = self._store.get(_WON + task_id)
        return None if stored is None else decode(WonModel, stored)

    def forget_decrypted(self, task_id: TaskId) -> None:
        self._store.put_batch({}, [key for key, _ in self._store.iterate(_MODEL + task_id)])

    def _put(self, key: bytes, value: bytes) -> None:
        self._store.put_batch({key: value})
