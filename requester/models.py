"""The requester's side of each open task, and the model that she gets when it is won."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from core.crypto.homomorphic import SecretKey
from core.crypto.signing import KeyPair
from core.errors import NotFoundError, PoflError, UnavailableError
from core.ids import AccountId, Digest, ModelCommitment, TaskId, short
from core.verification import body as bodies
from core.verification.audit_requester import AnswerBook, ModelAnswer
from core.verification.model_file import dump_model
from core.verification.task import TaskContext
from core.verification.test_set import TestSet
from requester.store import RequesterStore, TaskRecord, TaskSecrets, WonModel
from services.rpc.channel import connect
from services.rpc.handshake import LocalIdentity
from services.rpc.peer_client import fetch_vm
from services.rpc.tls import TlsFiles
from services.rpc.views import TaskView
from services.runtime.cpu import run_cpu
from services.runtime.logging import logger

__all__ = ["BodySource", "TaskBooks", "TaskSides", "won_model"]

log = logger(__name__)

BODY_TIMEOUT: Final = 10.0
"""Seconds that one process has to send a body."""


class _KeptBook(AnswerBook):
    """Decrypts and scores each claimed model once, however many validators ask at a time, and keeps it on disk."""

    def __init__(self, task: TaskContext, sk: SecretKey, test_set: TestSet, key: KeyPair, store: RequesterStore) -> None:
        super().__init__(task, sk, test_set, key)
        self._lock = threading.Lock()
        self._task_id, self._store = task.task_id, store

    def decide(self, pool: AccountId, model_commitment: ModelCommitment, body: bytes) -> ModelAnswer:
        with self._lock:
            is_new = self.find(model_commitment) is None
            answer = super().decide(pool, model_commitment, body)
            if is_new and answer.model is not None:
                self._store.save_decrypted(self._task_id, model_commitment, dump_model(answer.model))
            return answer


@dataclass(frozen=True, slots=True, eq=False)
class TaskSides:
    """All that sessions of one task share."""

    task: TaskContext
    sk: SecretKey
    test_set: TestSet
    book: AnswerBook


class TaskBooks:
    """The open tasks of this requester, with their secrets in memory."""

    def __init__(self, chain_id: Digest, key: KeyPair, store: RequesterStore, secrets: TaskSecrets) -> None:
        self._chain_id, self._key, self._store, self._secrets = chain_id, key, store, secrets
        self._open: dict[TaskId, TaskSides] = {}

    def find(self, task_id: TaskId) -> TaskSides | None:
        return self._open.get(task_id)

    def open(self, record: TaskRecord) -> TaskSides:
        """From disk. Raises CorruptError."""
        secret = self._secrets.load(record.task_id)
        task = TaskContext(self._chain_id, record.task_id, AccountId(self._key.public_key), record.published.spec)
        book = _KeptBook(task, secret.key, secret.test_set, self._key, self._store)
        sides = self._open[record.task_id] = TaskSides(task, secret.key, secret.test_set, book)
        return sides

    def close(self, task_id: TaskId) -> None:
        self._open.pop(task_id, None)


class BodySource:
    """Asks nodes, then the pool itself, for the body behind a commitment."""

    def __init__(self, identity: LocalIdentity, tls: TlsFiles | None, nodes: Sequence[str]) -> None:
        self._identity, self._tls, self._nodes = identity, tls, nodes

    async def fetch(self, model_commitment: ModelCommitment, pool_endpoint: str) -> bytes:
        """Unchecked. Raises UnavailableError when nobody gives it."""
        failure = "nobody was asked"
        for target, role in (*((node, "node") for node in self._nodes), (pool_endpoint, "pool")):
            try:
                channel = connect(target, self._tls, expect_role=role, caller=self._identity.caller)
                try:
                    return await fetch_vm(channel, model_commitment, BODY_TIMEOUT, peer=target)
                finally:
                    await channel.close(None)
            except PoflError as error:
                failure = f"{target}: {error.message}"
        raise UnavailableError(f"nobody gives the body of model {short(model_commitment)} ({failure})")


async def won_model(task: TaskView, sides: TaskSides, store: RequesterStore, source: BodySource) -> WonModel:
    """The model that won ``task``, from her own audits, or from a body fetched and checked against ``c_W``.

    Raises:
        UnavailableError: nobody gives the body now.
        MalformedError: the body is no model of the task: validators would not have passed it.
        NotFoundError: the chain names no winner.
    """
    entry = next((entry for entry in task.entries if entry.pool == task.winner), None)
    if entry is None or entry.model_commitment is None or entry.correct is None or task.ended_height is None:
        raise NotFoundError(f"task {short(task.task_id)} is won, but the chain names no winning claim")
    c_w = entry.model_commitment
    model = store.decrypted(task.task_id, c_w)
    if model is None:
        model = await _from_body(sides, entry.pool, c_w, await source.fetch(c_w, entry.endpoint))
    won = WonModel(task.task_id, entry.pool, c_w, entry.correct, task.spec.samples, task.ended_height, model)
    log.info("model received", task=short(task.task_id), winner=short(entry.pool), correct=entry.correct, total=won.total)
    return won


async def _from_body(sides: TaskSides, pool: AccountId, c_w: ModelCommitment, body: bytes) -> bytes:
    task = sides.task
    if bodies.commitment(task.chain_id, task.task_id, pool, body) != c_w:
        raise UnavailableError(f"what was given is not the body of model {short(c_w)}")
    return dump_model(await run_cpu(bodies.decrypt_body, sides.sk, body, task.family))
