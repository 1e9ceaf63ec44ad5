"""The encrypted test sets of tasks: fetched, checked, kept, served (design: verification, section 2).

For every live task each node fetches the blobs under its test root from the requester, or from other nodes. A validator also
checks with her help that the label scores of every row sum to one, and then signs ``Stored``: once 2/3 did, the task is open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from grpc import aio

from core.chain.state import State, Task, TaskPhase
from core.chain.transaction import Payload, Stored
from core.crypto.homomorphic import PARAMS, PublicKey
from core.errors import InputError, PoflError, TransactionError
from core.ids import Digest, Height, NodeId, TaskId, TxId
from core.verification.task import TaskContext, check_spec
from core.verification.test_set import EncryptedTestSet
from node.auditor import Auditor
from node.blob_room import listed_blobs
from node.outside import Channels
from services.rpc.blob_store import BlobStore
from services.rpc.blobs import fetch
from services.runtime.cpu import CpuPool
from services.runtime.logging import logger, scope

__all__ = ["LoadedSet", "TaskSets"]

log = logger(__name__)

FETCH_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 0.5
LONGEST_RETRY_SECONDS: Final = 10.0
PARALLEL: Final = 4
"""Blobs of one task that are fetched at once."""


@dataclass(frozen=True)
class LoadedSet:
    """A task's test set in memory, ready for a check."""

    task: TaskContext
    public_key: PublicKey
    test_set: EncryptedTestSet


class TaskSets:
    """One background job for each live task."""

    def __init__(
        self,
        node: NodeId,
        blobs: BlobStore,
        channels: Channels,
        auditor: Auditor,
        cpu: CpuPool,
        peers: Callable[[], Sequence[tuple[str, aio.Channel]]],
        submit: Callable[[Payload], TxId],
    ) -> None:
        """``peers``: other nodes that can be called now. ``submit``: sends a transaction of this node."""
        self._node = node
        self._blobs = blobs
        self._channels = channels
        self._auditor = auditor
        self._cpu = cpu
        self._peers = peers
        self._submit = submit
        self._jobs: dict[TaskId, asyncio.Task[None]] = {}
        self._checked: set[TaskId] = set()
        self._state: State | None = None
        self._loaded: tuple[TaskId, LoadedSet] | None = None
        self._loading = asyncio.Lock()

    def follow(self, state: State) -> None:
        """After every block: begin with new tasks, end those that ended, sign what was checked."""
        before, self._state = self._state, state
        for task_id in state.live:
            if task_id not in self._jobs:
                job = asyncio.create_task(self._work_on(state.tasks[task_id]), name=f"test set {task_id.hex()[:8]}")
                self._jobs[task_id] = job
            elif task_id in self._checked:
                self._sign(task_id)
        for task_id in [t for t in self._jobs if t not in state.live]:
            self._jobs.pop(task_id).cancel()
            self._checked.discard(task_id)
        if before is not None:
            # Also those that never had a claim to settle: else whoever publishes tasks for nobody fills the quota for ever.
            for task_id in [t for t in (*before.live, *before.settling) if t not in state.live and t not in state.settling]:
                self._forget(state, task_id)

    async def load(self, task: TaskContext) -> LoadedSet:
        """A task's test set. Raises NotFoundError if it is not all here, CryptoError, MalformedError, LimitError."""
        async with self._loading:
            if self._loaded is None or self._loaded[0] != task.task_id:
                self._loaded = (task.task_id, await self._cpu.run(self._load, task))
            return self._loaded[1]

    async def stop(self) -> None:
        for job in self._jobs.values():
            job.cancel()
        await asyncio.gather(*self._jobs.values(), return_exceptions=True)
        self._jobs.clear()

    async def _work_on(self, task: Task) -> None:
        """Fetch, check, sign. Ends when done, or when what is published can never be right."""
        assert self._state is not None
        context = TaskContext(self._state.chain_id, task.task_id, task.requester, task.published.spec)
        with scope(task=task.task_id):
            try:
                check_spec(context.spec)
            except InputError as error:
                log.warning("the task cannot be verified, it will not be stored", error=error)
                return
            started = time.monotonic()
            await self._fetch_all(context)
            log.info("test set is here", seconds=round(time.monotonic() - started, 2), blobs=len(context.spec.test_blobs))
            if task.phase is TaskPhase.PENDING and any(v.node_id == self._node for v in self._state.validators):
                await self._check(context)

    async def _check(self, context: TaskContext) -> None:
        assert self._state is not None
        height = Height(self._state.height + 1)
        try:
            loaded = await self.load(context)
            seconds = await self._auditor.check_stored(loaded.task, loaded.public_key, loaded.test_set, height)
        except PoflError as error:
            log.warning("the stored check did not pass: this node does not sign Stored", error=error)
            return
        log.info("stored check passed", seconds=round(seconds, 2))
        self._checked.add(context.task_id)
        self._sign(context.task_id)

    def _sign(self, task_id: TaskId) -> None:
        state = self._state
        if state is None:
            return
        task = state.tasks.get(task_id)
        if task is None or task.phase is not TaskPhase.PENDING or self._node in task.stored_by:
            return
        try:
            self._submit(Stored(task_id))
        except TransactionError as error:
            log.debug("Stored was not taken", task=task_id, reason=error.reason, error=error)

    async def _fetch_all(self, context: TaskContext) -> None:
        """Every blob, from whoever has it, for as long as it takes: the task's end cancels this."""
        limits = dict.fromkeys(context.spec.test_blobs, context.row_bytes)
        limits[context.spec.public_key_blob] = 2 * PARAMS.poly_bytes
        gate = asyncio.Semaphore(PARALLEL)

        async def one(digest: Digest, limit: int) -> None:
            async with gate:
                await self._fetch(context.spec.endpoint, digest, limit)

        await asyncio.gather(*(one(digest, limit) for digest, limit in limits.items()))

    async def _fetch(self, endpoint: str, digest: Digest, limit: int) -> None:
        pause = RETRY_SECONDS
        while True:
            try:
                await fetch(
                    await self._channels.get(endpoint, "requester"), digest, limit, self._blobs, FETCH_SECONDS, peer=endpoint
                )
            except PoflError as error:
                log.debug("the requester did not give a blob", blob=digest, error=error)
            else:
                return
            for name, channel in self._peers():
                try:
                    await fetch(channel, digest, limit, self._blobs, FETCH_SECONDS, peer=name)
                except PoflError as error:
                    log.debug("a node did not give a blob", blob=digest, peer=name, error=error)
                else:
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_RETRY_SECONDS)

    def _load(self, task: TaskContext) -> LoadedSet:
        key = task.public_key(self._blobs.get(task.spec.public_key_blob))
        blobs = [self._blobs.get(digest, verify=False) for digest in task.spec.test_blobs]
        return LoadedSet(task, key, EncryptedTestSet.load(task, blobs))

    def _forget(self, state: State, task_id: TaskId) -> None:
        """Blobs of a task that is over, unless another live task lists the same."""
        task = state.tasks.get(task_id)
        if task is None:
            return
        if self._loaded is not None and self._loaded[0] == task_id:
            self._loaded = None
        kept = {d for t in (*state.live, *state.settling) for d in listed_blobs(state.tasks[t])}
        for digest in listed_blobs(task):
            if digest not in kept:
                self._blobs.delete(digest)
