"""The buying side of the data market: a provider's service as typed calls, a pool's purchase, a miner's delivery.

::

    buyer = Buyer(chain, wallet, key, chain_id, PoolPrivate(Q=20_000, alpha=0, beta=0), keeper)
    match await buyer.buy(MarketClient(channel), provider, miners, timeout=30):
        case Deal() as deal:
            for miner, share in deal.shares(): ...          # tell each miner; it calls receive_rows
        case NoDeal() | Declined() | Undecided(): ...
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol

import numpy as np
from grpc import aio
from pofl.market.v1 import market_pb2 as pb
from pofl.market.v1 import market_pb2_grpc as rpc

from core.chain.transaction import Bid, ChunkReceipt, Payload
from core.codec import encode
from core.crypto import signing
from core.crypto.sealing import SealingKeyPair
from core.errors import (
    AbortError,
    CheatingError,
    CryptoError,
    DeadlineError,
    InputError,
    MarketError,
    NotFoundError,
    PoflError,
    SequenceError,
    TransactionError,
    UnavailableError,
)
from core.ids import AccountId, Digest, Height, Signature, TxId, short
from core.market import contract, delivery, marks
from core.market.bridge import choose_bid
from core.market.contract import CHUNKS, SignedOffer, TradeTerms
from core.market.delivery import DeliveryOpen, Share, SignedOpen
from core.market.marks import Marking
from core.market.reverse_game import PoolPrivate
from core.market.rows import Features, Held, Labels
from core.ports import Rng, SystemRng
from services.rpc import convert_market as convert
from services.rpc.channel import backoff, call
from services.rpc.convert_fields import exact
from services.rpc.convert_market import Bidding, DataSetView, SealedChunk
from services.rpc.errors import translate
from services.rpc.views import AccountView, MarketView, ProviderView, Tip, TradePhase, TradeView
from services.runtime.logging import logger

__all__ = [
    "Buyer", "ChainReads", "DataSetView", "Deal", "Declined", "MarketClient", "NoDeal", "SeedKeeper", "Sender",
    "TradeOutcome", "Undecided", "commitments", "receive_rows", "share_of",
]  # fmt: skip

log = logger(__name__)

CALL_TIMEOUT: Final = 10.0
"""Seconds a provider has for one answer."""
POLL: Final = 0.2
OFFERS: Final = 3
"""Offers asked for in a row while the figures of the provider's node and ours differ by a block."""


class MarketClient:
    """A provider's service. Every method raises the error tree; the caller keeps and closes the channel."""

    def __init__(self, channel: aio.Channel, peer: str = "the provider") -> None:
        self._stub = rpc.ProviderServiceStub(channel)
        self._peer = peer

    async def list_data_sets(self, timeout: float = CALL_TIMEOUT) -> tuple[DataSetView, ...]:
        request = pb.ListDataSetsRequest()
        answer = await call(self._stub.ListDataSets, request, timeout, peer=self._peer, idempotent=True)
        return convert.data_sets_from_proto(answer)

    async def data_set(self, data_root: Digest, timeout: float = CALL_TIMEOUT) -> DataSetView:
        """Raises NotFoundError if this root is not on sale."""
        for view in await self.list_data_sets(timeout):
            if view.data_root == data_root:
                return view
        raise NotFoundError(f"{self._peer} does not sell the data set {short(data_root)}", data_root=data_root)

    async def request_offer(self, pool: AccountId, data_root: Digest, timeout: float = CALL_TIMEOUT) -> SignedOffer:
        """The provider's rule for this pool, free of contradictions; its signature is the caller's to check."""
        request = pb.RequestOfferRequest(pool=pool, data_root=data_root)
        answer = await call(self._stub.RequestOffer, request, timeout, peer=self._peer, idempotent=True)
        return convert.offer_from_proto(answer)

    async def accept_bid(self, bidding: Bidding, timeout: float = CALL_TIMEOUT) -> Signature:
        """The provider's signature of the trade terms, not verified yet."""
        request = convert.bid_to_proto(bidding)
        answer = await call(self._stub.AcceptBid, request, timeout, peer=self._peer, idempotent=True)
        return Signature(exact("provider_signature", answer.provider_signature, signing.SIGNATURE_SIZE))

    def deliver(self, timeout: float) -> DeliveryStream:
        """A delivery that lasts at most ``timeout`` seconds; use it as a context manager."""
        method: Any = self._stub.Deliver  # its stub type does not know the form without an iterator
        return DeliveryStream(method(timeout=timeout), self._peer)


