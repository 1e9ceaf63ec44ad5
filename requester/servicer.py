"""The requester's gRPC services: sessions with pools and validators, and her owner's wishes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from grpc import aio
from pofl.chain.v1 import chain_pb2
from pofl.task.v1 import task_pb2 as pb
from pofl.task.v1 import task_pb2_grpc as rpc
from pofl.verify.v1 import verify_pb2, verify_pb2_grpc

from core.chain.transaction import MAX_CUTS
from core.errors import AuthError, LimitError, MalformedError, NotFoundError, PoflError, SequenceError
from core.ids import TaskId
from core.verification.messages import Envelope
from core.verification.transcript import Purpose
from requester.sessions import Sessions
from requester.store import RequesterStore, TaskRecord, WonModel
from requester.tasks import Desk, Order
from services.rpc import blobs
from services.rpc.auth import caller
from services.rpc.convert_fields import exact
from services.rpc.convert_task import activation_from_proto
from services.rpc.convert_verify import envelope_from_proto, envelope_to_proto

__all__ = ["OWNER", "RULES", "VERIFY", "OwnerServicer", "VerifyServicer"]

VERIFY: Final = verify_pb2.DESCRIPTOR.services_by_name["VerifyService"].full_name
OWNER: Final = pb.DESCRIPTOR.services_by_name["RequesterService"].full_name
RULES: Final = {
    f"{VERIFY}/Evaluate": ["pool"],
    f"{VERIFY}/Audit": ["node"],
    f"{VERIFY}/CheckStored": ["node"],
    f"{blobs.SERVICE}/Stat": ["node", "pool", "requester"],
    f"{blobs.SERVICE}/Read": ["node", "pool", "requester"],
    OWNER: ["user"],
}
DRAIN_S: Final = 2.0
QUIET_S: Final = 0.1
MAX_PATH: Final = 4096
MAX_NAME: Final = 64
MAX_HIDDEN: Final = 8
DEFAULT_WEIGHT_BITS: Final = 10
Context = aio.ServicerContext[Any, Any]


class VerifyServicer(verify_pb2_grpc.VerifyServiceServicer):
    """Pools and validators. Who calls is in the certificate; what they may do, on the chain."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def Evaluate(  # noqa: N802
        self, request_iterator: AsyncIterator[verify_pb2.Envelope], context: Context
    ) -> AsyncIterator[verify_pb2.Envelope]:
        return self._serve(Purpose.EVALUATION, request_iterator, context)

    def Audit(  # noqa: N802
        self, request_iterator: AsyncIterator[verify_pb2.Envelope], context: Context
    ) -> AsyncIterator[verify_pb2.Envelope]:
        return self._serve(Purpose.AUDIT, request_iterator, context)

    def CheckStored(  # noqa: N802
        self, request_iterator: AsyncIterator[verify_pb2.Envelope], context: Context
    ) -> AsyncIterator[verify_pb2.Envelope]:
        return self._serve(Purpose.STORED_CHECK, request_iterator, context)

    async def _serve(
        self, purpose: Purpose, requests: AsyncIterator[verify_pb2.Envelope], context: Context
    ) -> AsyncIterator[verify_pb2.Envelope]:
        who = caller(context)
        if who.account is None:
            raise AuthError(f"the certificate of {who} names no account: sessions are with accounts of the chain")
        replies = self._sessions.serve(purpose, who.account, _envelopes(requests))
        try:
            async for reply in replies:
                yield envelope_to_proto(reply)
        except PoflError:
            await _drain(requests)
            raise
        finally:
            # At once, not when it is collected: it may hold a place that others wait for.
            await replies.aclose()  # type: ignore[attr-defined]


async def _drain(requests: AsyncIterator[verify_pb2.Envelope]) -> None:
    """Reads what the caller is still sending, for a moment.

    A stream that ends while the other side is in the middle of a large message arrives there as a failure of the transport,
    without the refusal's code and sentence.
    """
    with contextlib.suppress(TimeoutError, StopAsyncIteration):
        async with asyncio.timeout(DRAIN_S):
            while True:
                async with asyncio.timeout(QUIET_S):
                    await anext(requests)


async def _envelopes(requests: AsyncIterator[verify_pb2.Envelope]) -> AsyncIterator[Envelope]:
    async for request in requests:
        yield envelope_from_proto(request)


