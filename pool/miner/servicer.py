"""MinerService: from protobuf, call, to protobuf."""

from __future__ import annotations

from typing import Any, Final

from grpc import aio
from pofl.mining.v1 import mining_pb2 as pb
from pofl.mining.v1 import mining_pb2_grpc as rpc

from pool.miner.member import Membership
from services.rpc import convert_mining as convert

__all__ = ["MINER", "RULES", "MinerServicer"]

MINER: Final = pb.DESCRIPTOR.services_by_name["MinerService"].full_name
RULES: Final = {MINER: ["user"]}


class MinerServicer(rpc.MinerServiceServicer):
    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    async def GetStatus(  # noqa: N802
        self, request: pb.GetStatusRequest, context: aio.ServicerContext[Any, Any]
    ) -> pb.GetStatusResponse:
        return convert.status_to_proto(self._membership.status())
