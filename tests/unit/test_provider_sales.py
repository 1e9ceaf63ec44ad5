"""Offers and bids, against the chain's own rules."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from core.chain.transaction import RegisterProvider
from core.codec import encode
from core.crypto import signing
from core.errors import AuthError, DeadlineError, MalformedError, MarketError, NotFoundError
from core.ids import AccountId, Amount, Digest, PartsPerMillion
from core.market import contract, rows
from core.market.contract import DEFAULT_RULE
from core.market.marks import LEAST_SHARE, mark_count
from core.market.tracing import Copy, Share, look
from core.market.variants import DEFAULT_STRENGTH
from pool.manager.config import MarketConfig
from provider.ledger import Accepted
from provider.seller import MAX_OFFERS_OF_A_POOL
from services.rpc.views import MarketView, TradePhase
from tests.chainkit import account, key
from tests.market_kit import MINERS, PRIVATE, KitChain, Shop, bidding, make_goods, on_chain, terms_for


async def make_shop() -> Shop:
    kit = KitChain()
    shop = Shop(kit)
    await kit.wallet("provider").send_and_wait(RegisterProvider(shop.goods.data.root, 90, "127.0.0.1:9"), 1)
    return shop


@pytest.fixture
async def shop() -> Shop:
    return await make_shop()


async def agreed(shop: Shop, pool: str = "pool0") -> Accepted:
    return await shop.seller.accept(bidding(terms_for(await shop.offer(pool)), pool))


async def bought(shop: Shop, pool: str = "pool0") -> Accepted:
    accepted = await agreed(shop, pool)
    await shop.kit.wallet(pool).send_and_wait(on_chain(accepted.trade, key("provider"), accepted.signature), 1)
    return accepted


async def test_an_offer_is_signed_and_says_what_the_chain_says(shop: Shop) -> None:
    signed = await shop.seller.offer(account("pool0"), shop.goods.data.root)
    signing.verify(account("provider"), contract.DOMAIN_OFFER, encode(signed.offer), signed.signature)
    assert signed.offer.rule == DEFAULT_RULE
    assert signed.offer.reputation_ppm == shop.kit.chain.genesis.params.initial_reputation_ppm
    assert signed.offer.height_read == shop.kit.chain.state.height


async def test_the_chain_takes_a_bid_that_both_signed_and_locks_its_price(shop: Shop) -> None:
    shop.kit.deal = None
    before = shop.kit.balance("pool0")
    accepted = await bought(shop)
    trade = await shop.kit.trade(accepted.trade_id)
    assert trade.phase is TradePhase.BID
    terms = contract.check_trade(accepted.trade)
    assert (trade.bid, trade.markup, trade.p_ppm) == (accepted.trade.bid, terms.markup, terms.p_ppm)
    assert shop.kit.balance("pool0") == before - terms.price - 1
    shop.kit.draw(accepted.trade, deal=False)
    assert shop.kit.balance("pool0") == before - 1


async def test_with_the_defaults_a_new_pool_buys_at_a_moderate_probability_and_price(shop: Shop) -> None:
    trade = terms_for(await shop.offer())
    terms = contract.check_trade(trade)
    assert 600_000 <= terms.p_ppm <= 800_000
    assert terms.price < 0.02 * 1_000_000  # of a task's reward
    assert MarketConfig().profit == PRIVATE.Q > terms.price


async def test_anothers_bid_is_refused(shop: Shop) -> None:
    trade = terms_for(await shop.offer())
    with pytest.raises(AuthError, match="not signed by pool"):
        await shop.seller.accept(bidding(trade, "pool1"))
    with pytest.raises(MalformedError, match="another chain, provider or data set"):
        await shop.seller.accept(bidding(replace(trade, offer=replace(trade.offer, provider=account("other")))))
    assert shop.ledger.last_of(account("pool0")) is None


async def test_an_expired_offer_is_refused(shop: Shop) -> None:
    trade = terms_for(await shop.offer())
    shop.kit.chain.until(trade.offer.expiry_ms)
    shop.kit.chain.clock += 1
    with pytest.raises(DeadlineError, match="expired"):
        await shop.seller.accept(bidding(trade))


@pytest.mark.parametrize("change", ["p", "bid", "miners"])
async def test_terms_that_the_rule_does_not_give_are_refused(shop: Shop, change: str) -> None:
    trade = terms_for(await shop.offer())
    wrong = {
        "p": replace(trade, p_ppm=PartsPerMillion(trade.p_ppm + 1)),
        "bid": replace(trade, bid=Amount(1)),
        "miners": replace(trade, miners=(MINERS[0], MINERS[0])),
    }[change]
    with pytest.raises(MalformedError):
        await shop.seller.accept(bidding(wrong))
    assert (await shop.seller.accept(bidding(trade))).trade == trade  # the offer was not used up


async def test_a_changed_offer_is_refused(shop: Shop) -> None:
    offer = await shop.offer()
    cheaper = replace(offer, rule=replace(offer.rule, m_min=Amount(0)))
    with pytest.raises(MarketError, match="not outstanding"):
        await shop.seller.accept(bidding(terms_for(cheaper)))


async def test_the_same_bid_is_answered_alike_and_another_under_the_same_offer_is_not(shop: Shop) -> None:
    accepted = await agreed(shop)
    assert await shop.seller.accept(bidding(accepted.trade)) == accepted
    other = replace(accepted.trade, miners=MINERS[:2])
    with pytest.raises(MarketError, match="used or replaced"):
        await shop.seller.accept(bidding(other))


async def test_one_trade_of_a_pool_at_a_time(shop: Shop) -> None:
    shop.kit.deal = None
    first, second = terms_for(await shop.offer()), terms_for(await shop.offer())
    accepted = await shop.seller.accept(bidding(first))
    for when in ("agreed", "bid", "delivery"):
        with pytest.raises(MarketError, match="one trade at a time"):
            await shop.offer()
        with pytest.raises(MarketError, match="one trade at a time"):
            await shop.seller.accept(bidding(second))
        if when == "agreed":
            await shop.kit.wallet("pool0").send_and_wait(on_chain(first, key("provider"), accepted.signature), 1)
        elif when == "bid":
            shop.kit.draw(first, deal=True)
    assert (await shop.offer("pool1")).pool == account("pool1")


async def test_of_two_bids_at_once_one_passes(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    trades = [terms_for(await shop.offer()), terms_for(await shop.offer())]
    market = shop.kit.market

    async def slow(provider: AccountId, pool: AccountId) -> MarketView:
        await asyncio.sleep(0.01)
        return await market(provider, pool)

    monkeypatch.setattr(shop.kit, "market", slow)
    results = await asyncio.gather(*(shop.seller.accept(bidding(t)) for t in trades), return_exceptions=True)
    assert sorted(type(r).__name__ for r in results) == ["Accepted", "MarketError"]


async def test_after_no_deal_a_pool_bids_again_from_when_the_chain_takes_it(shop: Shop) -> None:
    shop.kit.deal = False
    accepted = await bought(shop)
    trade = await shop.kit.trade(accepted.trade_id)
    assert trade.phase is TradePhase.NO_DEAL
    bid_ms = shop.kit.chain.blocks[trade.bid_height - 1].header.decoded().timestamp_ms
    again_ms = bid_ms + shop.kit.chain.genesis.params.draw_window_ms
    shop.kit.chain.clock = again_ms - 1
    with pytest.raises(MarketError, match=f"bid again from {again_ms}"):
        await shop.offer()
    shop.kit.chain.clock = again_ms
    second = await agreed(shop)
    await shop.kit.wallet("pool0").send_and_wait(on_chain(second.trade, key("provider"), second.signature), 1)


async def test_a_trade_that_never_reaches_the_chain_blocks_until_its_expiry(shop: Shop) -> None:
    accepted = await agreed(shop)
    with pytest.raises(MarketError, match="may reach the chain until"):
        await shop.offer()
    shop.kit.chain.until(accepted.expiry_ms)
    shop.kit.chain.clock += 1
    assert (await shop.offer()).pool == account("pool0")


async def test_after_a_restart_a_trade_is_still_open_and_its_bid_still_answered(shop: Shop) -> None:
    shop.kit.deal = None
    accepted = await bought(shop)
    shop.seller = shop.restarted()
    assert await shop.seller.accept(bidding(accepted.trade)) == accepted
    with pytest.raises(MarketError, match="one trade at a time"):
        await shop.offer()


async def test_a_bid_replayed_on_the_chain_is_refused(shop: Shop) -> None:
    accepted = await bought(shop)
    again = shop.kit.chain.tx("pool0", on_chain(accepted.trade, key("provider"), accepted.signature))
    assert shop.kit.chain.refused(again) == "duplicate"
    stolen = shop.kit.chain.tx("pool1", on_chain(accepted.trade, key("provider"), accepted.signature))
    assert shop.kit.chain.refused(stolen) == "bad-offer"


async def test_a_reputation_that_changed_needs_a_new_offer(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    trade = terms_for(await shop.offer())
    market = await shop.kit.market(account("provider"), account("pool0"))

    async def changed(*_: object) -> object:
        return replace(market, pool_reputation_ppm=PartsPerMillion(400_000))

    monkeypatch.setattr(shop.kit, "market", changed)
    with pytest.raises(MarketError, match="have changed"):
        await shop.seller.accept(bidding(trade))


async def test_a_pool_that_asks_often_loses_only_its_own_offers(shop: Shop) -> None:
    others = terms_for(await shop.offer("pool1"))
    first = terms_for(await shop.offer())
    for _ in range(MAX_OFFERS_OF_A_POOL):
        await shop.offer()
    with pytest.raises(MarketError, match="not outstanding"):
        await shop.seller.accept(bidding(first))
    assert (await shop.seller.accept(bidding(others, "pool1"))).trade == others


async def test_marked_rows_are_not_sold_in_shares_too_small_to_trace(shop: Shop) -> None:
    count = 2 * LEAST_SHARE + 90
    shop.goods = make_goods(count, strength=DEFAULT_STRENGTH)
    shop.seller = shop.restarted()
    await shop.kit.wallet("provider").send_and_wait(RegisterProvider(shop.goods.data.root, count, "127.0.0.1:9"), 1)
    offer = await shop.offer()
    with pytest.raises(MarketError, match=r"3 miners for 290 rows.* at most 2"):
        await shop.seller.accept(bidding(terms_for(offer)))
    accepted = await shop.seller.accept(bidding(terms_for(offer, MINERS[:2])))
    await shop.kit.wallet("pool0").send_and_wait(on_chain(accepted.trade, key("provider"), accepted.signature), 1)


async def test_shares_whose_chunks_fit_no_message_are_not_sold(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    offer = await shop.offer()
    monkeypatch.setattr(rows, "MAX_CHUNK_BYTES", 3 * (2 * rows.row_size(8) + 64))
    with pytest.raises(MarketError, match="a chunk of 5 rows has 570 bytes, more than 342; bid with more"):
        await shop.seller.accept(bidding(terms_for(offer, MINERS[:2])))
    await shop.seller.accept(bidding(terms_for(offer)))


def test_nine_tenths_of_the_least_share_are_traced_and_proven() -> None:
    generator = np.random.Generator(np.random.PCG64(3))
    groups = mark_count(LEAST_SHARE)
    for _ in range(50):
        trace = generator.integers(0, 2, LEAST_SHARE).astype(np.uint8)
        variants = generator.integers(0, 2, groups)[np.arange(LEAST_SHARE) % groups] ^ trace
        leaning = np.where(variants == 0, 1.0, -1.0)
        leaning[generator.permutation(LEAST_SHARE)[: LEAST_SHARE // 10]] = 0.0
        assert look(Copy(leaning, LEAST_SHARE, LEAST_SHARE), Share(0, trace)).is_ours


async def test_an_unknown_data_set_is_not_offered(shop: Shop) -> None:
    with pytest.raises(NotFoundError):
        await shop.seller.offer(account("pool0"), Digest(bytes(32)))
