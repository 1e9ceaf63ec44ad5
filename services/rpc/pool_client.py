"""What anyone may ask a pool: its members, and how far it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from grpc import aio
from pofl.mining.v1 import mining_pb2 as pb
from pofl.mining.v1 import mining_pb2_grpc as rpc

from core.ids import AccountId, TaskId
from services.rpc import convert_chain as convert
from services.rpc.errors import translate

__all__ = ["MemberView", "PoolObserver", "Progress", "RoundView"]

TIMEOUT: Final = 10.0
STREAM_TIMEOUT: Final = 3600.0


@dataclass(frozen=True, slots=True)
class RoundView:
    """One round of training."""

    number: int
    participants: int
    accepted: int
    practice_correct: int
    practice_total: int
    seconds: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a pool is in its current task."""

    task_id: TaskId | None
    phase: str
    round: RoundView | None
    detail: str


@dataclass(frozen=True, slots=True)
class MemberView:
    miner: AccountId
    rows: int
    contribution: int
    """Accepted examples x rounds in the last task."""
    online: bool


class PoolObserver:
    """The public part of PoolService."""

    def __init__(self, channel: aio.Channel, name: str = "the pool") -> None:
        self._stub = rpc.PoolServiceStub(channel)
        self._name = name

    async def members(self) -> tuple[MemberView, ...]:
        with translate(self._name):
            answer = await self._stub.ListMembers(pb.ListMembersRequest(), timeout=TIMEOUT)
        return tuple(
            MemberView(AccountId(convert.exact("miner", m.miner)), m.rows, int(m.contribution), m.online) for m in answer.members
        )

    async def watch_progress(self) -> AsyncIterator[Progress]:
        """The present state, then every change, for an hour or until the connection ends."""
        with translate(self._name):
            async for answer in self._stub.WatchProgress(pb.WatchProgressRequest(), timeout=STREAM_TIMEOUT):
                yield _progress(answer)


def _progress(message: pb.WatchProgressResponse) -> Progress:
    last = message.round
    return Progress(
        TaskId(convert.exact("task_id", message.task_id)) if message.task_id else None,
        message.phase,
        RoundView(
            last.number, last.participants, last.accepted, last.practice_correct, last.practice_total, last.seconds,
            int(last.bytes_up), int(last.bytes_down),
        ) if message.HasField("round") else None,
        message.detail,
    )  # fmt: skip
