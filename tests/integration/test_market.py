"""A provider behind real connections: a pool buys from it, miners fetch their rows, and liars get nowhere.

The nodes' side is one ChainService over the chain's own rules (tests/market_kit.py); all else is the product's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import aio
from pofl.chain.v1 import chain_pb2 as pb
from pofl.chain.v1 import chain_pb2_grpc as rpc

from core.chain.transaction import ChunkReceipt, SignedTransaction
from core.codec import decode
from core.errors import AuthError, CheatingError, DeadlineError, MalformedError, StorageError, TransactionError
from core.ids import AccountId, Digest, Height, Signature, TxId
from core.market import delivery, marks
from core.market.contract import CHUNKS
from core.market.delivery import DeliveryOpen, Share
from core.market.marks import Marking
from core.market.reverse_game import PoolPrivate
from core.market.rows import Chunk, DataSet, Sold
from core.params import Genesis
from pool.miner.bought import BoughtRows, Delivery, Heading
from provider.app import main
from provider.config import DataConfig, ProviderConfig
from services.rpc import channel, tls
from services.rpc import convert_chain as convert
from services.rpc.chain_client import ChainClient, Wallet
from services.rpc.market_client import (
    Buyer,
    Deal,
    Declined,
    MarketClient,
    NoDeal,
    Undecided,
    receive_rows,
    share_of,
)
from services.rpc.role import open_role
from services.rpc.server import RpcServer
from services.rpc.views import ProviderView, TradePhase
from services.runtime.config import ChainConfig, PeersConfig, TlsConfig
from services.runtime.lifecycle import Lifecycle
from services.testnet.layout import free_ports
from tests.chainkit import account, key
from tests.market_kit import (
    MINERS,
    PRIVATE,
    SCALE_MICRO,
    KitChain,
    MemoryKeeper,
    bidding,
    no_receipt,
    rows_and_labels,
    terms_for,
    write_npz,
)

pytestmark = pytest.mark.timeout(600)

LONG = 120.0
"""Seconds, for what takes one on a machine that does nothing else."""
SILENCE_MS = 2_000
"""How long a provider waits for a receipt, where that is looked at."""
SERVICE = pb.DESCRIPTOR.services_by_name["ChainService"].full_name


class KitNode(rpc.ChainServiceServicer):
    """ChainService over a KitChain: what the market uses of it."""

    def __init__(self, kit: KitChain) -> None:
        self.kit = kit

    async def GetGenesis(self, request: Any, context: Any) -> pb.GetGenesisResponse:  # noqa: N802
        genesis: Genesis = self.kit.chain.genesis
        return pb.GetGenesisResponse(chain_id=genesis.chain_id, genesis_json=genesis.to_json())

    async def GetTip(self, request: Any, context: Any) -> pb.GetTipResponse:  # noqa: N802
        return convert.tip_to_proto(await self.kit.tip())

    async def GetAccount(self, request: Any, context: Any) -> pb.GetAccountResponse:  # noqa: N802
        return convert.account_to_proto(await self.kit.account(AccountId(request.account)))

    async def ListProviders(self, request: Any, context: Any) -> pb.ListProvidersResponse:  # noqa: N802
        return pb.ListProvidersResponse(providers=[convert.provider_to_proto(p) for p in await self.kit.providers()])

    async def GetTrade(self, request: Any, context: Any) -> pb.GetTradeResponse:  # noqa: N802
        return pb.GetTradeResponse(trade=convert.trade_to_proto(await self.kit.trade(Digest(request.trade_id))))

    async def GetMarket(self, request: Any, context: Any) -> pb.GetMarketResponse:  # noqa: N802
        view = await self.kit.market(AccountId(request.provider), AccountId(request.pool))
        return convert.market_to_proto(view)

    async def GetBlock(self, request: Any, context: Any) -> pb.GetBlockResponse:  # noqa: N802
        return pb.GetBlockResponse(block=convert.block_to_proto(await self.kit.block(Height(request.height))))

    async def SubmitTransaction(self, request: Any, context: Any) -> pb.SubmitTransactionResponse:  # noqa: N802
        signed = decode(SignedTransaction, request.signed_transaction)
        self.kit.take(signed)
        return pb.SubmitTransactionResponse(tx_id=signed.tx_id)

    async def GetTransaction(self, request: Any, context: Any) -> pb.GetTransactionResponse:  # noqa: N802
        height = self.kit.final.get(TxId(request.tx_id))
        if height is None:
            return pb.GetTransactionResponse(status=pb.TRANSACTION_STATUS_UNKNOWN)
        return pb.GetTransactionResponse(status=pb.TRANSACTION_STATUS_FINAL, height=height)


@dataclass
class World:
    folder: Path
    authority: tls.Authority
    kit: KitChain
    node: str
    channels: list[aio.Channel] = field(default_factory=list)
    keeper: MemoryKeeper = field(default_factory=MemoryKeeper)
    receipt_ms: int = 300_000

    def files(self, role: str, name: str) -> tls.TlsFiles:
        issued = tls.issue(self.authority, role, name, ["localhost", "127.0.0.1"], account(name))
        return issued.write(self.folder / f"{role}-{name}")

    def channel(self, role: str, name: str, target: str, expect: str) -> aio.Channel:
        self.channels.append(channel.connect(target, self.files(role, name), expect_role=expect))
        return self.channels[-1]

    def chain(self, role: str, name: str) -> ChainClient:
        return ChainClient([("node", self.channel(role, name, self.node, "node"))])

    def market(self, role: str, name: str, target: str) -> MarketClient:
        return MarketClient(self.channel(role, name, target, "provider"), target)

    def buyer(self, name: str = "pool0", private: PoolPrivate = PRIVATE) -> Buyer:
        chain, chain_id = self.chain("pool", name), self.kit.chain_id
        return Buyer(chain, Wallet(chain, chain_id, key(name)), key(name), chain_id, private, self.keeper)

    def marks_of(self, deal: Deal, miner: AccountId) -> tuple[Marking, Digest]:
        """A miner's choices, as its pool tells it, and what they are bound to."""
        trade = deal.trade
        session = marks.session_id(self.kit.chain_id, trade.provider, trade.pool, trade.data_root, miner)
        count = deal.shares()[trade.miners.index(miner)][1].marks
        return marks.commit(self.keeper[trade.trade_id][miner], session, count), session

    def config(self, listen: str = "127.0.0.1:0") -> ProviderConfig:
        home = self.folder / "provider"
        home.mkdir(exist_ok=True)
        files = self.files("provider", "provider")
        (home / "account.key").touch(0o600)
        (home / "account.key").write_text(key("provider").seed.hex())
        (home / "genesis.json").write_text(self.kit.chain.genesis.to_json())
        data = write_npz(home / "rows.npz", *rows_and_labels())
        return ProviderConfig(
            name="provider", listen=listen, data_dir=home / "data", key=home / "account.key",
            tls=TlsConfig(ca=files.ca, cert=files.cert, key=files.key), chain=ChainConfig(genesis=home / "genesis.json"),
            peers=PeersConfig(nodes=(self.node,)),
            data=DataConfig(path=data, name="rows", feature_scale_micro=SCALE_MICRO, mark_strength_ppm=0),
            receipt_ms=self.receipt_ms,
        )  # fmt: skip

    async def registered(self) -> ProviderView:
        async with asyncio.timeout(LONG):
            while not (found := await self.kit.providers()):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        return found[0]


