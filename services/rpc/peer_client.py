"""Calls to PeerService and ClaimService, typed: what nodes ask of one another, and pools and requesters of nodes.

Every function raises the error tree: what the other side refused with, MalformedError or LimitError for an answer that no
honest one gives, UnavailableError, DeadlineError.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

from grpc import aio
from pofl.peer.v1 import peer_pb2 as pb
from pofl.peer.v1 import peer_pb2_grpc as rpc

from core.chain.block import MAX_VM_BODY, Block, Certificate, SignedHeader
from core.codec import encode
from core.errors import LimitError, MalformedError
from core.ids import Height, ModelCommitment
from core.verification.receipt import SignedAnswer
from services.rpc import convert_peer as convert
from services.rpc.channel import Connection, call
from services.rpc.convert_peer import Gossip
from services.rpc.errors import translate
from services.rpc.limits import CHUNK
from services.rpc.views import WorkView
from services.runtime import tracing

__all__ = [
    "MAX_OPENING", "fetch_blocks", "fetch_headers", "fetch_opening", "fetch_vm", "fetch_work", "gossip", "offer_work",
    "watch_work",
]  # fmt: skip

LINK_SECONDS: Final = 6 * 3600.0
"""A gossip stream is opened anew after this long: every call has a deadline."""
WATCH_SECONDS: Final = 3600.0
MAX_OPENING: Final = 2 * MAX_VM_BODY


async def gossip(connection: Connection, outgoing: AsyncIterator[Gossip]) -> AsyncGenerator[Gossip, None]:
    """Open a gossip stream to a node: what we say goes in, what it says comes out."""

    async def requests() -> AsyncIterator[pb.GossipRequest]:
        async for message in outgoing:
            yield pb.GossipRequest(message=convert.gossip_to_proto(message))

    stream = rpc.PeerServiceStub(connection.channel).Gossip(requests(), timeout=LINK_SECONDS)
    try:
        with translate(connection.target):
            async for response in stream:
                yield convert.gossip_from_proto(response.message)
    finally:
        stream.cancel()


async def fetch_blocks(
    channel: aio.Channel, first: Height, count: int, timeout: float, *, peer: str = ""
) -> AsyncGenerator[tuple[Block, Certificate], None]:
    """Finalised blocks from a height on with the certificates that finalised them, unchecked; at most 512."""
    stream = rpc.PeerServiceStub(channel).FetchBlocks(pb.FetchBlocksRequest(from_height=first, count=count), timeout=timeout)
    try:
        with translate(peer):
            async for response in stream:
                for final in response.blocks:
                    yield convert.block_from_bytes(final.block), convert.certificate_from_bytes(final.certificate)
    finally:
        stream.cancel()


async def fetch_headers(
    channel: aio.Channel, first: Height, count: int, timeout: float, *, peer: str = ""
) -> tuple[tuple[SignedHeader, ...], Certificate]:
    """Headers from a height on, at most 512, and the certificate of the last of them, unchecked. Raises NotFoundError."""
    request = pb.FetchHeadersRequest(from_height=first, count=count)
    response = await call(rpc.PeerServiceStub(channel).FetchHeaders, request, timeout, peer=peer, idempotent=True)
    if not 0 < len(response.headers) <= count:
        raise MalformedError(f"{len(response.headers)} headers, 1 to {count} were asked for", field="headers")
    headers = tuple(convert.header_from_bytes(data) for data in response.headers)
    return headers, convert.certificate_from_bytes(response.certificate)


async def offer_work(channel: aio.Channel, block: Block, timeout: float, *, peer: str = "") -> bool:
    """A pool's work block to a node; whether its claim is the top remaining one there. Idempotent."""
    method = rpc.PeerServiceStub(channel).OfferWork
    response = await call(method, pb.OfferWorkRequest(block=block.to_bytes()), timeout, peer=peer, idempotent=True)
    return response.top_remaining


async def watch_work(channel: aio.Channel, *, peer: str = "") -> AsyncIterator[WorkView]:
    """What a node knows of the height being decided, now and whenever that changes, for at most an hour."""
    stream = rpc.PeerServiceStub(channel).WatchWork(pb.WatchWorkRequest(), timeout=WATCH_SECONDS)
    try:
        with translate(peer):
            async for response in stream:
                yield convert.work_from_proto(response)
    finally:
        stream.cancel()


async def fetch_work(
    channel: aio.Channel, height: Height, commitment: ModelCommitment, timeout: float, *, peer: str = ""
) -> Block:
    """The work block that was offered for a claim, unchecked."""
    request = pb.FetchWorkRequest(height=height, model_commitment=commitment)
    response = await call(rpc.ClaimServiceStub(channel).FetchWork, request, timeout, peer=peer, idempotent=True)
    return convert.block_from_bytes(response.block)


async def fetch_vm(channel: aio.Channel, commitment: ModelCommitment, timeout: float, *, peer: str = "") -> bytes:
    """A claim's Vm body; the caller compares its commitment."""
    stream = rpc.ClaimServiceStub(channel).FetchVm(
        pb.FetchVmRequest(model_commitment=commitment), timeout=timeout, metadata=tracing.outgoing()
    )
    return await _whole(stream, MAX_VM_BODY, "Vm body", peer)


async def fetch_opening(
    channel: aio.Channel, commitment: ModelCommitment, malformed: SignedAnswer, timeout: float, *, peer: str = ""
) -> bytes:
    """What a claim's body was made of, from a pool whose body the requester called malformed; the caller judges it."""
    request = pb.FetchOpeningRequest(model_commitment=commitment, malformed_answer=encode(malformed))
    stream = rpc.ClaimServiceStub(channel).FetchOpening(request, timeout=timeout, metadata=tracing.outgoing())
    return await _whole(stream, MAX_OPENING, "opening", peer)


async def _whole(stream: Any, limit: int, what: str, peer: str) -> bytes:
    """What a stream of chunks brings, once its announced size is here."""
    total: int | None = None
    data = bytearray()
    try:
        with translate(peer):
            async for response in stream:
                if total is None:
                    total = response.total_bytes
                    if total > limit:
                        raise LimitError(f"{what} of {total} bytes, at most {limit}", size=total)
                if not 0 < len(response.chunk) <= CHUNK or len(data) + len(response.chunk) > total:
                    raise MalformedError(f"{what}: a chunk of {len(response.chunk)} bytes at {len(data)} of {total}")
                data += response.chunk
    finally:
        stream.cancel()
    if total is None or len(data) != total:
        raise MalformedError(f"{what} ended after {len(data)} of {total or 0} bytes")
    return bytes(data)
