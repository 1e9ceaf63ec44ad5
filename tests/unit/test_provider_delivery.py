"""Delivery to miners, receipts on the chain, and what happens to liars."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from pofl.market.v1 import market_pb2 as pb

from core.chain.transaction import RegisterProvider
from core.crypto.sealing import SealingKeyPair
from core.errors import AbortError, AuthError, CheatingError, CryptoError, DeadlineError, MarketError, SequenceError
from core.ids import Digest, Signature
from core.market import contract, delivery, marks
from core.market.contract import CHUNKS
from core.market.delivery import Share, SignedOpen
from core.market.rows import Held
from core.verification.quantise import quantise_features
from provider import onchain, servicer
from provider.deliveries import SETTLE_MS, Deliveries, Delivery
from services.rpc.convert_market import SealedChunk
from services.rpc.views import TradePhase
from tests.chainkit import account, key
from tests.market_kit import MINERS, KitChain, Shop, asked, bidding, marking_of, on_chain, session_of, terms_for
from tests.seeded import SeededRng

SEALING = SealingKeyPair.generate(SeededRng("miner"))


class Sold:
    """A drawn trade of pool0 with three miners."""

    def __init__(self, kit: KitChain, shop: Shop, trade: contract.TradeTerms) -> None:
        self.kit, self.shop, self.trade, self.trade_id = kit, shop, trade, contract.trade_id(trade)
        self.event = asyncio.Event()
        self.deliveries = self.restarted()

    def restarted(self) -> Deliveries:
        return Deliveries(
            account("provider"), self.kit.chain_id, self.kit, self.shop.goods, self.shop.ledger, self.event, clock=self.kit,
            draw_wait=0.0,
        )  # fmt: skip

    def ask(self, miner: str, from_chunk: int = 0) -> SignedOpen:
        return asked(self.kit, self.trade_id, miner, SEALING.public_key, marking_of(self.trade, account(miner)), from_chunk)

    def held(self, miner: int, part: SealedChunk) -> Held:
        name, marking = MINERS[miner], marking_of(self.trade, MINERS[miner])
        keys = marks.group_keys(marking, session_of(self.trade.offer, name), part.transfer)
        return Held(self.share(miner).first, marking.keys.choices, keys)

    def share(self, miner: int) -> Share:
        data = self.shop.goods.data
        return Share.of(data.root, data.rows, data.features, data.classes, len(MINERS), miner)

    def receipt(self, miner: str, chunk: int) -> Signature:
        return delivery.sign_receipt(key(miner), self.kit.chain_id, self.trade_id, chunk).miner_signature

    async def receive(self, run: Delivery, miner: str, chunks: int = CHUNKS) -> list[int]:
        got: list[int] = []
        while len(got) < chunks and (part := await run.next_chunk()) is not None:
            await run.take_receipt(part.chunk, self.receipt(miner, part.chunk))
            got.append(part.chunk)
        return got

    def settle(self) -> asyncio.Task[bool]:
        return asyncio.create_task(onchain.settle_once(self.kit, self.kit.wallet("provider"), self.shop.ledger))


async def make_sold(deal: bool | None = True) -> Sold:
    kit = KitChain(deal=deal)
    shop = Shop(kit)
    await onchain.register(kit, kit.wallet("provider"), account("provider"), shop.goods, "127.0.0.1:9")
    accepted = await shop.seller.accept(bidding(terms_for(await shop.offer())))
    await kit.wallet("pool0").send_and_wait(on_chain(accepted.trade, key("provider"), accepted.signature), 1)
    return Sold(kit, shop, accepted.trade)


@pytest.fixture
async def sold() -> Sold:
    return await make_sold()


async def test_every_miner_gets_its_share_and_the_provider_her_price(sold: Sold) -> None:
    trade = await sold.kit.trade(sold.trade_id)
    before, price = sold.kit.balance("provider"), 0.9 * (trade.bid + trade.markup)  # the first chunks were paid by the draw
    table: list[tuple[int, np.ndarray[tuple[int, ...], np.dtype[np.int8]]]] = []
    for index in range(3):
        signed = sold.ask(f"miner{index}")
        with await sold.deliveries.begin(signed) as run:
            held: Held | None = None
            while (part := await run.next_chunk()) is not None:
                assert bool(part.transfer) == (held is None)
                held = held or sold.held(index, part)
                x, _ = delivery.open_sealed(SEALING, signed.opened, sold.share(index), part.chunk, part.sealed, held)
                table.append((sold.share(index).range(part.chunk)[0], x))
                await run.take_receipt(part.chunk, sold.receipt(f"miner{index}", part.chunk))
    assert [start for start, _ in table] == sorted({start for start, _ in table})
    assert sum(len(x) for _, x in table) == sold.shop.goods.data.rows
    while await sold.settle():
        pass
    trade = await sold.kit.trade(sold.trade_id)
    assert (trade.phase, trade.chunks_delivered, trade.chunks_total) == (TradePhase.SETTLED, 30, 30)
    fees = 30
    assert before + 0.94 * price - fees < sold.kit.balance("provider") <= before + 0.95 * price + 30 - fees


@pytest.mark.parametrize("stranger", ["miner7", "provider"])
async def test_a_miner_that_is_not_in_the_trade_gets_nothing(sold: Sold, stranger: str) -> None:
    with pytest.raises(AuthError, match="has no rows in trade"):
        await sold.deliveries.begin(sold.ask(stranger))


async def test_nobody_opens_a_delivery_for_another_miner_or_key(sold: Sold) -> None:
    signed = sold.ask("miner0")
    mallory = SealingKeyPair.generate(SeededRng("mallory")).public_key
    with pytest.raises(AuthError, match="not asked for by miner"):
        await sold.deliveries.begin(replace(signed, opened=replace(signed.opened, hpke_public_key=mallory)))


async def test_there_are_no_rows_before_the_draw_without_a_deal_or_without_a_trade() -> None:
    undrawn, lost = await make_sold(deal=None), await make_sold(deal=False)
    with pytest.raises(AuthError, match="not drawn yet"):
        await undrawn.deliveries.begin(undrawn.ask("miner0"))
    with pytest.raises(AuthError, match="no deal"):
        await lost.deliveries.begin(lost.ask("miner0"))
    with pytest.raises(AuthError, match="neither on the chain nor agreed to"):
        await lost.deliveries.begin(asked(lost.kit, Digest(bytes(32)), "miner0", SEALING.public_key, None))


async def test_a_miner_that_comes_a_block_early_waits_for_the_draw() -> None:
    sold = await make_sold(deal=None)
    sold.deliveries._draw_wait = 5.0
    beginning = asyncio.create_task(sold.deliveries.begin(sold.ask("miner0")))
    await asyncio.sleep(0.01)
    last = sold.shop.ledger.last_of(account("pool0"))
    assert last is not None
    sold.kit.draw(last.trade, deal=True)
    with await beginning as run:
        assert await run.next_chunk() is not None


async def test_a_forged_receipt_ends_the_delivery_and_is_not_kept(sold: Sold) -> None:
    with await sold.deliveries.begin(sold.ask("miner0")) as run:
        await run.next_chunk()
        with pytest.raises(CheatingError, match="not miner"):
            await run.take_receipt(0, sold.receipt("miner1", 0))
    with await sold.deliveries.begin(sold.ask("miner0")) as run:
        await run.next_chunk()
        with pytest.raises(CheatingError):  # signed for another chunk
            await run.take_receipt(0, sold.receipt("miner0", 1))
    assert list(sold.shop.ledger.unpaid()) == []


async def test_no_chunk_without_the_receipt_of_the_one_before(sold: Sold) -> None:
    with await sold.deliveries.begin(sold.ask("miner0")) as run:
        with pytest.raises(SequenceError, match="due is none"):
            await run.take_receipt(0, sold.receipt("miner0", 0))
        await run.next_chunk()
        with pytest.raises(SequenceError, match="no receipt yet"):
            await run.next_chunk()
        with pytest.raises(SequenceError, match="due is chunk 0"):
            await run.take_receipt(1, sold.receipt("miner0", 1))


async def test_a_delivery_resumes_where_receipts_end_even_after_a_restart(sold: Sold) -> None:
    with await sold.deliveries.begin(sold.ask("miner0")) as run:
        assert await sold.receive(run, "miner0", 4) == [0, 1, 2, 3]
        await run.next_chunk()
    again = sold.restarted()
    # The miner may say that it has more than it signed for: it is not believed.
    with await again.begin(sold.ask("miner0", from_chunk=9)) as run:
        assert await sold.receive(run, "miner0", 1) == [4]
    # It may have lost what it was given: that is paid for.
    with await again.begin(sold.ask("miner0", from_chunk=1)) as run:
        assert await sold.receive(run, "miner0") == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert len(list(sold.shop.ledger.unpaid())) == CHUNKS


async def test_a_newer_delivery_ends_the_older(sold: Sold) -> None:
    with await sold.deliveries.begin(sold.ask("miner0")) as old, await sold.deliveries.begin(sold.ask("miner0")) as new:
        with pytest.raises(AbortError, match="newer delivery"):
            await old.next_chunk()
        assert await new.next_chunk() is not None
    with await sold.deliveries.begin(sold.ask("miner1")) as run:
        assert await sold.receive(run, "miner1", 1) == [0]


async def test_a_chunk_opens_only_for_its_key_trade_miner_and_place(sold: Sold) -> None:
    signed = sold.ask("miner0")
    with await sold.deliveries.begin(signed) as run:
        part = await run.next_chunk()
    assert part is not None
    opened, share, held = signed.opened, sold.share(0), sold.held(0, part)
    x, y = delivery.open_sealed(SEALING, opened, share, 0, part.sealed, held)
    assert len(x) == len(y) == 3
    for keys, asked_for, chunk in (
        (SEALING, opened, 1),
        (SEALING, replace(opened, miner=account("miner1")), 0),
        (SEALING, replace(opened, trade_id=Digest(bytes(32))), 0),
        (SealingKeyPair.generate(SeededRng("x")), opened, 0),
    ):
        with pytest.raises(CryptoError):
            delivery.open_sealed(keys, asked_for, share, chunk, part.sealed, held)
    other = replace(share, data_root=Digest(bytes(32)))
    with pytest.raises(MarketError, match="lead to the root"):
        delivery.open_sealed(SEALING, opened, other, 0, part.sealed, held)


def test_the_floats_of_bought_rows_quantise_to_the_rows() -> None:
    rows = np.arange(-127, 128, dtype=np.int8).reshape(-1, 1)
    for micro in (127_000_000, 1_000_000, 3_141_593, 12_700_000_000):
        assert (quantise_features(delivery.to_floats(rows, micro).astype(np.float64), micro / 1e6) == rows).all()
    with pytest.raises(MarketError):
        delivery.to_floats(rows, 0)


async def test_receipts_that_are_on_the_chain_already_or_too_late_are_not_tried_for_ever(sold: Sold) -> None:
    with await sold.deliveries.begin(sold.ask("miner0")) as run:
        await sold.receive(run, "miner0", 2)
    pool = sold.kit.wallet("pool0")
    for receipt in list(sold.shop.ledger.unpaid())[:1]:
        await pool.send_and_wait(receipt, 1)  # the manager was quicker
    before = sold.kit.balance("provider")
    assert not await sold.settle()
    assert sold.kit.balance("provider") > before
    with await sold.deliveries.begin(sold.ask("miner1")) as run:
        await sold.receive(run, "miner1", 1)
    deadline = (await sold.kit.trade(sold.trade_id)).delivery_deadline_ms
    assert deadline is not None
    sold.kit.chain.until(deadline)
    sold.kit.chain.until(deadline + 1000)
    assert (await sold.kit.trade(sold.trade_id)).phase is TradePhase.REFUNDED
    assert not await sold.settle()
    assert list(sold.shop.ledger.unpaid()) == []
    with pytest.raises(AuthError, match="no deal: refunded"):
        await sold.deliveries.begin(sold.ask("miner1"))


async def test_nothing_is_sent_whose_receipt_would_come_too_late(sold: Sold) -> None:
    deadline = (await sold.kit.trade(sold.trade_id)).delivery_deadline_ms
    assert deadline is not None
    with await sold.deliveries.begin(sold.ask("miner0")) as run:
        await sold.receive(run, "miner0", 1)
        sold.kit.chain.clock = deadline - SETTLE_MS + 1
        with pytest.raises(DeadlineError, match="could not reach the chain"):
            await run.next_chunk()


async def test_receipts_wait_while_no_node_answers(sold: Sold) -> None:
    with await sold.deliveries.begin(sold.ask("miner0")) as run:
        await sold.receive(run, "miner0", 2)
    sold.kit.is_down = True
    with pytest.raises(Exception, match="no node answers"):
        await sold.settle()
    assert len(list(sold.shop.ledger.unpaid())) == 2
    sold.kit.is_down = False
    assert not await sold.settle()
    assert list(sold.shop.ledger.unpaid()) == []


async def test_a_provider_registers_once(sold: Sold) -> None:
    before = sold.kit.balance("provider")
    goods = sold.shop.goods
    await onchain.register(sold.kit, sold.kit.wallet("provider"), account("provider"), goods, "127.0.0.1:9")
    assert sold.kit.balance("provider") == before
    await onchain.register(sold.kit, sold.kit.wallet("provider"), account("provider"), goods, "127.0.0.1:10")
    assert sold.kit.balance("provider") == before - sold.kit.chain.genesis.params.provider_fee - 1


async def test_trades_without_a_markup_do_not_close_the_market(sold: Sold) -> None:
    """Highs of 0 could stand in no offer, and lower ones than her own would make every later trade a sure one."""
    kit, shop = KitChain(), Shop(KitChain())
    shop.kit = kit
    shop.seller = shop.restarted()
    await kit.wallet("provider").send_and_wait(RegisterProvider(shop.goods.data.root, 90, "127.0.0.1:9"), 1)
    trade = terms_for(await shop.offer(), MINERS[:1])
    least = contract.least_bid(trade.offer.rule, trade.offer.reputation_ppm)
    found = contract.terms(trade.offer.rule, least, trade.offer.reputation_ppm)
    assert found.markup == 0
    trade = replace(trade, bid=least, p_ppm=found.p_ppm)
    accepted = await shop.seller.accept(bidding(trade))
    await kit.wallet("pool0").send_and_wait(on_chain(trade, key("provider"), accepted.signature), 1)
    for chunk in range(CHUNKS):
        receipt = delivery.sign_receipt(key("miner0"), kit.chain_id, accepted.trade_id, chunk)
        await kit.wallet("provider").send_and_wait(receipt, 1)
    assert (await kit.trade(accepted.trade_id)).phase is TradePhase.SETTLED
    kit.chain.until(kit.chain.clock + kit.chain.genesis.params.draw_window_ms)
    offer = await shop.offer()
    assert (offer.rule.D_bar, offer.rule.m_bar) == (shop.seller.rule.D_bar, shop.seller.rule.m_bar) > (1, least)
    second = await shop.seller.accept(bidding(terms_for(offer)))
    await kit.wallet("pool0").send_and_wait(on_chain(second.trade, key("provider"), second.signature), 1)


async def test_a_miner_cannot_choose_again(sold: Sold) -> None:
    """A second set of choices would bring both variants of the rows: only the committed message is taken, in every stream."""
    other = marks.commit(b"t" * 32, session_of(sold.trade.offer, MINERS[0]), sold.share(0).marks)
    right = sold.ask("miner0")
    forged = asked(sold.kit, sold.trade_id, "miner0", SEALING.public_key, other)
    mixed = delivery.sign_open(key("miner0"), replace(right.opened, points=other.points))
    for lie in (forged, mixed):
        with pytest.raises(MarketError, match="not the ones that the trade commits to"):
            await sold.deliveries.begin(lie)
    assert not sold.deliveries._running
    with await sold.deliveries.begin(right) as run:
        first = await run.next_chunk()
    with await sold.restarted().begin(right) as run:
        again = await run.next_chunk()
    assert first is not None
    assert again is not None
    assert first.transfer == again.transfer, "else a stream that breaks would be a second transfer"
    held = sold.held(0, first)
    opened = [delivery.open_sealed(SEALING, right.opened, sold.share(0), 0, part.sealed, held)[0] for part in (first, again)]
    assert (opened[0] == opened[1]).all()


async def test_a_miner_that_stops_reading_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unread:
        async def write(self, message: object) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(servicer, "SEND_WAIT", 0.05)
    with pytest.raises(DeadlineError, match="read nothing"):
        await servicer._send(cast(servicer.Context, Unread()), pb.DeliverResponse())
