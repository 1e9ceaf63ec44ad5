"""The node's services: from protobuf, call, to protobuf. What a method may do is written in the contracts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from google.protobuf.message import Message
from grpc import aio
from pofl.chain.v1 import chain_pb2 as pb
from pofl.chain.v1 import chain_pb2_grpc
from pofl.peer.v1 import peer_pb2 as peer
from pofl.peer.v1 import peer_pb2_grpc

from core.chain.proofs import RecordProof, TransactionProof
from core.chain.table import MAX_KEY
from core.chain.transaction import SignedTransaction
from core.codec import decode, encode
from core.crypto.signing import PUBLIC_KEY_SIZE
from core.errors import LimitError, MalformedError
from core.ids import AccountId, BlockHash, Digest, Height, ModelCommitment, NodeId, TaskId, TxId
from core.verification.receipt import SignedAnswer
from node.api import NodeApi
from node.links import Links
from node.shown import ShownBlocks
from services.rpc import auth, convert_peer
from services.rpc import convert_chain as convert
from services.rpc.convert_peer import Gossip
from services.rpc.convert_submit import results_to_proto
from services.rpc.limits import CHUNK, MAX_SUBMITTED, CallerLimits, Limiter
from services.rpc.views import TaskPhase

__all__ = ["CHAIN", "CLAIM", "PEER", "RULES", "ChainServicer", "ClaimServicer", "PeerServicer"]

CHAIN: Final = "pofl.chain.v1.ChainService"
PEER: Final = "pofl.peer.v1.PeerService"
CLAIM: Final = "pofl.peer.v1.ClaimService"
RULES: Final = {
    CHAIN: [auth.ANYONE],
    f"{PEER}/Gossip": ["node"],
    f"{PEER}/FetchBlocks": ["node"],
    f"{PEER}/FetchHeaders": ["node"],
    f"{PEER}/OfferWork": ["pool"],
    f"{PEER}/WatchWork": ["pool", "requester"],
    CLAIM: ["node", "requester"],
    f"{CLAIM}/FetchOpening": ["node"],
}
MAX_ANSWER: Final = 1024
MAX_SUBMITTED_BYTES: Final = 1024 * 1024
SUBMITTED: Final = CallerLimits(rate=400.0, burst=2_000)
"""Transactions of one caller that come several at a time."""
MAX_TASKS: Final = 1000
MAX_TRADES: Final = 1000
MAX_BLOCKS: Final = 512
STALL_SECONDS: Final = 60.0
"""A stream holds one message that its reader has no room for; who does not read for so long is dropped."""
_SENT: Final[tuple[Any, ...]] = ()
"""Nothing is left to yield: _send has written every message, with a deadline that a yield cannot have."""

Context = aio.ServicerContext[Any, Any]


class ChainServicer(chain_pb2_grpc.ChainServiceServicer):
    def __init__(self, api: NodeApi) -> None:
        self._api = api
        self._blocks = ShownBlocks(api.block)
        self._submitted = Limiter(SUBMITTED)

    async def GetGenesis(self, request: pb.GetGenesisRequest, context: Context) -> pb.GetGenesisResponse:  # noqa: N802
        genesis = self._api.genesis
        return pb.GetGenesisResponse(chain_id=genesis.chain_id, genesis_json=genesis.to_json())

    async def GetTip(self, request: pb.GetTipRequest, context: Context) -> pb.GetTipResponse:  # noqa: N802
        return convert.tip_to_proto(self._api.tip())

    async def GetBlock(self, request: pb.GetBlockRequest, context: Context) -> pb.GetBlockResponse:  # noqa: N802
        key: Height | BlockHash
        if request.WhichOneof("key") == "block_hash":
            key = BlockHash(convert.exact("block_hash", request.block_hash))
        elif request.WhichOneof("key") is None:
            raise MalformedError("key: give a height or a block_hash", field="key")
        else:
            key = Height(request.height)
        return pb.GetBlockResponse(block=await self._blocks.get(key))

    async def WatchBlocks(  # noqa: N802
        self, request: pb.WatchBlocksRequest, context: Context
    ) -> AsyncIterator[pb.WatchBlocksResponse]:
        async for height in self._api.watch_blocks(Height(request.from_height)):
            await _send(context, pb.WatchBlocksResponse(block=await self._blocks.get(height)), height)
        for nothing in _SENT:
            yield nothing

    async def WatchClaims(  # noqa: N802
        self, request: pb.WatchClaimsRequest, context: Context
    ) -> AsyncIterator[pb.WatchClaimsResponse]:
        async for view in self._api.watch_claims(Height(request.from_height)):
            await _send(context, convert.claims_to_proto(view), view.height)
        for nothing in _SENT:
            yield nothing

    async def ListValidators(  # noqa: N802
        self, request: pb.ListValidatorsRequest, context: Context
    ) -> pb.ListValidatorsResponse:
        views, height = self._api.validators()
        return pb.ListValidatorsResponse(validators=[convert.validator_to_proto(v) for v in views], height=height)

    async def GetLightBlock(  # noqa: N802
        self, request: pb.GetLightBlockRequest, context: Context
    ) -> pb.GetLightBlockResponse:
        return pb.GetLightBlockResponse(light_block=encode(self._api.light.block(Height(request.height))))

    async def GetProof(self, request: pb.GetProofRequest, context: Context) -> pb.GetProofResponse:  # noqa: N802
        proof: RecordProof | TransactionProof
        if request.WhichOneof("what") == "tx_id":
            tx_id = TxId(convert.exact("tx_id", request.tx_id))
            height, proof = await asyncio.to_thread(self._api.light.transaction, tx_id)
        elif request.WhichOneof("what") is None:
            raise MalformedError("what: give a record's table and key, or a tx_id", field="what")
        else:
            table, key = request.record.table, request.record.key
            if not 0 < len(key) <= MAX_KEY:
                raise MalformedError(f"key: {len(key)} bytes, must be 1 to {MAX_KEY}", field="key")
            height, proof = await asyncio.to_thread(self._api.light.record, table, key)
        return pb.GetProofResponse(height=height, proof=encode(proof))

    async def SubmitTransaction(  # noqa: N802
        self, request: pb.SubmitTransactionRequest, context: Context
    ) -> pb.SubmitTransactionResponse:
        transaction = _transaction(request.signed_transaction)
        return pb.SubmitTransactionResponse(tx_id=self._api.submit(transaction))

    async def SubmitTransactions(  # noqa: N802
        self, request: pb.SubmitTransactionsRequest, context: Context
    ) -> pb.SubmitTransactionsResponse:
        several = request.signed_transactions
        size = sum(len(data) for data in several)
        if not 0 < len(several) <= MAX_SUBMITTED or size > MAX_SUBMITTED_BYTES:
            # Not a matter of waiting, as RESOURCE_EXHAUSTED is: the same call is refused always.
            raise MalformedError(
                f"{len(several)} transactions of {size} bytes; 1 to {MAX_SUBMITTED} and at most {MAX_SUBMITTED_BYTES} bytes"
            )
        # Each is as much work as a call that hands in one.
        self._submitted.charge(str(auth.caller(context)), len(several))
        transactions = [_transaction(data) for data in several]
        return results_to_proto(transactions, await self._api.submit_all(transactions))

    async def GetTransaction(  # noqa: N802
        self, request: pb.GetTransactionRequest, context: Context
    ) -> pb.GetTransactionResponse:
        return convert.tx_status_to_proto(self._api.transaction(TxId(convert.exact("tx_id", request.tx_id))))

    async def GetAccount(self, request: pb.GetAccountRequest, context: Context) -> pb.GetAccountResponse:  # noqa: N802
        return convert.account_to_proto(self._api.account(_account("account", request.account)))

    async def ListTasks(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:  # noqa: N802
        try:
            phases = [TaskPhase(phase) for phase in request.phases]
        except ValueError as error:
            raise MalformedError(f"phases: {error}") from None
        limit = _limit(request.limit, MAX_TASKS)
        after = TaskId(convert.exact("after", request.after)) if request.after else None
        return pb.ListTasksResponse(tasks=[convert.task_to_proto(t) for t in self._api.tasks(phases, limit, after)])

    async def GetTask(self, request: pb.GetTaskRequest, context: Context) -> pb.GetTaskResponse:  # noqa: N802
        view, height = self._api.task(TaskId(convert.exact("task_id", request.task_id)))
        return pb.GetTaskResponse(task=convert.task_to_proto(view), height=height)

    async def WatchTasks(  # noqa: N802
        self, request: pb.WatchTasksRequest, context: Context
    ) -> AsyncIterator[pb.WatchTasksResponse]:
        async for update in self._api.watch_tasks(Height(request.from_height)):
            tasks = [convert.task_to_proto(t) for t in update.tasks]
            message = pb.WatchTasksResponse(height=update.height, block_time_ms=update.block_time_ms, tasks=tasks)
            await _send(context, message, update.height)
        for nothing in _SENT:
            yield nothing

    async def ListProviders(  # noqa: N802
        self, request: pb.ListProvidersRequest, context: Context
    ) -> pb.ListProvidersResponse:
        return pb.ListProvidersResponse(providers=[convert.provider_to_proto(p) for p in self._api.providers()])

    async def GetTrade(self, request: pb.GetTradeRequest, context: Context) -> pb.GetTradeResponse:  # noqa: N802
        trade = self._api.trade(Digest(convert.exact("trade_id", request.trade_id)))
        return pb.GetTradeResponse(trade=convert.trade_to_proto(trade))

    async def ListTrades(self, request: pb.ListTradesRequest, context: Context) -> pb.ListTradesResponse:  # noqa: N802
        provider = _account("provider", request.provider) if request.provider else None
        pool = _account("pool", request.pool) if request.pool else None
        after = Digest(convert.exact("after", request.after)) if request.after else None
        trades = self._api.trades(provider, pool, _limit(request.limit, MAX_TRADES), after)
        return pb.ListTradesResponse(trades=[convert.trade_to_proto(trade) for trade in trades])

    async def GetMarket(self, request: pb.GetMarketRequest, context: Context) -> pb.GetMarketResponse:  # noqa: N802
        view = self._api.market(_account("provider", request.provider), _account("pool", request.pool))
        return convert.market_to_proto(view)

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:  # noqa: N802
        return convert.explanation_to_proto(self._api.explain(Height(request.height)))

    async def GetTranscript(  # noqa: N802
        self, request: pb.GetTranscriptRequest, context: Context
    ) -> pb.GetTranscriptResponse:
        digest = Digest(convert.exact("digest", request.digest))
        return pb.GetTranscriptResponse(transcript=self._api.transcript(digest))


class PeerServicer(peer_pb2_grpc.PeerServiceServicer):
    def __init__(self, api: NodeApi, links: Links) -> None:
        self._api = api
        self._links = links

    async def Gossip(  # noqa: N802
        self, request_iterator: AsyncIterator[peer.GossipRequest], context: Context
    ) -> AsyncIterator[peer.GossipResponse]:
        account = auth.caller(context).account

        async def incoming() -> AsyncIterator[Gossip]:
            async for request in request_iterator:
                yield convert_peer.gossip_from_proto(request.message)

        async for message in self._links.accept(None if account is None else NodeId(account), incoming()):
            yield peer.GossipResponse(message=convert_peer.gossip_to_proto(message))

    async def FetchBlocks(  # noqa: N802
        self, request: peer.FetchBlocksRequest, context: Context
    ) -> AsyncIterator[peer.FetchBlocksResponse]:
        count = min(request.count, MAX_BLOCKS)
        waiting: list[peer.FinalBlock] = []
        size = 0
        for block, certificate in self._api.raw_blocks(Height(request.from_height), count):
            if waiting and size + len(block) + len(certificate) > CHUNK:
                yield peer.FetchBlocksResponse(blocks=waiting)
                waiting, size = [], 0
            waiting.append(peer.FinalBlock(block=block, certificate=certificate))
            size += len(block) + len(certificate)
        if waiting:
            yield peer.FetchBlocksResponse(blocks=waiting)

    async def FetchHeaders(  # noqa: N802
        self, request: peer.FetchHeadersRequest, context: Context
    ) -> peer.FetchHeadersResponse:
        found = await asyncio.to_thread(self._api.headers, Height(request.from_height), min(request.count, MAX_BLOCKS))
        return peer.FetchHeadersResponse(headers=found[0], certificate=found[1])

    async def OfferWork(self, request: peer.OfferWorkRequest, context: Context) -> peer.OfferWorkResponse:  # noqa: N802
        block = convert_peer.block_from_bytes(request.block)
        top = await self._api.offer_work(block, auth.caller(context).account)
        return peer.OfferWorkResponse(top_remaining=top)

    async def WatchWork(  # noqa: N802
        self, request: peer.WatchWorkRequest, context: Context
    ) -> AsyncIterator[peer.WatchWorkResponse]:
        async for view in self._api.watch_work():
            yield convert_peer.work_to_proto(view)


class ClaimServicer(peer_pb2_grpc.ClaimServiceServicer):
    def __init__(self, api: NodeApi) -> None:
        self._api = api

    async def FetchWork(self, request: peer.FetchWorkRequest, context: Context) -> peer.FetchWorkResponse:  # noqa: N802
        commitment = ModelCommitment(convert.exact("model_commitment", request.model_commitment))
        return peer.FetchWorkResponse(block=self._api.work_block(Height(request.height), commitment))

    async def FetchVm(  # noqa: N802
        self, request: peer.FetchVmRequest, context: Context
    ) -> AsyncIterator[peer.FetchVmResponse]:
        body = await self._api.vm_body(ModelCommitment(convert.exact("model_commitment", request.model_commitment)))
        for offset in range(0, len(body), CHUNK):
            yield peer.FetchVmResponse(chunk=body[offset : offset + CHUNK], total_bytes=len(body) if offset == 0 else 0)

    async def FetchOpening(  # noqa: N802
        self, request: peer.FetchOpeningRequest, context: Context
    ) -> AsyncIterator[peer.FetchOpeningResponse]:
        commitment = ModelCommitment(convert.exact("model_commitment", request.model_commitment))
        opening = self._api.opening(commitment, decode(SignedAnswer, request.malformed_answer, MAX_ANSWER))
        for offset in range(0, len(opening), CHUNK):
            total = len(opening) if offset == 0 else 0
            yield peer.FetchOpeningResponse(chunk=opening[offset : offset + CHUNK], total_bytes=total)


async def _send(context: Context, message: Message, height: Height) -> None:
    """One message of a stream. Raises LimitError when its reader has not made room for it for a while."""
    try:
        async with asyncio.timeout(STALL_SECONDS):
            await context.write(message)
    except TimeoutError:
        raise LimitError(
            f"this stream was not read for {STALL_SECONDS:g} s and is ended: resume from height {height}", height=height
        ) from None


def _transaction(data: bytes) -> SignedTransaction:
    """Raises MalformedError, also for what is too long: a LimitError would have the client try again."""
    try:
        return SignedTransaction.from_bytes(data)
    except LimitError as error:
        raise MalformedError(f"no signed transaction, or too long for one: {error.message}", field="transaction") from None


def _limit(asked: int, most: int) -> int:
    """Raises MalformedError: who asks for more would take a full answer for all there is."""
    if asked > most:
        raise MalformedError(f"limit is {asked}, at most {most}: ask again with `after`", field="limit")
    return asked or 100


def _account(name: str, value: bytes) -> AccountId:
    return AccountId(convert.exact(name, value, PUBLIC_KEY_SIZE))