class DeliveryStream:
    """One run of the delivery protocol from the miner's side."""

    def __init__(self, stream: Any, peer: str) -> None:
        self._stream = stream
        self._peer = peer

    async def __aenter__(self) -> DeliveryStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.cancel()

    async def open(self, signed: SignedOpen) -> None:
        await self._write(convert.open_to_proto(signed))

    async def send_receipt(self, chunk: int, signature: Signature) -> None:
        await self._write(convert.receipt_to_proto(chunk, signature))

    async def next_chunk(self) -> SealedChunk | None:
        """The next chunk, or None when the provider has sent all and has every receipt."""
        with translate(self._peer):
            message = await self._stream.read()
            if not isinstance(message, pb.DeliverResponse):  # the end of the stream, with status OK
                return None
        return convert.sealed_from_proto(message)

    async def _write(self, message: pb.DeliverRequest) -> None:
        with translate(self._peer):
            try:
                await self._stream.write(message)
            except asyncio.InvalidStateError:
                # The call has ended: reading raises the status that says why.
                await self._stream.read()
                raise SequenceError(f"{self._peer} ended the delivery") from None


# -- the pool ----------------------------------------------------------------------------------------------------------


class ChainReads(Protocol):
    """What a buyer asks of the nodes; services.rpc.chain_client.ChainClient has it."""

    async def market(self, provider: AccountId, pool: AccountId) -> MarketView: ...
    async def account(self, account: AccountId) -> AccountView: ...
    async def trade(self, trade_id: Digest) -> TradeView: ...
    async def tip(self) -> Tip: ...


class Sender(Protocol):
    """What puts a buyer's bid on the chain; services.rpc.chain_client.Wallet has it."""

    async def send_and_wait(self, payload: Payload, timeout: float) -> tuple[TxId, Height]: ...


class SeedKeeper(Protocol):
    """What remembers the seeds of a pool's marks; pool.manager.marks.MarksDesk does."""

    def keep(self, trade_id: Digest, miners: tuple[AccountId, ...], seeds: tuple[bytes, ...]) -> None:
        """On disk when it returns."""


@dataclass(frozen=True, slots=True)
class Declined:
    """There was no bid on the chain: one of the two sides did not want it, or it came too late. Nothing is locked."""

    reason: str


@dataclass(frozen=True, slots=True)
class NoDeal:
    """The draw said no; the price went back."""

    trade: TradeView


@dataclass(frozen=True, slots=True)
class Deal:
    """The draw said yes: the miners may fetch their rows until the trade's delivery deadline."""

    trade: TradeView
    data_set: DataSetView

    def shares(self) -> tuple[tuple[AccountId, Share], ...]:
        """Who fetches what, in the order of the bid."""
        view, miners = self.data_set, self.trade.miners
        return tuple(
            (miner, Share.of(view.data_root, view.rows, view.features, view.classes, len(miners), i))
            for i, miner in enumerate(miners)
        )


@dataclass(frozen=True, slots=True)
class Undecided:
    """Time ran out after the bid was handed in: the price may be locked. `Buyer.follow` goes on from here."""

    trade_id: Digest
    expiry_ms: int
    """The bid reaches no block of a later time."""
    data_set: DataSetView
    reason: str


TradeOutcome = Declined | NoDeal | Deal | Undecided


