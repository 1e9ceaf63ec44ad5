"""ProviderService: what the seller and its deliveries do, as calls (proto/pofl/market/v1/market.proto)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from grpc import aio
from pofl.market.v1 import market_pb2 as pb
from pofl.market.v1 import market_pb2_grpc as rpc

from core.errors import AbortError, AuthError, DeadlineError
from core.ids import AccountId, Digest, short
from provider.deliveries import Deliveries
from provider.goods import Goods
from provider.seller import Seller
from services.rpc import convert_market as convert
from services.rpc.auth import ANYONE, caller
from services.rpc.convert_fields import exact
from services.rpc.convert_market import DataSetView

__all__ = ["RULES", "SERVICE", "ProviderServicer"]

SERVICE: Final = pb.DESCRIPTOR.services_by_name["ProviderService"].full_name
RULES: Final = {
    f"{SERVICE}/ListDataSets": [ANYONE],
    f"{SERVICE}/RequestOffer": ["pool"],
    f"{SERVICE}/AcceptBid": ["pool"],
    f"{SERVICE}/Deliver": ["miner"],
}
OPEN_WAIT: Final = 10.0
"""Seconds for the first message of a delivery."""
SEND_WAIT: Final = 30.0
"""Seconds for a miner to take a chunk: who stops reading would keep one of the places for deliveries for ever."""
Context = aio.ServicerContext[Any, Any]


class ProviderServicer(rpc.ProviderServiceServicer):
    def __init__(self, goods: Goods, chain_id: Digest, seller: Seller, deliveries: Deliveries, *, receipt_wait: float) -> None:
        self._goods = goods
        self._chain_id = chain_id
        self._seller = seller
        self._deliveries = deliveries
        self._receipt_wait = receipt_wait

    async def ListDataSets(  # noqa: N802
        self, request: pb.ListDataSetsRequest, context: Context
    ) -> pb.ListDataSetsResponse:
        data = self._goods.data
        view = DataSetView(
            data.root, self._goods.name, data.rows, data.features, data.classes, self._goods.feature_scale_micro,
            self._seller.rule,
        )  # fmt: skip
        return pb.ListDataSetsResponse(data_sets=[convert.data_set_to_proto(view)])

    async def RequestOffer(  # noqa: N802
        self, request: pb.RequestOfferRequest, context: Context
    ) -> pb.RequestOfferResponse:
        pool = AccountId(exact("pool", request.pool))
        _require_account(context, pool)
        return convert.offer_to_proto(await self._seller.offer(pool, Digest(exact("data_root", request.data_root))))

    async def AcceptBid(self, request: pb.AcceptBidRequest, context: Context) -> pb.AcceptBidResponse:  # noqa: N802
        bidding = convert.bid_from_proto(request)
        _require_account(context, bidding.trade.offer.pool)
        return pb.AcceptBidResponse(provider_signature=(await self._seller.accept(bidding)).signature)

    async def Deliver(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[pb.DeliverRequest], context: Context
    ) -> None:
        signed = convert.open_from_proto(await _next(request_iterator, OPEN_WAIT), self._chain_id)
        _require_account(context, signed.opened.miner)
        with await self._deliveries.begin(signed) as run:
            while (part := await run.next_chunk()) is not None:
                await _send(context, convert.sealed_to_proto(part))
                receipt = await _next(request_iterator, self._receipt_wait)
                await run.take_receipt(*convert.receipt_from_proto(receipt))


def _require_account(context: Context, account: AccountId) -> None:
    """The connection's certificate, where it names an account, must name this one. Signatures prove it in any case."""
    who = caller(context)
    if who.account is not None and who.account != account:
        raise AuthError(f"{who} has account {short(who.account)} and cannot act for {short(account)}")


async def _send(context: Context, message: pb.DeliverResponse) -> None:
    try:
        async with asyncio.timeout(SEND_WAIT):
            await context.write(message)
    except TimeoutError:
        raise DeadlineError(f"the miner read nothing for {SEND_WAIT:g} s: the delivery ends, open it again to go on") from None


async def _next(requests: AsyncIterator[pb.DeliverRequest], timeout: float) -> pb.DeliverRequest:
    try:
        async with asyncio.timeout(timeout):
            return await anext(requests)
    except TimeoutError:
        raise DeadlineError(f"the miner sent nothing for {timeout:g} s: the delivery ends, open it again to go on") from None
    except StopAsyncIteration:
        raise AbortError("the miner ended the delivery before its last receipt") from None
