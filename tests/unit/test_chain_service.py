"""What the chain service answers to calls that make no sense: codes that tell a client whether trying again helps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from pofl.chain.v1 import chain_pb2 as pb
from pofl.chain.v1 import chain_pb2_grpc as rpc

from node.api import MAX_AHEAD
from tests.light_world import World


def world(blocks: int) -> World:
    made = World()
    for _ in range(blocks):
        made.chain.block()
    made.follow()
    return made


BAD: dict[str, tuple[str, Any, str]] = {
    "junk": ("SubmitTransaction", pb.SubmitTransactionRequest(signed_transaction=b"junk"), "no signed transaction"),
    "too long": ("SubmitTransaction", pb.SubmitTransactionRequest(signed_transaction=b"x" * 200_000), "no signed transaction"),
    "no key": ("GetBlock", pb.GetBlockRequest(), "give a height or a block_hash"),
    "no what": ("GetProof", pb.GetProofRequest(), "give a record's table and key, or a tx_id"),
    "tasks": ("ListTasks", pb.ListTasksRequest(limit=1001), "limit is 1001, at most 1000"),
    "trades": ("ListTrades", pb.ListTradesRequest(limit=1001), "limit is 1001, at most 1000"),
}


async def test_what_never_helps_to_send_again_is_an_invalid_argument() -> None:
    async with world(1).served() as (_, channel):
        stub = rpc.ChainServiceStub(channel)
        for call, request, sentence in BAD.values():
            with pytest.raises(grpc.aio.AioRpcError, match=sentence) as caught:
                await getattr(stub, call)(request, timeout=60)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len((await stub.ListTasks(pb.ListTasksRequest(limit=1000), timeout=60)).tasks) == 0


async def test_a_stream_waits_for_heights_that_are_near_and_refuses_others() -> None:
    async with world(2).served() as (_, channel):
        stub = rpc.ChainServiceStub(channel)
        streams: dict[Callable[..., Any], Callable[..., Any]] = {
            stub.WatchBlocks: pb.WatchBlocksRequest,
            stub.WatchClaims: pb.WatchClaimsRequest,
            stub.WatchTasks: pb.WatchTasksRequest,
        }
        for watch, request in streams.items():
            for height in (2 + MAX_AHEAD + 1, 2**64 - 1):
                with pytest.raises(grpc.aio.AioRpcError, match=f"from_height is {height}, the last block here is 2") as caught:
                    await watch(request(from_height=height), timeout=60).read()
                assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
            near = watch(request(from_height=2 + MAX_AHEAD), timeout=60)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(near.read(), 0.2)
            near.cancel()