@dataclass(frozen=True, slots=True)
class Buyer:
    """A pool that buys rows. ``private`` never leaves it: only the bid that follows from it does."""

    chain: ChainReads
    wallet: Sender
    key: signing.KeyPair
    """The pool's; the same as the wallet's."""
    chain_id: Digest
    private: PoolPrivate
    keeper: SeedKeeper
    rng: Rng = field(default_factory=SystemRng)

    @property
    def pool(self) -> AccountId:
        return AccountId(self.key.public_key)

    async def buy(
        self,
        seller: MarketClient,
        provider: ProviderView,
        miners: Sequence[AccountId],
        *,
        timeout: float,
        features: int | None = None,
        classes: int | None = None,
    ) -> TradeOutcome:
        """Offer, bid, transaction, draw: all within ``timeout`` seconds (design: market, "A trade", steps 1 to 3).

        ``features`` and ``classes``: what the rows must have to be of use. Whatever goes wrong before the bid is handed
        in is Declined with its reason, so a bad provider never stops a pool.
        """
        end = _now() + timeout
        try:
            data_set = await seller.data_set(provider.data_root, _left(end))
            _check_fit(data_set, provider, features, classes)
            seeds = tuple(self.rng.bytes(marks.SEED_SIZE) for _ in miners)
            # Before the offer, which expires soon.
            committed = await asyncio.to_thread(commitments, self.chain_id, provider, self.pool, miners, seeds)
            signed = await self._offer(seller, provider, data_set, end)
            chosen = choose_bid(signed.offer.rule, self.private, signed.offer.reputation_ppm)
            if chosen is None:
                return Declined("no bid under the provider's rule is worth it to this pool")
            m, terms = chosen
            balance = (await self.chain.account(self.pool)).balance
            if balance < terms.price:
                return Declined(f"the price would be {terms.price}, this pool has {balance}")
            trade = TradeTerms(signed.offer, m, terms.p_ppm, tuple(miners), committed)
            contract.check_trade(trade)
            signature = await self._agree(seller, trade, end)
            # Before the bid is: whoever cannot open his marks is taken for a leaker.
            await asyncio.to_thread(self.keeper.keep, contract.trade_id(trade), trade.miners, seeds)
        except PoflError as error:
            return Declined(error.message)
        log.info("bidding", provider=short(provider.provider), bid=m, markup=terms.markup, p_ppm=terms.p_ppm)
        bid = Bid(encode(signed.offer), signed.signature, m, terms.p_ppm, trade.miners, trade.marks, signature)
        trade_id = contract.trade_id(trade)
        try:
            await self.wallet.send_and_wait(bid, max(POLL, end - _now()))
        except TransactionError as error:
            return Declined(f"the chain refused the bid: {error.message}")
        except (DeadlineError, UnavailableError) as error:
            # It may still be in a mempool.
            return Undecided(trade_id, signed.offer.expiry_ms, data_set, error.message)
        return await self._follow(trade_id, signed.offer.expiry_ms, data_set, end)

    async def follow(self, undecided: Undecided, *, timeout: float) -> TradeOutcome:
        """Go on waiting for a bid's draw, for ``timeout`` seconds. Declined once the bid can reach no block any more."""
        return await self._follow(undecided.trade_id, undecided.expiry_ms, undecided.data_set, _now() + timeout)

    async def _offer(self, seller: MarketClient, provider: ProviderView, data_set: DataSetView, end: float) -> SignedOffer:
        """A good offer whose figures are the chain's. Raises MarketError or what the provider answered."""
        for attempt in range(OFFERS):
            if attempt:
                await asyncio.sleep(POLL * 2)
            signed = await seller.request_offer(self.pool, provider.data_root, _left(end))
            offer = signed.offer
            signing.verify(provider.provider, contract.DOMAIN_OFFER, encode(offer), signed.signature)
            ours = (self.chain_id, provider.provider, self.pool, provider.data_root)
            described = (data_set.rows, data_set.features, data_set.classes)
            if (offer.chain_id, offer.provider, offer.pool, offer.data_root) != ours:
                raise MarketError("the offer is for another chain, provider, pool or data set than was asked for")
            if (offer.rows, offer.features, offer.classes) != described:
                raise MarketError(f"the data set is {described}, its offer {(offer.rows, offer.features, offer.classes)}")
            market, tip = await self.chain.market(provider.provider, self.pool), await self.chain.tip()
            if offer.expiry_ms < tip.next_time_ms:
                raise MarketError(f"the offer expired at {offer.expiry_ms}, the next block is at {tip.next_time_ms}")
            problem = _figures(signed, market)
            if not problem:
                return signed
        raise MarketError(problem)

    async def _agree(self, seller: MarketClient, trade: TradeTerms, end: float) -> Signature:
        """The provider's verified signature of the trade terms."""
        bidding = Bidding(trade, delivery.sign_bid(self.key, trade))
        signature = await seller.accept_bid(bidding, _left(end))
        signing.verify(trade.offer.provider, contract.DOMAIN_TRADE_SIGNATURE, encode(trade), signature)
        return signature

    async def _follow(self, trade_id: Digest, expiry_ms: int, data_set: DataSetView, end: float) -> TradeOutcome:
        reason = "the next block, which draws the bid, is not there yet"
        while True:
            try:
                # In this order: a bid that is in no block although the time of the next one is past its offer's expiry
                # can reach none.
                next_ms = (await self.chain.tip()).next_time_ms
                trade = await self.chain.trade(trade_id)
            except NotFoundError:
                if next_ms > expiry_ms:
                    return Declined("the bid reached no block before its offer expired")
                reason = "the bid is in no block yet"
            except (UnavailableError, DeadlineError) as error:
                reason = error.message
            else:
                if trade.phase is TradePhase.NO_DEAL:
                    return NoDeal(trade)
                if trade.phase is not TradePhase.BID:
                    return Deal(trade, data_set)
            if _now() >= end:
                return Undecided(trade_id, expiry_ms, data_set, reason)
            await asyncio.sleep(POLL)


