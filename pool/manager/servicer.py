"""PoolService and ClaimService: from protobuf, call, to protobuf."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from grpc import aio
from pofl.mining.v1 import mining_pb2 as pb
from pofl.mining.v1 import mining_pb2_grpc as rpc
from pofl.peer.v1 import peer_pb2 as peer
from pofl.peer.v1 import peer_pb2_grpc

from core.errors import AuthError, LimitError
from core.ids import AccountId, Digest, Height, ModelCommitment, TaskId, short
from pool.manager.board import Board
from pool.manager.books import Books
from pool.manager.claims import Shelf
from pool.manager.members import Members
from pool.manager.receipts import ReceiptDesk
from services.rpc import auth
from services.rpc import convert_mining as convert
from services.rpc.convert_fields import exact
from services.rpc.limits import CHUNK

__all__ = ["CLAIM", "POOL", "RULES", "ClaimServicer", "PoolServicer"]

POOL: Final = pb.DESCRIPTOR.services_by_name["PoolService"].full_name
CLAIM: Final = peer.DESCRIPTOR.services_by_name["ClaimService"].full_name
RULES: Final = {
    POOL: ["miner"],
    f"{POOL}/ListMembers": [auth.ANYONE],
    f"{POOL}/ListContributions": [auth.ANYONE],
    f"{POOL}/ListMinedTasks": [auth.ANYONE],
    f"{POOL}/WatchProgress": [auth.ANYONE],
    CLAIM: ["node", "requester"],
    f"{CLAIM}/FetchOpening": ["node"],
}
Context = aio.ServicerContext[Any, Any]
_SENT: Final[tuple[pb.ListContributionsResponse, ...]] = ()
"""What a stream that writes to its context still has to yield."""
READ_SECONDS: Final = 45.0
"""For a whole book: there are few places to read, and a reader keeps its one until it is done."""


class PoolServicer(rpc.PoolServiceServicer):
    def __init__(self, chain_id: Digest, members: Members, receipts: ReceiptDesk, board: Board, books: Books) -> None:
        self._chain_id = chain_id
        self._members = members
        self._receipts = receipts
        self._board = board
        self._books = books

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:  # noqa: N802
        signed = convert.join_from_proto(request, self._chain_id, self._members.pool)
        _check_caller(context, signed.join.miner)
        return convert.joined_to_proto(await self._members.join(signed, _connection(context)))

    async def Attend(self, request: pb.AttendRequest, context: Context) -> AsyncIterator[pb.AttendResponse]:  # noqa: N802
        miner = _account(request.miner)
        _check_caller(context, miner)
        async for assignment in self._members.attend(miner, request.signature):
            yield convert.assignment_to_proto(assignment)

    async def HandInReceipt(  # noqa: N802
        self, request: pb.HandInReceiptRequest, context: Context
    ) -> pb.HandInReceiptResponse:
        receipt = convert.receipt_from_proto(request)
        _check_caller(context, receipt.miner)
        await self._receipts.hand_in(receipt)
        return pb.HandInReceiptResponse()

    async def Leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveResponse:  # noqa: N802
        miner = _account(request.miner)
        _check_caller(context, miner)
        await self._members.leave(miner, request.signature)
        return pb.LeaveResponse()

    async def Countersign(  # noqa: N802
        self, request: pb.CountersignRequest, context: Context
    ) -> pb.CountersignResponse:
        signed = convert.answer_from_proto(request)
        _check_caller(context, signed.answer.miner)
        await self._books.answer(signed)
        return pb.CountersignResponse()

    async def ListContributions(  # noqa: N802
        self, request: pb.ListContributionsRequest, context: Context
    ) -> AsyncIterator[pb.ListContributionsResponse]:
        """A stream. Who does not read it in time loses its place to others. Raises LimitError."""
        task_id = TaskId(exact("task_id", request.task_id)) if request.task_id else None
        sent = 0
        try:
            async with (
                asyncio.timeout(READ_SECONDS),
                aclosing(self._books.entries(task_id, request.after, str(auth.caller(context)))) as entries,
            ):
                async for entry in entries:
                    await context.write(pb.ListContributionsResponse(entry=entry))
                    sent += 1
        except TimeoutError:
            raise LimitError(
                f"this book was not read within {READ_SECONDS:g} s, {sent} entries were: ask for what follows the last round"
            ) from None
        for nothing in _SENT:
            yield nothing

    async def ListMinedTasks(  # noqa: N802
        self, request: pb.ListMinedTasksRequest, context: Context
    ) -> pb.ListMinedTasksResponse:
        return pb.ListMinedTasksResponse(tasks=[convert.mined_to_proto(task) for task in await self._books.tasks()])

    async def ListMembers(self, request: pb.ListMembersRequest, context: Context) -> pb.ListMembersResponse:  # noqa: N802
        return pb.ListMembersResponse(members=[convert.member_to_proto(m) for m in self._members.listed()])

    async def WatchProgress(  # noqa: N802
        self, request: pb.WatchProgressRequest, context: Context
    ) -> AsyncIterator[pb.WatchProgressResponse]:
        async for progress in self._board.watch():
            yield convert.progress_to_proto(progress)


class ClaimServicer(peer_pb2_grpc.ClaimServiceServicer):
    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def FetchWork(self, request: peer.FetchWorkRequest, context: Context) -> peer.FetchWorkResponse:  # noqa: N802
        commitment = ModelCommitment(exact("model_commitment", request.model_commitment))
        return peer.FetchWorkResponse(block=self._shelf.block(Height(request.height), commitment).to_bytes())

    async def FetchVm(  # noqa: N802
        self, request: peer.FetchVmRequest, context: Context
    ) -> AsyncIterator[peer.FetchVmResponse]:
        body = self._shelf.body(ModelCommitment(exact("model_commitment", request.model_commitment)))
        for offset in range(0, len(body), CHUNK):
            yield peer.FetchVmResponse(chunk=body[offset : offset + CHUNK], total_bytes=len(body) if offset == 0 else 0)

    async def FetchOpening(  # noqa: N802
        self, request: peer.FetchOpeningRequest, context: Context
    ) -> AsyncIterator[peer.FetchOpeningResponse]:
        commitment = ModelCommitment(exact("model_commitment", request.model_commitment))
        opening = self._shelf.opening(commitment, request.malformed_answer)
        for offset in range(0, len(opening), CHUNK):
            total = len(opening) if offset == 0 else 0
            yield peer.FetchOpeningResponse(chunk=opening[offset : offset + CHUNK], total_bytes=total)


def _account(value: bytes) -> AccountId:
    return AccountId(exact("miner", value))


def _connection(context: Context) -> str:
    """Whose connection this is: by its certificate, which a caller cannot change from request to request."""
    digest = auth.certificate_digest(context)
    return str(auth.caller(context)) if digest == auth.NO_CERTIFICATE else digest.hex()


def _check_caller(context: Context, miner: AccountId) -> None:
    """Where the certificate names an account, a miner speaks for itself only. Raises AuthError."""
    account = auth.caller(context).account
    if account is not None and account != miner:
        raise AuthError(f"the connection is of account {short(account)}, the request of miner {short(miner)}")