@pytest.fixture
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Parameter: receipt_ms."""
    made = World(tmp_path, tls.make_authority(tmp_path / "ca"), KitChain(), "")
    made.receipt_ms = getattr(request, "param", made.receipt_ms)
    server = RpcServer("127.0.0.1:0", made.files("node", "v0"), "127.0.0.1:0", role_rules={SERVICE: ["*"]})
    server.add(rpc.add_ChainServiceServicer_to_server, KitNode(made.kit), SERVICE)  # type: ignore[abstract]
    await server.start()
    made.node = server.address
    yield made
    for each in made.channels:
        await each.close(None)
    await server.stop(0)


@pytest.fixture
async def provider(world: World) -> AsyncIterator[ProviderView]:
    """The product's own main function, in this process."""
    life = Lifecycle()
    running = asyncio.create_task(main(open_role(world.config()), life))
    yield await world.registered()
    life.stop()
    await running
    await life.close(time.monotonic() + 60)
    assert life.failure is None


async def buy(world: World, provider: ProviderView, **changes: Any) -> Any:
    seller = world.market("pool", "pool0", provider.endpoint)
    return await world.buyer(**changes).buy(seller, provider, MINERS, timeout=LONG, features=8, classes=10)


async def fetch(world: World, provider: ProviderView, deal: Deal, miner: int, receipts: list[ChunkReceipt]) -> Any:
    async def keep(receipt: ChunkReceipt) -> None:
        receipts.append(receipt)

    market = world.market("miner", f"miner{miner}", provider.endpoint)
    told = deal.shares()[miner][1]
    # As a miner does it: it knows its first row and their count from its manager, the rest from the provider.
    share = share_of(await market.data_set(provider.data_root), told.first, told.count)
    assert share == told
    return await receive_rows(
        market, world.kit.chain_id, deal.trade.trade_id, key(f"miner{miner}"), share,
        *world.marks_of(deal, account(f"miner{miner}")), keep, timeout=LONG,
    )  # fmt: skip


