"""What the chain says about pools, claims and validators, as the machines of core.verification ask for it.

One stream of task updates feeds it; between two blocks every answer comes from memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from core.chain.state import Validator
from core.chain.vote import SignedVerdict
from core.errors import UnavailableError
from core.ids import AccountId, Digest, Height, ModelCommitment, NodeId, TaskId
from requester.agreement import Agreement, Settled
from requester.turns import ClaimTurns
from services.rpc.chain_client import ChainClient
from services.rpc.views import EntryView, TaskPhase, TaskView
from services.runtime.logging import logger

__all__ = ["Follower", "TaskStanding"]

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    height: Height
    tasks: Mapping[TaskId, TaskView] = field(default_factory=dict)


class Follower:
    """Unfinished tasks as of the newest block that changed one. Read from any thread, changed by `run` only."""

    def __init__(
        self, chain: ChainClient, chain_id: Digest, validators: Sequence[Validator], agreement: Agreement | None = None
    ) -> None:
        """``agreement``: where rankings are asked for; without it the one node that is followed is believed."""
        self._chain = chain
        self.validators = frozenset(validator.node_id for validator in validators)
        self.turns = ClaimTurns(chain_id, validators)
        self._seen = _Seen(Height(0), {})
        self._agreement = agreement
        self._settling: dict[TaskId, asyncio.Task[None]] = {}
        self._settled: dict[TaskId, Settled] = {}
        self.version = 0
        """Counts what came in."""
        self._changed = asyncio.Condition()
        self.is_following = False
        """Whether a first update has come."""

    def replace_validators(self, validators: Sequence[Validator]) -> None:
        """Who votes from now on; claims that are being looked at keep theirs."""
        self.validators = frozenset(validator.node_id for validator in validators)
        self.turns.replace_validators(validators)
        if self._agreement is not None:
            self._agreement.replace_validators(len(validators))

    @property
    def height(self) -> Height:
        """Of the newest update."""
        return self._seen.height

    async def run(self) -> None:
        """Follows the chain for ever."""
        try:
            async for update in self._chain.watch_tasks():
                async with self._changed:
                    # A new object each time: other threads may be reading the old one.
                    self._seen = _Seen(update.height, {task.task_id: task for task in update.tasks})
                    self.is_following = True
                    self.version += 1
                    self._changed.notify_all()
                self._settle()
        finally:
            for job in self._settling.values():
                job.cancel()

    def _settle(self) -> None:
        """Ask other nodes for the ranking of each task at its work height; forget those that left it."""
        if self._agreement is None:
            return
        at_work = {task_id for task_id, task in self._seen.tasks.items() if task.phase is TaskPhase.WORK}
        for task_id in [t for t in self._settling if t not in at_work]:
            self._settling.pop(task_id).cancel()
            self._settled.pop(task_id, None)
        for task_id in at_work - self._settling.keys():
            self._settling[task_id] = asyncio.create_task(self._settle_one(self._agreement, task_id), name="ranking")

    async def _settle_one(self, agreement: Agreement, task_id: TaskId) -> None:
        settled = await agreement.settle(task_id)
        async with self._changed:
            self._settled[task_id] = settled
            self.version += 1
            self._changed.notify_all()

    def at_work(self, task_id: TaskId) -> Settled | None:
        """The task at its work height as enough nodes tell it; None before they do, and at other heights."""
        seen = self._seen
        task = seen.tasks.get(task_id)
        if task is None or task.phase is not TaskPhase.WORK:
            return None
        return Settled(Height(seen.height + 1), task) if self._agreement is None else self._settled.get(task_id)

    def task(self, task_id: TaskId) -> TaskView | None:
        """None for a task that is unknown, or has ended."""
        return self._seen.tasks.get(task_id)

    async def wait(self, is_so: Callable[[], bool], timeout: float) -> bool:
        """Until ``is_so``, looked at after each update; whether it came true within ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(is_so)
        except TimeoutError:
            return is_so()
        return True


class TaskStanding:
    """core.verification's PoolStanding and ClaimStanding for one task."""

    def __init__(self, follower: Follower, task_id: TaskId) -> None:
        self._follower = follower
        self._task_id = task_id

    @property
    def phase(self) -> TaskPhase | None:
        task = self._follower.task(self._task_id)
        return None if task is None else task.phase

    def has_entered(self, pool: AccountId) -> bool:
        """Entered the task, and entry has closed."""
        return self._is_between(TaskPhase.TRAINING, TaskPhase.WORK) and self._entry(pool) is not None

    def is_outsider(self, pool: AccountId) -> bool:
        """Entry has closed without this pool: it never can be evaluated."""
        return self._is_between(TaskPhase.TRAINING, TaskPhase.VOID) and self._entry(pool) is None

    def commitment(self, pool: AccountId) -> ModelCommitment | None:
        """The pool's committed model; None until commits have closed."""
        entry = self._entry(pool)
        return entry.model_commitment if entry and self._is_between(TaskPhase.EVALUATION, TaskPhase.WORK) else None

    def is_claimed(self, pool: AccountId, model_commitment: ModelCommitment) -> bool:
        """Claimed, and this is the task's work height, as enough nodes tell."""
        settled = self._follower.at_work(self._task_id)
        return settled is not None and any(
            entry.pool == pool and entry.correct is not None and entry.model_commitment == model_commitment
            for entry in settled.task.entries
        )

    def check_turn(self, pool: AccountId, model_commitment: ModelCommitment, higher: tuple[SignedVerdict, ...]) -> None:
        """Raises TurnError, MalformedError; UnavailableError if this is not the task's work height."""
        settled = self._follower.at_work(self._task_id)
        if settled is None:
            raise UnavailableError("claims are still open, the task has ended, or too few nodes tell its ranking yet")
        self._follower.turns.check(settled.height, settled.task, model_commitment, higher)

    def is_validator(self, validator: NodeId) -> bool:
        return validator in self._follower.validators

    def _entry(self, pool: AccountId) -> EntryView | None:
        task = self._follower.task(self._task_id)
        return None if task is None else next((entry for entry in task.entries if entry.pool == pool), None)

    def _is_between(self, first: TaskPhase, last: TaskPhase) -> bool:
        phase = self.phase
        return phase is not None and first <= phase <= last
