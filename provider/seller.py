"""The selling side up to the draw: offers, and bids under them (paper, section III; design: market, "A trade", steps 1, 2).

Nothing here is believed about a pool but its signature: reputation and highs are the chain's, terms are recomputed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Protocol

import numpy as np

from core.codec import encode
from core.crypto import signing
from core.errors import AuthError, CryptoError, DeadlineError, LimitError, MalformedError, MarketError, NotFoundError
from core.ids import AccountId, Digest, Height, Milliseconds, short
from core.market import contract, delivery, marks, rows
from core.market.contract import IntegerRule, Offer, SignedOffer, TradeTerms
from core.ports import Clock, Rng
from provider.goods import Goods
from provider.ledger import Accepted, SalesLedger
from services.rpc.convert_market import Bidding
from services.rpc.views import BlockView, MarketView, Tip, TradePhase, TradeView
from services.runtime.metrics import counter

__all__ = ["ChainReads", "Seller"]

OFFERS = counter("provider_offers", "Offers made to pools.")
BIDS = counter("provider_bids_accepted", "Bids of pools that this provider signed.")

MAX_OFFERS: Final = 4_096
"""Offers that may be outstanding."""
MAX_OFFERS_OF_A_POOL: Final = 4
"""A pool that asks more often loses its own oldest."""
OPEN_PHASES: Final = (TradePhase.BID, TradePhase.DELIVERY)


class ChainReads(Protocol):
    """What a seller asks of the nodes; services.rpc.chain_client.ChainClient has it."""

    async def market(self, provider: AccountId, pool: AccountId) -> MarketView: ...
    async def trade(self, trade_id: Digest) -> TradeView: ...
    async def tip(self) -> Tip: ...
    async def block(self, key: Height) -> BlockView: ...


class Seller:
    """One data set, one rule, one chain."""

    def __init__(
        self,
        key: signing.KeyPair,
        chain_id: Digest,
        chain: ChainReads,
        goods: Goods,
        rule: IntegerRule,
        ledger: SalesLedger,
        *,
        offer_ms: int,
        draw_window_ms: int,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self._key = key
        self._chain_id = chain_id
        self._chain = chain
        self._goods = goods
        self._rule = rule
        self._ledger = ledger
        self._offer_ms = offer_ms
        self._draw_window_ms = draw_window_ms
        self._clock = clock
        self._rng = rng
        self._offers: OrderedDict[bytes, Offer] = OrderedDict()
        data = goods.data
        self._most_miners = contract.MAX_BUYERS
        if not np.array_equal(data.variant(0), data.variant(1)):
            self._most_miners = marks.most_buyers(data.rows)

    @property
    def account(self) -> AccountId:
        return AccountId(self._key.public_key)

    @property
    def rule(self) -> IntegerRule:
        """As configured, with the floors of the highs."""
        return self._rule

    async def offer(self, pool: AccountId, data_root: Digest) -> SignedOffer:
        """The rule for a pool, at its reputation now.

        Raises:
            NotFoundError: another data set.
            MarketError: a trade of this pool is open, or it bid within the chain's draw window.
            LimitError: too many offers are outstanding.
        """
        if data_root != self._goods.data.root:
            raise NotFoundError(f"no data set {short(data_root)} is on sale here", data_root=data_root)
        now = await self._now()
        await self._refuse_open(pool, self._ledger.last_of(pool), now)
        market = await self._chain.market(self.account, pool)
        data = self._goods.data
        offer = Offer(
            self._chain_id, self.account, pool, data.root, data.rows, data.features, data.classes, self._rule_at(market),
            market.pool_reputation_ppm, market.height, Milliseconds(now + self._offer_ms), self._rng.bytes(16),
        )  # fmt: skip
        contract.check_offer(offer)
        self._remember(offer, now)
        OFFERS.inc()
        return SignedOffer(offer, signing.sign(self._key, contract.DOMAIN_OFFER, encode(offer)))

    async def accept(self, bidding: Bidding) -> Accepted:
        """Check a bid, sign its terms, and keep them. The same bid again is answered with the same signature.

        Raises:
            AuthError: the pool of the offer did not sign.
            DeadlineError: the offer has expired.
            MalformedError: the offer is another's, or the terms are not what its rule gives.
            MarketError: the offer was used, replaced or never made; the chain's figures changed; a trade is open;
                too many miners for their shares to prove a leak, or too few to deliver them.
        """
        trade, offer = bidding.trade, bidding.trade.offer
        if (offer.chain_id, offer.provider, offer.data_root) != (self._chain_id, self.account, self._goods.data.root):
            raise MalformedError("the offer is for another chain, provider or data set")
        try:
            delivery.verify_bid(trade, bidding.pool_signature)
        except CryptoError as error:
            raise AuthError(f"the bid is not signed by pool {short(offer.pool)}: {error.message}") from None
        last = self._ledger.last_of(offer.pool)
        if last is not None and last.trade == trade:
            return last
        now = await self._now()
        if now > offer.expiry_ms:
            raise DeadlineError(f"the offer expired at {offer.expiry_ms}, now is {now}: ask for a new one")
        self._require_outstanding(offer)
        try:
            contract.check_trade(trade)
        except MarketError as error:
            raise MalformedError(error.message) from None
        self._check_shares(trade)
        market = await self._chain.market(self.account, offer.pool)
        if (self._rule_at(market), market.pool_reputation_ppm) != (offer.rule, offer.reputation_ppm):
            raise MarketError("the pool's reputation or the provider's highs have changed: ask for a new offer")
        await self._refuse_open(offer.pool, last, now)
        # From here on nothing waits, so of two bids at once only one passes.
        self._require_outstanding(offer)
        if self._ledger.last_of(offer.pool) != last:
            raise MarketError(f"pool {short(offer.pool)} has another bid under way")
        del self._offers[offer.nonce]
        return self._sign(trade)

    def _check_shares(self, trade: TradeTerms) -> None:
        """Raises MarketError for shares that could not be delivered, or whose leak could not be traced."""
        count, whole = len(trade.miners), trade.offer.rows
        if count > self._most_miners:
            raise MarketError(
                f"{count} miners for {whole} rows: a leak of a share below {marks.LEAST_SHARE} rows cannot be traced; bid with "
                f"at most {self._most_miners}",
                miners=count, most=self._most_miners,
            )  # fmt: skip
        chunk = -(-whole // (count * contract.CHUNKS))
        size = chunk * (2 * rows.row_size(trade.offer.features) + 64)
        if size > rows.MAX_CHUNK_BYTES:
            raise MarketError(
                f"{count} miners for {whole} rows: a chunk of {chunk} rows has {size} bytes, more than {rows.MAX_CHUNK_BYTES}; "
                "bid with more miners",
                miners=count, bytes=size,
            )  # fmt: skip

    def _sign(self, trade: TradeTerms) -> Accepted:
        accepted = Accepted(trade, signing.sign(self._key, contract.DOMAIN_TRADE_SIGNATURE, encode(trade)))
        self._ledger.accept(accepted)
        BIDS.inc()
        return accepted

    def _rule_at(self, market: MarketView) -> IntegerRule:
        """The configured rule with the chain's highs (0 before the first settled trade), its own being floors."""
        return contract.with_highs(self._rule, market.markup_high, market.bid_high)

    async def _now(self) -> Milliseconds:
        """Block time, or this machine's if it is later: the chain's stands still while nothing happens."""
        return Milliseconds(max(self._clock.now_ms(), (await self._chain.tip()).next_time_ms))

    async def _refuse_open(self, pool: AccountId, last: Accepted | None, now: Milliseconds) -> None:
        """Raises MarketError while the last trade of the pool may still come on the chain or is not settled there, and
        while the chain would refuse another bid because of it."""
        if last is None:
            return
        name = f"trade {short(last.trade_id)} of pool {short(pool)}"
        try:
            trade = await self._chain.trade(last.trade_id)
        except NotFoundError:
            if now <= last.expiry_ms:
                raise MarketError(f"{name} may reach the chain until {last.expiry_ms}: one trade at a time") from None
            return
        if trade.phase in OPEN_PHASES:
            raise MarketError(f"{name} is in phase {trade.phase.name.lower()}: one trade at a time")
        again_ms = (await self._chain.block(trade.bid_height)).header.timestamp_ms + self._draw_window_ms
        if now < again_ms:
            raise MarketError(f"{name} was bid for less than {self._draw_window_ms} ms ago: bid again from {again_ms}")

    def _remember(self, offer: Offer, now: Milliseconds) -> None:
        for nonce in [n for n, known in self._offers.items() if known.expiry_ms < now]:
            del self._offers[nonce]
        own = [nonce for nonce, known in self._offers.items() if known.pool == offer.pool]
        for nonce in own[: max(0, len(own) + 1 - MAX_OFFERS_OF_A_POOL)]:
            del self._offers[nonce]
        if len(self._offers) >= MAX_OFFERS:
            raise LimitError(f"{MAX_OFFERS} offers are outstanding: try again in {self._offer_ms} ms")
        self._offers[offer.nonce] = offer

    def _require_outstanding(self, offer: Offer) -> None:
        if self._offers.get(offer.nonce) != offer:
            raise MarketError("this offer is not outstanding: it was used or replaced, or was never made; ask for a new one")