async def test_from_offer_to_rows_to_money(world: World, provider: ProviderView) -> None:
    before = world.kit.balance("provider")
    deal = await buy(world, provider)
    assert isinstance(deal, Deal)
    assert deal.trade.phase is TradePhase.DELIVERY
    receipts: list[ChunkReceipt] = []
    parts = await asyncio.gather(*(fetch(world, provider, deal, i, receipts) for i in range(3)))
    got = np.concatenate([delivery.to_floats(x, deal.data_set.feature_scale_micro) for x, _ in parts])
    x, y = rows_and_labels()
    assert got.shape == x.shape
    order, wanted = np.lexsort(got.T), np.lexsort(np.rint(x * 127).T)
    assert np.abs(got[order] - x[wanted]).max() <= 0.5 / 127 + 1e-6
    assert (np.concatenate([y for _, y in parts])[order] == y[wanted]).all()
    async with asyncio.timeout(LONG):
        while (trade := await world.kit.trade(deal.trade.trade_id)).phase is not TradePhase.SETTLED:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (trade.phase, trade.chunks_delivered, len(receipts)) == (TradePhase.SETTLED, 30, 30)
    assert world.kit.balance("provider") > before + 0.95 * (trade.bid + trade.markup) - 30


async def test_no_deal_gives_the_price_back(world: World, provider: ProviderView) -> None:
    world.kit.deal = False
    before = world.kit.balance("pool0")
    assert isinstance(await buy(world, provider), NoDeal)
    assert world.kit.balance("pool0") == before - 1
    again = await buy(world, provider)
    assert isinstance(again, Declined)
    assert "bid again from" in again.reason


async def test_a_pool_declines_what_is_worth_nothing_to_it(world: World, provider: ProviderView) -> None:
    declined = await buy(world, provider, private=PoolPrivate(100.0, 0.0, 0.0))
    assert isinstance(declined, Declined)
    assert "worth" in declined.reason
    seller = world.market("pool", "pool0", provider.endpoint)
    unfit = await world.buyer().buy(seller, provider, MINERS, timeout=LONG, features=64)
    assert unfit == Declined("the data set has 8 features, the task 64")
    many = await world.buyer().buy(seller, provider, [account(f"m{i}") for i in range(10)], timeout=LONG)
    assert isinstance(many, Declined)
    assert "90 rows for 10 miners" in many.reason


async def test_a_bid_whose_draw_is_late_is_followed(world: World, provider: ProviderView) -> None:
    world.kit.deal = None
    buyer = world.buyer()
    seller = world.market("pool", "pool0", provider.endpoint)
    # On a busy machine a short time is over before there is a bid.
    for seconds in (1.0, 8.0, 60.0):
        pending = await buyer.buy(seller, provider, MINERS, timeout=seconds)
        if isinstance(pending, Undecided):
            break
    assert isinstance(pending, Undecided)
    world.kit.chain.block()
    world.kit.chain.block()
    assert isinstance(await buyer.follow(pending, timeout=LONG), Deal | NoDeal)


async def test_a_bid_that_reached_no_block_is_declined_after_its_expiry(world: World, provider: ProviderView) -> None:
    buyer = world.buyer()
    data_set = await world.market("pool", "pool0", provider.endpoint).data_set(provider.data_root)
    lost = Undecided(Digest(bytes(32)), world.kit.now_ms() + 5_000, data_set, "")
    still = await buyer.follow(lost, timeout=0.3)
    assert isinstance(still, Undecided)
    world.kit.chain.until(lost.expiry_ms)
    world.kit.chain.clock += 1
    assert await buyer.follow(lost, timeout=LONG) == Declined("the bid reached no block before its offer expired")


