"""PlatformService: the chain's task list for requesters, pools and people (paper, section II).

The platform decides nothing: which task is current is a rule over the chain's state, so any number of platforms may run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from grpc import aio
from pofl.task.v1 import task_pb2 as pb
from pofl.task.v1 import task_pb2_grpc as rpc

from core.chain.block import MAX_TRANSACTION
from core.chain.transaction import PublishTask, SignedTransaction, task_id
from core.codec import decode
from core.errors import MalformedError, NotFoundError
from core.ids import AccountId, TaskId
from services.rpc import convert_chain as convert
from services.rpc.chain_client import ChainClient
from services.rpc.views import TaskPhase
from services.runtime.metrics import counter, gauge

__all__ = ["SERVICE", "PlatformServicer"]

SERVICE = pb.DESCRIPTOR.services_by_name["PlatformService"].full_name
MAX_LISTED = 1_000
SUBMITTED = counter("platform_tasks_submitted", "Tasks that this platform handed to a node.")
WATCHERS = gauge("platform_watchers", "Callers that watch the task list.")
Context = aio.ServicerContext[Any, Any]


class PlatformServicer(rpc.PlatformServiceServicer):
    """Forwards to the nodes, checking what it forwards."""

    def __init__(self, chain: ChainClient) -> None:
        self._chain = chain

    async def SubmitTask(self, request: pb.SubmitTaskRequest, context: Context) -> pb.SubmitTaskResponse:  # noqa: N802
        signed = decode(SignedTransaction, request.signed_transaction, MAX_TRANSACTION + 128)
        transaction = signed.decoded()
        if not isinstance(transaction.payload, PublishTask):
            kind = type(transaction.payload).__name__
            raise MalformedError(f"the platform takes PublishTask transactions, this is a {kind}: hand it to a node", kind=kind)
        tx_id = await self._chain.submit(signed)
        SUBMITTED.inc()
        task = task_id(transaction.chain_id, AccountId(transaction.sender), transaction.payload.task_nonce)
        return pb.SubmitTaskResponse(task_id=task, tx_id=tx_id)

    async def ListTasks(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:  # noqa: N802
        phases = [_phase(number) for number in request.phases]
        tasks = await self._chain.tasks(phases, min(request.limit or 100, MAX_LISTED), request.after)
        return pb.ListTasksResponse(tasks=[convert.task_to_proto(task) for task in tasks])

    async def GetTask(self, request: pb.GetTaskRequest, context: Context) -> pb.GetTaskResponse:  # noqa: N802
        wanted = TaskId(convert.exact("task_id", request.task_id))
        return pb.GetTaskResponse(task=convert.task_to_proto(await self._chain.task(wanted)))

    async def GetCurrentTask(  # noqa: N802
        self, request: pb.GetCurrentTaskRequest, context: Context
    ) -> pb.GetCurrentTaskResponse:
        current = (await self._chain.tip()).current_task
        if current is None:
            return pb.GetCurrentTaskResponse()
        try:
            task = await self._chain.task(current)
        except NotFoundError:  # ended, and pruned, between the two reads
            return pb.GetCurrentTaskResponse()
        return pb.GetCurrentTaskResponse(task=convert.task_to_proto(task))

    async def WatchTasks(  # noqa: N802
        self, request: pb.WatchTasksRequest, context: Context
    ) -> AsyncIterator[pb.WatchTasksResponse]:
        with WATCHERS.track_inprogress():
            async for update in self._chain.watch_tasks():
                yield pb.WatchTasksResponse(
                    height=update.height,
                    block_time_ms=update.block_time_ms,
                    tasks=[convert.task_to_proto(task) for task in update.tasks],
                )


def _phase(number: int) -> TaskPhase:
    try:
        return TaskPhase(number)
    except ValueError:
        raise MalformedError(f"phases: unknown value {number}", field="phases") from None
