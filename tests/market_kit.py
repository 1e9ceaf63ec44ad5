"""A market to test on: the chain's own rules behind the calls that roles make, and a data set."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.chain import build, rules
from core.chain.state import total_supply
from core.chain.transaction import Bid, Payload, SignedTransaction
from core.codec import encode
from core.crypto import signing
from core.crypto.signing import KeyPair
from core.errors import TransactionError, UnavailableError
from core.ids import AccountId, Digest, Height, Milliseconds, PartsPerMillion, Signature, StateRoot, TxId
from core.market import contract, delivery, draw, marks
from core.market.bridge import choose_bid
from core.market.contract import DEFAULT_RULE, Offer, TradeTerms
from core.market.delivery import DeliveryOpen, Share, SignedOpen
from core.market.marks import Marking
from core.market.reverse_game import PoolPrivate
from core.market.rows import DataSet
from node import queries
from provider.goods import Goods
from provider.ledger import SalesLedger
from provider.seller import Seller
from services.rpc.convert_market import Bidding
from services.rpc.views import AccountView, BlockView, MarketView, ProviderView, Tip, TradeView
from services.storage import KeyValueStore, Memory
from tests.chainkit import Chain, account, key
from tests.seeded import SeededRng

MINERS = tuple(account(f"miner{i}") for i in range(3))
PRIVATE = PoolPrivate(20_000.0, 0.0, 0.0)
OFFER_MS = 20_000
SCALE_MICRO = 127_000_000


def rows_and_labels(rows: int = 90, features: int = 8) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    generator = np.random.Generator(np.random.PCG64(1))
    return generator.random((rows, features), dtype=np.float32), generator.integers(0, 10, rows)


def make_goods(rows: int = 90, strength: int = 0) -> Goods:
    """Without marks in its values, where ``strength`` is 0: tests compare rows. Choices are made all the same."""
    x, y = rows_and_labels(rows)
    data = DataSet(np.rint(x * 127).astype(np.int8), y.astype(np.uint8), 10, b"s" * 32, strength)
    return Goods("rows", data, SCALE_MICRO)


@dataclass
class KitChain:
    """One node's answers, over the real state transition. Every transaction gets a block of its own at once."""

    chain: Chain = field(default_factory=Chain)
    deal: bool | None = True
    """How the draw of a bid comes out; None: it is not drawn until `draw` is called."""
    is_down: bool = False
    final: dict[TxId, int] = field(default_factory=dict)
    refused: dict[TxId, TransactionError] = field(default_factory=dict)

    @property
    def chain_id(self) -> Digest:
        return self.chain.state.chain_id

    def balance(self, name: str) -> int:
        return self.chain.state.account(account(name)).balance

    # What roles read

    async def market(self, provider: AccountId, pool: AccountId) -> MarketView:
        self._up()
        return queries.market_view(self.chain.state, provider, pool)

    async def trade(self, trade_id: Digest) -> TradeView:
        self._up()
        return queries.trade_view(self.chain.state, trade_id)

    async def account(self, account: AccountId) -> AccountView:
        self._up()
        state = self.chain.state
        return queries.account_view(state, queries.Names(self.chain.genesis), account, state.account(account).nonce)

    async def providers(self) -> tuple[ProviderView, ...]:
        self._up()
        return queries.provider_views(self.chain.state)

    async def tip(self) -> Tip:
        self._up()
        state = self.chain.state
        return Tip(
            state.height, state.tip.block_hash, StateRoot(bytes(32)), None, self.now_ms(), None, False,
            total_supply(state), state.burned, 0, 0, state.version,
        )  # fmt: skip

    async def block(self, key: Height) -> BlockView:
        self._up()
        block, certificate = self.chain.blocks[key - 1], self.chain.certificate()
        assert certificate is not None
        return BlockView(block, block.header.decoded(), (), (), certificate, StateRoot(bytes(32)))

    async def wait_final(self, tx_id: TxId, timeout: float, again: SignedTransaction | None = None) -> Height:
        self._up()
        if tx_id in self.refused:
            raise self.refused[tx_id]
        return Height(self.final[tx_id])

    def now_ms(self) -> Milliseconds:
        """The time of the next block; also a Clock."""
        return rules.next_time(self.chain.state, self.chain.certificate())

    # What happens

    def take(self, signed: SignedTransaction) -> int:
        """A block with this transaction, drawn after it if it is a bid. Raises TransactionError."""
        if signed.tx_id in self.final:
            return self.final[signed.tx_id]
        try:
            self.chain.block(signed)
        except TransactionError:
            self.chain.nonces.clear()
            raise
        self.final[signed.tx_id] = self.chain.state.height
        payload = signed.decoded().payload
        if isinstance(payload, Bid) and self.deal is not None:
            offer = contract.decode_offer(payload.offer)
            self.draw(TradeTerms(offer, payload.bid, PartsPerMillion(payload.p_ppm), payload.miners, payload.marks), self.deal)
        return self.final[signed.tx_id]

    def draw(self, trade: TradeTerms, deal: bool) -> None:
        """The next block, at a time whose hash draws ``deal``."""
        trade_id = contract.trade_id(trade)
        chain = self.chain
        for after_ms in range(1000, 1200):
            chain.clock += after_ms
            block = build.build_transaction_block(chain.state, key("v0"), chain.certificate(), []).block
            if draw.is_deal(block.block_hash, trade_id, trade.p_ppm) == deal:
                chain.apply(block)
                return
            chain.clock -= after_ms
        raise AssertionError(f"no block draws {deal} at p = {trade.p_ppm}")

    def wallet(self, name: str) -> KitWallet:
        return KitWallet(self, name)

    def _up(self) -> None:
        if self.is_down:
            raise UnavailableError("no node answers")