async def test_a_provider_that_is_away_is_declined_in_time(world: World, provider: ProviderView) -> None:
    seller = world.market("pool", "pool0", "127.0.0.1:1")
    async with asyncio.timeout(LONG):
        assert isinstance(await world.buyer().buy(seller, provider, MINERS, timeout=1.5), Declined)


async def test_an_account_is_held_to_its_certificate_and_role(world: World, provider: ProviderView) -> None:
    mallory = world.market("pool", "pool1", provider.endpoint)
    with pytest.raises(AuthError, match="cannot act for"):
        await mallory.request_offer(account("pool0"), provider.data_root)
    offer = await world.market("pool", "pool0", provider.endpoint).request_offer(account("pool0"), provider.data_root)
    with pytest.raises(AuthError, match="cannot act for"):
        await mallory.accept_bid(bidding(terms_for(offer.offer)))
    with pytest.raises(AuthError, match="it serves pool"):
        await world.market("miner", "miner0", provider.endpoint).request_offer(account("miner0"), provider.data_root)


async def test_a_wrong_probability_is_an_invalid_argument(world: World, provider: ProviderView) -> None:
    seller = world.market("pool", "pool0", provider.endpoint)
    trade = terms_for((await seller.request_offer(account("pool0"), provider.data_root)).offer)
    with pytest.raises(MalformedError, match=r"eq\. \(2\) gives"):
        await seller.accept_bid(bidding(replace(trade, p_ppm=trade.p_ppm + 1)))  # type: ignore[arg-type]


async def test_a_miner_that_is_not_in_the_trade_gets_no_rows(world: World, provider: ProviderView) -> None:
    deal = await buy(world, provider)
    market = world.market("miner", "miner7", provider.endpoint)
    with pytest.raises(AuthError, match="has no rows in trade"):
        await receive_rows(
            market, world.kit.chain_id, deal.trade.trade_id, key("miner7"), deal.shares()[0][1],
            *world.marks_of(deal, account("miner0")), no_receipt, timeout=LONG,
        )  # fmt: skip


@pytest.mark.parametrize("world", [SILENCE_MS], indirect=True)
async def test_a_forged_receipt_and_silence_end_a_delivery(world: World, provider: ProviderView) -> None:
    deal = await buy(world, provider)
    market = world.market("miner", "miner0", provider.endpoint)
    marking, _ = world.marks_of(deal, account("miner0"))
    opened = DeliveryOpen(
        world.kit.chain_id, deal.trade.trade_id, account("miner0"), b"\x09" + bytes(31), 0, marking.seed_hash, marking.points
    )
    signed = delivery.sign_open(key("miner0"), opened)
    async with market.deliver(LONG) as stream:
        await stream.open(signed)
        assert await stream.next_chunk() is not None
        await stream.send_receipt(0, Signature(bytes(64)))
        with pytest.raises(CheatingError, match="not miner"):
            await stream.next_chunk()
    async with market.deliver(LONG) as stream:
        await stream.open(signed)
        assert await stream.next_chunk() is not None
        with pytest.raises(DeadlineError, match="sent nothing for 2 s"):
            await stream.next_chunk()


