"""Clients of the platform and of a requester's own service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grpc import aio
from pofl.task.v1 import task_pb2 as pb
from pofl.task.v1 import task_pb2_grpc as rpc

from core.chain.block import Accuracy
from core.chain.transaction import Activation, SignedTransaction
from core.codec import encode
from core.errors import MalformedError
from core.ids import AccountId, Amount, Correct, Height, ModelCommitment, TaskId, TxId
from core.verification.model_file import load_model
from core.verification.scored_model import ScoredModel
from services.rpc import convert_chain as convert
from services.rpc.channel import call
from services.rpc.errors import translate
from services.rpc.views import TaskPhase, TaskView

__all__ = ["Activity", "FetchedModel", "OwnTask", "PlatformClient", "Published", "RequesterClient", "submit_task"]

TIMEOUT: Final = 10.0
STREAM_TIMEOUT: Final = 3600.0
PUBLISH_TIMEOUT: Final = 300.0
"""Encrypting a large test set takes a while."""


@dataclass(frozen=True, slots=True)
class Published:
    task_id: TaskId
    tx_id: TxId
    leak_bits: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OwnTask:
    """One of a requester's tasks, and what became of it."""

    task_id: TaskId
    name: str
    phase: TaskPhase | None
    """None while the chain does not know the task."""
    model_ready: bool
    correct: Correct
    total: int
    winner: AccountId | None
    height: Height | None


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A winning model with what its work block says of it."""

    task_id: TaskId
    model: ScoredModel
    accuracy: Accuracy
    height: Height
    model_commitment: ModelCommitment


@dataclass(frozen=True, slots=True)
class Activity:
    """One step of a session with the requester."""

    kind: str
    task_id: TaskId
    peer: bytes
    step: str
    milliseconds: int
    """Since the session began there."""


async def submit_task(channel: aio.Channel, transaction: SignedTransaction, timeout: float, *, peer: str = "") -> None:
    """Hands a signed PublishTask to a platform. Idempotent. Raises TransactionError with its reason, and what `call` raises."""
    request = pb.SubmitTaskRequest(signed_transaction=encode(transaction))
    await call(rpc.PlatformServiceStub(channel).SubmitTask, request, timeout, peer=peer, idempotent=True)


class PlatformClient:
    """PlatformService."""

    def __init__(self, channel: aio.Channel, name: str = "the platform") -> None:
        self._stub = rpc.PlatformServiceStub(channel)
        self._name = name

    async def tasks(self, phases: Sequence[TaskPhase] = (), limit: int = 100) -> tuple[TaskView, ...]:
        request = pb.ListTasksRequest(phases=[convert.phase_to_proto(p) for p in phases], limit=limit)
        with translate(self._name):
            answer = await self._stub.ListTasks(request, timeout=TIMEOUT)
        return tuple(convert.task_from_proto(task) for task in answer.tasks)

    async def current_task(self) -> TaskView | None:
        with translate(self._name):
            answer = await self._stub.GetCurrentTask(pb.GetCurrentTaskRequest(), timeout=TIMEOUT)
        return convert.task_from_proto(answer.task) if answer.HasField("task") else None


class RequesterClient:
    """RequesterService, for the requester's owner."""

    def __init__(self, channel: aio.Channel, name: str = "the requester") -> None:
        self._stub = rpc.RequesterServiceStub(channel)
        self._name = name

    async def publish(
        self, name: str, test_set: Path, practice_set: Path, hidden: Sequence[int], activation: Activation,
        reward: Amount, bond: Amount, weight_bits: int = 0, leak_bits: int = 0, cuts_micro: Sequence[int] = (),
        buckets: int = 0,
    ) -> Published:  # fmt: skip
        """Prepare a task from files on the requester's machine and publish it; with cut points or buckets, a regression."""
        request = pb.PublishTaskRequest(
            name=name, test_set=str(test_set), practice_set=str(practice_set), hidden=hidden,
            activation=convert.activation_to_proto(activation), weight_bits=weight_bits, reward=reward, bond=bond,
            leak_bits=leak_bits, cuts_micro=cuts_micro, buckets=buckets,
        )  # fmt: skip
        with translate(self._name):
            answer = await self._stub.PublishTask(request, timeout=PUBLISH_TIMEOUT)
        return Published(
            TaskId(convert.exact("task_id", answer.task_id)), TxId(convert.exact("tx_id", answer.tx_id)),
            answer.leak_bits, tuple(answer.warnings),
        )  # fmt: skip

    async def own_tasks(self) -> tuple[OwnTask, ...]:
        with translate(self._name):
            answer = await self._stub.ListOwnTasks(pb.ListOwnTasksRequest(), timeout=TIMEOUT)
        return tuple(_own_task(task) for task in answer.tasks)

    async def fetch_model(self, task_id: TaskId | None = None) -> FetchedModel:
        """The winning model of a task, or of the newest won one."""
        with translate(self._name):
            answer = await self._stub.FetchModel(pb.FetchModelRequest(task_id=task_id or b""), timeout=TIMEOUT)
        return FetchedModel(
            TaskId(convert.exact("task_id", answer.task_id)),
            load_model(answer.model),
            Accuracy(Correct(answer.accuracy.correct), answer.accuracy.total),
            Height(answer.height),
            ModelCommitment(convert.exact("model_commitment", answer.model_commitment)),
        )

    async def watch_activity(self) -> AsyncIterator[Activity]:
        """Steps of evaluations, audits and checks from now on, for an hour or until the connection ends."""
        with translate(self._name):
            async for answer in self._stub.WatchActivity(pb.WatchActivityRequest(), timeout=STREAM_TIMEOUT):
                yield Activity(
                    answer.kind, TaskId(answer.task_id), answer.peer, answer.step, int(answer.milliseconds)
                )  # fmt: skip


def _own_task(message: pb.OwnTask) -> OwnTask:
    try:
        phase = TaskPhase(message.phase) if message.phase else None
    except ValueError:
        raise MalformedError(f"phase: unknown value {message.phase}", field="phase") from None
    return OwnTask(
        TaskId(convert.exact("task_id", message.task_id)), message.name, phase, message.model_ready,
        Correct(message.correct), message.total,
        AccountId(convert.exact("winner", message.winner)) if message.winner else None,
        Height(message.height) if message.height else None,
    )  # fmt: skip
