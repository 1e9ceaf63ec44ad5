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
from services.rpc import convert_mining as convert
from services.rpc.channel import call
from services.rpc.convert_mining import Assignment, Join, Member, MinerStatus, Progress, SignedJoined
from services.rpc.errors import translate

__all__ = ["MinerClient", "PoolClient"]

CALL_TIMEOUT: Final = 20.0
ATTEND_SECONDS: Final = 24 * 3600.0
"""A membership is renewed after this long: every call has a deadline."""
WATCH_SECONDS: Final = 3600.0


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