def commitments(
    chain_id: Digest, provider: ProviderView, pool: AccountId, miners: Sequence[AccountId], seeds: Sequence[bytes]
) -> tuple[Digest, ...]:
    """To the marks of each miner in a trade on a provider's rows. 50 ms each, so not on the event loop. Raises MarketError."""
    found = []
    for index, (miner, seed) in enumerate(zip(miners, seeds, strict=True)):
        share = Share.of(provider.data_root, provider.rows, 1, 1, len(miners), index)
        session = marks.session_id(chain_id, provider.provider, pool, provider.data_root, miner)
        found.append(marks.commit(seed, session, share.marks).commitment)
    return tuple(found)


def _check_fit(data_set: DataSetView, provider: ProviderView, features: int | None, classes: int | None) -> None:
    if data_set.rows != provider.rows:
        raise MarketError(f"the provider offers {data_set.rows} rows and registered {provider.rows}")
    for name, wanted, found in (("features", features, data_set.features), ("classes", classes, data_set.classes)):
        if wanted is not None and wanted != found:
            raise MarketError(f"the data set has {found} {name}, the task {wanted}")


def _figures(signed: SignedOffer, market: MarketView) -> str:
    """What in an offer is not as the chain has it, or an empty text."""
    offer = signed.offer
    if offer.reputation_ppm != market.pool_reputation_ppm:
        return f"the offer says reputation {offer.reputation_ppm} ppm, the chain {market.pool_reputation_ppm}"
    highs = (market.markup_high, market.bid_high)
    if offer.rule.D_bar < highs[0] or offer.rule.m_bar < highs[1]:
        return f"the offer says D_bar, m_bar = {offer.rule.D_bar}, {offer.rule.m_bar}, the chain {highs[0]}, {highs[1]}"
    return ""


# -- the miner ---------------------------------------------------------------------------------------------------------


def share_of(data_set: DataSetView, first: int, count: int) -> Share:
    """A miner's share from what its manager told it (``first``, ``count``) and what the provider lists.

    Nothing of it needs trust: rows that are not these do not lead to the root. Raises MarketError if it is outside.
    """
    if first < 0 or count < CHUNKS or first + count > data_set.rows:
        raise MarketError(
            f"rows {first}..{first + count - 1} of {data_set.rows}; a share is inside the data set and has {CHUNKS} rows "
            "or more",
            first=first, count=count,
        )  # fmt: skip
    return Share(data_set.data_root, data_set.rows, data_set.features, data_set.classes, first, count)