@dataclass
class KitWallet:
    kit: KitChain
    name: str

    async def send(self, payload: Payload) -> SignedTransaction:
        self.kit._up()
        await asyncio.sleep(0)
        signed = self.kit.chain.tx(self.name, payload)
        try:
            self.kit.take(signed)
        except TransactionError as error:
            self.kit.refused[signed.tx_id] = error
        return signed

    async def send_and_wait(self, payload: Payload, timeout: float) -> tuple[TxId, Height]:
        signed = await self.send(payload)
        return signed.tx_id, await self.kit.wait_final(signed.tx_id, timeout)


class Shop:
    """A registered provider's seller with its ledger."""

    def __init__(self, kit: KitChain, store: KeyValueStore | None = None, rows: int = 90) -> None:
        self.kit = kit
        self.goods = make_goods(rows)
        self.ledger = SalesLedger(Memory() if store is None else store)
        self.seller = self.restarted()

    def restarted(self) -> Seller:
        return Seller(
            key("provider"), self.kit.chain_id, self.kit, self.goods, DEFAULT_RULE, self.ledger, offer_ms=OFFER_MS,
            draw_window_ms=self.kit.chain.genesis.params.draw_window_ms, clock=self.kit, rng=SeededRng("shop"),
        )  # fmt: skip

    async def offer(self, pool: str = "pool0") -> Offer:
        return (await self.seller.offer(account(pool), self.goods.data.root)).offer


def terms_for(offer: Offer, miners: tuple[AccountId, ...] = MINERS) -> TradeTerms:
    chosen = choose_bid(offer.rule, PRIVATE, offer.reputation_ppm)
    assert chosen is not None
    return TradeTerms(offer, chosen[0], chosen[1].p_ppm, miners, tuple(_marking(offer, miners, m).commitment for m in miners))


def seed_of(miner: AccountId) -> bytes:
    """From which a miner's choices follow in every trade of these tests."""
    return SeededRng(miner.hex()).bytes(32)


def session_of(offer: Offer, miner: AccountId) -> Digest:
    return marks.session_id(offer.chain_id, offer.provider, offer.pool, offer.data_root, miner)


@functools.cache
def _marking_of(session: Digest, miner: AccountId, count: int) -> Marking:
    return marks.commit(seed_of(miner), session, count)


def _marking(offer: Offer, miners: tuple[AccountId, ...], miner: AccountId) -> Marking:
    share = Share.of(offer.data_root, offer.rows, offer.features, offer.classes, len(miners), miners.index(miner))
    return _marking_of(session_of(offer, miner), miner, share.marks)


def marking_of(trade: TradeTerms, miner: AccountId) -> Marking:
    """A miner's choices in a trade that `terms_for` made; a stranger's are another's."""
    return _marking(trade.offer, trade.miners, miner if miner in trade.miners else trade.miners[0])


class MemoryKeeper(dict[Digest, dict[AccountId, bytes]]):
    """A SeedKeeper in memory."""

    def keep(self, trade_id: Digest, miners: tuple[AccountId, ...], seeds: tuple[bytes, ...]) -> None:
        self[trade_id] = dict(zip(miners, seeds, strict=True))


def bidding(trade: TradeTerms, pool: str = "pool0") -> Bidding:
    return Bidding(trade, delivery.sign_bid(key(pool), trade))


def asked(
    kit: KitChain, trade_id: Digest, miner: str, public: bytes, marking: Marking | None, from_chunk: int = 0
) -> SignedOpen:
    """``marking``: None for a miner that makes something up."""
    seed_hash, points = (Digest(bytes(32)), b"") if marking is None else (marking.seed_hash, marking.points)
    opened = DeliveryOpen(kit.chain_id, trade_id, account(miner), public, from_chunk, seed_hash, points)
    return delivery.sign_open(key(miner), opened)


def on_chain(trade: TradeTerms, seller: KeyPair, provider_signature: bytes) -> Bid:
    offer = encode(trade.offer)
    return Bid(
        offer, signing.sign(seller, contract.DOMAIN_OFFER, offer), trade.bid, trade.p_ppm, trade.miners, trade.marks,
        Signature(provider_signature),
    )  # fmt: skip


async def no_receipt(_: object) -> None:
    return None


def write_npz(path: Path, x: object, y: object) -> Path:
    np.savez(path, x=np.asarray(x), y=np.asarray(y))
    return path
