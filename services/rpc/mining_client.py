"""PoolService and MinerService as typed calls. Every method raises the error tree; the caller keeps and closes the channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from grpc import aio
from pofl.mining.v1 import mining_pb2 as pb
from pofl.mining.v1 import mining_pb2_grpc as rpc

from core.chain.transaction import ChunkReceipt
from core.crypto import signing
from core.errors import LimitError
from core.ids import TaskId
from core.market.contributions import Entry, SignedAnswer
from services.rpc import convert_mining as convert
from services.rpc.channel import call
from services.rpc.convert_mining import Assignment, Join, Member, MinedTask, MinerStatus, Progress, SignedJoined
from services.rpc.errors import translate

__all__ = ["MinerClient", "PoolClient"]

CALL_TIMEOUT: Final = 20.0
ATTEND_SECONDS: Final = 24 * 3600.0
"""A membership is renewed after this long: every call has a deadline."""
WATCH_SECONDS: Final = 3600.0
BOOK_SECONDS: Final = 60.0
MAX_BOOK: Final = 256 << 20
MAX_TASKS: Final = 1_024


class PoolClient:
    """A pool manager, as its miners and everybody else see it."""

    def __init__(self, channel: aio.Channel, peer: str = "the pool") -> None:
        self._stub = rpc.PoolServiceStub(channel)
        self._peer = peer

    async def join(self, key: signing.KeyPair, join: Join) -> SignedJoined:
        """Become a member. Raises AuthError if admission refuses, CryptoError if the answer is not the pool's."""
        request = convert.join_to_proto(convert.sign_join(key, join))
        answer = await call(self._stub.Join, request, CALL_TIMEOUT, peer=self._peer)
        signed = convert.joined_from_proto(answer, join)
        convert.verify_joined(signed)
        return signed

    async def attend(self, key: signing.KeyPair, join: Join) -> AsyncIterator[Assignment]:
        """Assignments from now on, for as long as the membership and the connection last."""
        message = convert.attend_message(join.chain_id, join.pool, join.miner, join.node_public_key)
        signature = signing.sign(key, convert.DOMAIN_ATTEND, message)
        stream = self._stub.Attend(pb.AttendRequest(miner=join.miner, signature=signature), timeout=ATTEND_SECONDS)
        try:
            with translate(self._peer):
                async for response in stream:
                    yield convert.assignment_from_proto(response)
        finally:
            stream.cancel()

    async def hand_in(self, receipt: ChunkReceipt) -> None:
        """A chunk's receipt for the pool to put on chain. Idempotent."""
        request = convert.receipt_to_proto(receipt)
        await call(self._stub.HandInReceipt, request, CALL_TIMEOUT, peer=self._peer, idempotent=True)

    async def leave(self, key: signing.KeyPair, join: Join) -> None:
        """End the membership. Idempotent."""
        message = convert.leave_message(join.chain_id, join.pool, join.miner, join.node_public_key)
        request = pb.LeaveRequest(miner=join.miner, signature=signing.sign(key, convert.DOMAIN_LEAVE, message))
        await call(self._stub.Leave, request, CALL_TIMEOUT, peer=self._peer, idempotent=True)

    async def countersign(self, answer: SignedAnswer) -> None:
        """A member's word on what the pool signed. Idempotent. Raises NotFoundError if the pool has not signed it."""
        await call(self._stub.Countersign, convert.answer_to_proto(answer), CALL_TIMEOUT, peer=self._peer, idempotent=True)

    async def contributions(self, task_id: TaskId | None = None, after: int = 0) -> tuple[Entry, ...]:
        """The pool's book of a task, by default the newest, without rounds up to number ``after``. Nothing in it is checked.

        Raises NotFoundError, LimitError for more than MAX_BOOK bytes.
        """
        request = pb.ListContributionsRequest(task_id=task_id or b"", after=after)
        stream = self._stub.ListContributions(request, timeout=BOOK_SECONDS)
        entries: list[Entry] = []
        size = 0
        try:
            with translate(self._peer):
                async for response in stream:
                    size += len(response.entry)
                    if size > MAX_BOOK:
                        raise LimitError(f"{self._peer} sends a book of more than {MAX_BOOK} bytes")
                    entries.append(convert.entry_from_proto(response))
        finally:
            stream.cancel()
        return tuple(entries)

    async def mined_tasks(self) -> tuple[MinedTask, ...]:
        """Tasks whose books the pool keeps, newest first."""
        request = pb.ListMinedTasksRequest()
        answer = await call(self._stub.ListMinedTasks, request, CALL_TIMEOUT, peer=self._peer, idempotent=True)
        if len(answer.tasks) > MAX_TASKS:
            raise LimitError(f"{self._peer} lists {len(answer.tasks)} tasks, at most {MAX_TASKS}")
        return tuple(convert.mined_from_proto(task) for task in answer.tasks)

    async def members(self) -> tuple[Member, ...]:
        answer = await call(self._stub.ListMembers, pb.ListMembersRequest(), CALL_TIMEOUT, peer=self._peer, idempotent=True)
        if len(answer.members) > convert.MAX_MEMBERS:
            raise LimitError(f"{self._peer} lists {len(answer.members)} members, at most {convert.MAX_MEMBERS}")
        return tuple(convert.member_from_proto(member) for member in answer.members)

    async def watch_progress(self) -> AsyncIterator[Progress]:
        """The present state, then every change, for at most an hour."""
        stream = self._stub.WatchProgress(pb.WatchProgressRequest(), timeout=WATCH_SECONDS)
        try:
            with translate(self._peer):
                async for response in stream:
                    yield convert.progress_from_proto(response)
        finally:
            stream.cancel()


class MinerClient:
    """A miner's own process, for its owner."""

    def __init__(self, channel: aio.Channel, peer: str = "the miner") -> None:
        self._stub = rpc.MinerServiceStub(channel)
        self._peer = peer

    async def status(self) -> MinerStatus:
        request = pb.GetStatusRequest()
        answer = await call(self._stub.GetStatus, request, CALL_TIMEOUT, peer=self._peer, idempotent=True)
        return convert.status_from_proto(answer)