async def receive_rows(
    market: MarketClient,
    chain_id: Digest,
    trade_id: Digest,
    key: signing.KeyPair,
    share: Share,
    marking: Marking,
    session: Digest,
    on_receipt: Callable[[ChunkReceipt], Awaitable[None]],
    *,
    timeout: float,
    parts: list[tuple[Features, Labels]] | None = None,
    keep: Callable[[Features, Labels], None] = lambda _x, _y: None,
    rng: Rng | None = None,
) -> tuple[Features, Labels]:
    """Fetch this miner's rows of a drawn trade: x int8 [k, M] and y uint8 [k], every chunk checked against the root.

    A receipt is signed for a chunk only once it is checked and held; ``on_receipt`` has it before the provider does. A
    broken connection is dialled again until ``timeout`` seconds are over, and goes on where it broke off.

    ``parts``: chunks that are here from before; those that come are appended, whatever becomes of the rest. ``keep``: called
    in a thread with each that comes, before its receipt is signed; what it raises ends the delivery.

    ``marking`` and ``session``: this miner's choices of variants (core.market.marks). After a CheatingError never ask for
    this trade's rows again with the same choices: that rows did not open may depend on them, and a second try would tell
    the provider more.

    Raises:
        DeadlineError: not all came in time; ``values["chunks"]`` says how many did.
        CheatingError: the provider sent something else than the rows that are due.
        AuthError: the provider says that this miner has no rows in this trade.
    """
    end = _now() + timeout
    sealing_key = SealingKeyPair.generate(rng or SystemRng())
    parts = [] if parts is None else parts
    attempt = 0
    while True:
        before = len(parts)
        opened = DeliveryOpen(
            chain_id, trade_id, AccountId(key.public_key), sealing_key.public_key, min(len(parts), CHUNKS - 1),
            marking.seed_hash, marking.points,
        )  # fmt: skip
        try:
            async with asyncio.timeout_at(end), market.deliver(max(POLL, end - _now())) as stream:
                await stream.open(delivery.sign_open(key, opened))
                await _receive(stream, opened, key, sealing_key, share, marking, session, parts, keep, on_receipt)
            break
        except (UnavailableError, DeadlineError, AbortError, TimeoutError) as error:
            attempt = 0 if len(parts) > before else attempt + 1
            delay = backoff(attempt)
            if _now() + delay >= end:
                raise DeadlineError(
                    f"{len(parts)} of {CHUNKS} chunks of trade {short(trade_id)} came in {timeout:g} s: {error}",
                    chunks=len(parts), trade_id=trade_id,
                ) from error  # fmt: skip
            log.warning("delivery broke off, trying again", trade=short(trade_id), chunks=len(parts), error=str(error))
            await asyncio.sleep(delay)
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


async def _receive(
    stream: DeliveryStream,
    opened: DeliveryOpen,
    key: signing.KeyPair,
    sealing_key: SealingKeyPair,
    share: Share,
    marking: Marking,
    session: Digest,
    parts: list[tuple[Features, Labels]],
    keep: Callable[[Features, Labels], None],
    on_receipt: Callable[[ChunkReceipt], Awaitable[None]],
) -> None:
    due: int | None = None
    held: Held | None = None
    while (sealed := await stream.next_chunk()) is not None:
        # The first may be one that we have: its receipt was lost.
        if sealed.chunk > len(parts) if due is None else sealed.chunk != due:
            raise SequenceError(f"chunk {sealed.chunk} came, due was {len(parts) if due is None else due}")
        due = sealed.chunk + 1
        try:
            if held is None:
                keys = await asyncio.to_thread(marks.group_keys, marking, session, sealed.transfer)
                held = Held(share.first, marking.keys.choices, keys)
            came = (
                delivery.open_sealed(sealing_key, opened, share, sealed.chunk, sealed.sealed, held)
                if sealed.chunk == len(parts)
                else None
            )
        except (MarketError, CryptoError, InputError) as error:
            raise CheatingError(f"chunk {sealed.chunk} does not open: {error.message}") from error
        if came is not None:
            await asyncio.to_thread(keep, *came)
            parts.append(came)
        receipt = delivery.sign_receipt(key, opened.chain_id, opened.trade_id, sealed.chunk)
        await on_receipt(receipt)
        await stream.send_receipt(receipt.chunk, receipt.miner_signature)
    if len(parts) < CHUNKS:
        raise SequenceError(f"the provider ended after {len(parts)} of {CHUNKS} chunks", chunks=len(parts))


def _now() -> float:
    return asyncio.get_running_loop().time()


def _left(end: float) -> float:
    """Seconds for one call. Raises DeadlineError when none are left."""
    left = end - _now()
    if left <= 0:
        raise DeadlineError("the time for this trade is over")
    return min(CALL_TIMEOUT, left)