class OwnerServicer(rpc.RequesterServiceServicer):
    """The owner of this requester."""

    def __init__(self, desk: Desk, store: RequesterStore, sessions: Sessions) -> None:
        self._desk, self._store, self._sessions = desk, store, sessions

    async def PublishTask(self, request: pb.PublishTaskRequest, context: Context) -> pb.PublishTaskResponse:  # noqa: N802
        published = await self._desk.publish(_order(request))
        record = published.record
        return pb.PublishTaskResponse(
            task_id=record.task_id, tx_id=published.tx_id, leak_bits=record.published.spec.leak_bits, warnings=record.warnings
        )

    async def ListOwnTasks(  # noqa: N802
        self, request: pb.ListOwnTasksRequest, context: Context
    ) -> pb.ListOwnTasksResponse:
        return pb.ListOwnTasksResponse(tasks=[await self._own(record) for record in self._desk.listed()])

    async def FetchModel(self, request: pb.FetchModelRequest, context: Context) -> pb.FetchModelResponse:  # noqa: N802
        won = self._newest_won() if not request.task_id else await self._won(TaskId(exact("task_id", request.task_id)))
        return pb.FetchModelResponse(
            task_id=won.task_id, model=won.model, accuracy=chain_pb2.Accuracy(correct=won.correct, total=won.total),
            height=won.height, model_commitment=won.model_commitment,
        )  # fmt: skip

    async def WatchActivity(  # noqa: N802
        self, request: pb.WatchActivityRequest, context: Context
    ) -> AsyncIterator[pb.WatchActivityResponse]:
        async for activity in self._sessions.activity.watch():
            yield pb.WatchActivityResponse(
                kind=activity.kind, task_id=activity.task_id, peer=activity.peer, step=activity.step,
                milliseconds=activity.milliseconds,
            )  # fmt: skip

    async def _own(self, record: TaskRecord) -> pb.OwnTask:
        phase = await self._desk.phase_of(record)
        won = self._store.won(record.task_id)
        task = pb.OwnTask(
            task_id=record.task_id, name=record.published.spec.name, model_ready=won is not None,
            total=record.published.spec.samples,
        )  # fmt: skip
        if phase is not None:
            task.phase = chain_pb2.TaskPhase.ValueType(phase)
        if won is not None:
            task.correct, task.winner, task.height = won.correct, won.winner, won.height
        return task

    def _newest_won(self) -> WonModel:
        for record in reversed(self._desk.listed()):
            if (won := self._store.won(record.task_id)) is not None:
                return won
        raise SequenceError("no task of this requester has been won yet")

    async def _won(self, task_id: TaskId) -> WonModel:
        won = self._store.won(task_id)
        if won is not None:
            return won
        record = next((record for record in self._desk.listed() if record.task_id == task_id), None)
        if record is None:
            raise NotFoundError(f"task {task_id.hex()} is not a task of this requester", task_id=task_id)
        phase = await self._desk.phase_of(record)
        stands = "not on chain yet" if phase is None else f"in phase {phase.name.lower()}"
        raise SequenceError(f"task {task_id.hex()[:8]} is {stands}: its model is here when its work block is final")


def _order(request: pb.PublishTaskRequest) -> Order:
    """Raises MalformedError, LimitError."""
    for name in ("test_set", "practice_set"):
        path = getattr(request, name)
        if not path or len(path) > MAX_PATH:
            raise MalformedError(f"{name}: a path of 1 to {MAX_PATH} characters is needed", field=name)
    if not 0 < len(request.name.encode()) <= MAX_NAME:
        raise MalformedError(f"name: 1 to {MAX_NAME} bytes are needed, got {len(request.name.encode())}", field="name")
    if len(request.hidden) > MAX_HIDDEN:
        raise LimitError(f"hidden: {len(request.hidden)} layers, at most {MAX_HIDDEN}", field="hidden")
    if len(request.cuts_micro) > MAX_CUTS:
        raise LimitError(f"cuts_micro: {len(request.cuts_micro)} cut points, at most {MAX_CUTS}", field="cuts_micro")
    if request.reward < 1 or request.bond < 0:
        raise MalformedError(f"reward {request.reward} must be positive and bond {request.bond} not negative", field="reward")
    return Order(
        request.name, Path(request.test_set), Path(request.practice_set), tuple(request.hidden),
        activation_from_proto(request.activation), request.reward, request.bond,
        request.weight_bits or DEFAULT_WEIGHT_BITS, request.leak_bits, 0, tuple(request.cuts_micro), request.buckets,
    )  # fmt: skip