async def test_a_miner_signs_nothing_for_rows_that_are_not_under_the_root(
    world: World, provider: ProviderView, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.codec import encode
    from core.crypto import sealing

    def cheat(data: DataSet, opened: DeliveryOpen, share: Share, chunk: int, sold: Sold) -> bytes:
        good = data.chunk(*share.range(chunk), sold)
        rows = good.sealed if chunk < 2 else bytes(byte ^ 1 for byte in good.sealed)
        place = delivery._place(opened, chunk)
        bad = Chunk(good.start, good.hashes, rows, good.proof)
        return sealing.seal(opened.hpke_public_key, encode(bad), delivery._INFO, place)

    monkeypatch.setattr("provider.deliveries.delivery.seal_chunk", cheat)
    deal = await buy(world, provider)
    receipts: list[ChunkReceipt] = []
    with pytest.raises(CheatingError, match="sign no receipt"):
        await fetch(world, provider, deal, 0, receipts)
    assert [r.chunk for r in receipts] == [0, 1]


@pytest.mark.slow
async def test_a_killed_provider_process_goes_on_where_it_was(world: World) -> None:
    """SIGKILL in the middle of a delivery: same root, no second registration, no receipt lost, no row twice."""
    # Not a port that the system gives to somebody else while the provider is away.
    cfg = world.config(f"127.0.0.1:{free_ports(1)[0]}")
    command = [sys.executable, "-m", "provider", "--config", str(_write_config(world, cfg))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.DEVNULL)

    process = await start()
    try:
        provider = await world.registered()
        deal = await buy(world, provider)
        assert isinstance(deal, Deal)
        receipts: list[ChunkReceipt] = []

        async def keep(receipt: ChunkReceipt) -> None:
            nonlocal process
            receipts.append(receipt)
            if len(receipts) == 5:
                process.kill()
                await process.wait()
                process = await start()

        market = world.market("miner", "miner1", provider.endpoint)
        share = deal.shares()[1][1]
        x, _ = await receive_rows(
            market, world.kit.chain_id, deal.trade.trade_id, key("miner1"), share, *world.marks_of(deal, account("miner1")),
            keep, timeout=LONG,
        )  # fmt: skip
        assert len(x) == share.count
        # The receipt that was signed but not sent is signed again; nothing else is.
        assert [r.chunk for r in receipts] == [0, 1, 2, 3, 4, *range(4, CHUNKS)]
        assert await world.registered() == provider
        async with asyncio.timeout(LONG):
            while (await world.kit.trade(deal.trade.trade_id)).chunks_delivered < CHUNKS:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        paid = world.kit.balance("provider")
        with pytest.raises(TransactionError, match="is released"):
            await world.kit.wallet("pool0").send_and_wait(receipts[0], 1)
        assert world.kit.balance("provider") == paid
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), LONG) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_miner_killed_in_a_delivery_goes_on_from_its_disk(world: World, provider: ProviderView) -> None:
    """The rows that were acknowledged are paid for, so they are on the disk; the provider sends only the others."""
    deal = await buy(world, provider)
    assert isinstance(deal, Deal)
    who, share = account("miner1"), deal.shares()[1][1]
    heading = Heading(share.data_root, share.first, share.count, share.features, deal.data_set.feature_scale_micro)
    market = world.market("miner", "miner1", provider.endpoint)
    receipts: list[ChunkReceipt] = []
    came: list[int] = []

    async def attempt(kills_after: int) -> Delivery:
        kept = BoughtRows(world.folder / "bought").open(account("pool0"), deal.trade.trade_id, heading)

        def keep(x: Any, y: Any) -> None:
            if len(came) == kills_after:
                raise StorageError("killed")
            came.append(len(kept.parts))
            kept.keep(x, y)

        async def hand_in(receipt: ChunkReceipt) -> None:
            receipts.append(receipt)

        try:
            await receive_rows(
                market, world.kit.chain_id, deal.trade.trade_id, key("miner1"), share, *world.marks_of(deal, who), hand_in,
                timeout=LONG, parts=kept.parts, keep=keep,
            )  # fmt: skip
            kept.end()
        finally:
            kept.close()
        return kept

    for kills_after in (0, 4, 9):
        with pytest.raises(StorageError):
            await attempt(kills_after)
        # Nothing is acknowledged that is not kept. A connection that breaks costs one more receipt, of a chunk that is.
        assert [*dict.fromkeys(r.chunk for r in receipts)] == list(range(kills_after))
    whole = await attempt(-1)
    assert came == [*dict.fromkeys(r.chunk for r in receipts)] == list(range(CHUNKS))
    (kept,) = BoughtRows(world.folder / "bought").read(account("pool0"))
    assert kept.is_whole
    assert np.array_equal(kept.x, whole.x)
    assert len({bytes(row) for row in kept.x}) == len(kept.y) == share.count
    # And once more where the last acknowledgement may have been lost: nothing is kept twice.
    await attempt(-1)
    assert len(came) == CHUNKS


def _write_config(world: World, cfg: ProviderConfig) -> Path:
    from services.runtime import config

    path = world.folder / "provider.toml"
    path.write_text(config.dump(cfg))
    return path
