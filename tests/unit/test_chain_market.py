"""Trades on the chain: the bid that both signed, the draw by a later block, delivery, refunds, reputation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.chain import build, rules, rules_leaks, rules_market
from core.chain.block import Block, Payout
from core.chain.state import Trade, TradePhase
from core.chain.transaction import (
    DOMAIN_CHUNK_RECEIPT,
    Bid,
    ChunkReceipt,
    Refusal,
    RegisterProvider,
    chunk_receipt_message,
)
from core.codec import encode
from core.crypto.signing import sign
from core.errors import ConfigError
from core.ids import AccountId, Amount, Digest, Height, Milliseconds, PartsPerMillion
from core.market import contract, draw, rows
from tests.chainkit import FUNDS, Chain, account, key, make_claim, make_genesis, some

ROWS, MINERS = 100, ("m0", "m1", "m2")
MARKS = tuple(some(f"marks {name}") for name in MINERS)


def ready() -> Chain:
    chain = Chain()
    chain.block(chain.tx("provider", RegisterProvider(some("rows"), ROWS, "p:1")))
    return chain


def make_offer(
    chain: Chain,
    pool: str = "pool0",
    nonce: int = 0,
    provider: str = "provider",
    rule: contract.IntegerRule = contract.DEFAULT_RULE,
) -> contract.Offer:
    highs = rules_market.highs(chain.state, account(provider))
    rule = rule if highs is None else contract.with_highs(rule, *highs)
    return contract.Offer(
        chain.state.chain_id, account(provider), account(pool), some("rows"), ROWS, 8, 3, rule,
        chain.state.reputation(account(pool)), Height(chain.state.height), Milliseconds(chain.clock + 10**6),
        nonce.to_bytes(16, "big"),
    )  # fmt: skip


def make_bid(offer: contract.Offer, m: int = 6000, p_ppm: int | None = None, signer: str = "provider") -> Bid:
    terms = contract.terms(offer.rule, Amount(m), offer.reputation_ppm)
    miners: tuple[AccountId, ...] = tuple(account(n) for n in MINERS)
    trade = contract.TradeTerms(offer, Amount(m), PartsPerMillion(terms.p_ppm if p_ppm is None else p_ppm), miners, MARKS)
    data = encode(offer)
    return Bid(
        data, sign(key(signer), contract.DOMAIN_OFFER, data), trade.bid, trade.p_ppm, miners, MARKS,
        sign(key(signer), contract.DOMAIN_TRADE_SIGNATURE, encode(trade)),
    )  # fmt: skip


def only_trade(chain: Chain) -> tuple[Digest, Trade]:
    assert len(chain.state.trades) == 1
    trade_id = Digest(next(iter(chain.state.trades)))
    return trade_id, chain.state.trades[trade_id]


def receipt(chain: Chain, trade_id: Digest, miner: str, chunk: int, signer: str | None = None) -> ChunkReceipt:
    message = chunk_receipt_message(chain.state.chain_id, trade_id, chunk, account(miner))
    return ChunkReceipt(trade_id, chunk, account(miner), sign(key(signer or miner), DOMAIN_CHUNK_RECEIPT, message))


def drawn(wanted: TradePhase, pool: str = "pool0") -> tuple[Chain, Digest]:
    """A chain with one trade whose draw came out as wanted; bids differ until it does."""
    for nonce in range(50):
        chain = ready()
        chain.block(chain.tx(pool, make_bid(make_offer(chain, pool, nonce))))
        chain.block()
        trade_id, trade = only_trade(chain)
        deal = draw.is_deal(chain.state.tip.block_hash, trade_id, trade.p_ppm)
        assert trade.phase is (TradePhase.DELIVERY if deal else TradePhase.NO_DEAL)
        if trade.phase is wanted:
            return chain, trade_id
    raise AssertionError("50 draws, all alike")


def test_the_price_is_locked_until_the_draw_and_comes_back_without_a_deal() -> None:
    chain = ready()
    offer = make_offer(chain)
    chain.block(chain.tx("pool0", make_bid(offer)))
    price = contract.terms(offer.rule, Amount(6000), offer.reputation_ppm).price
    assert only_trade(chain)[1].phase is TradePhase.BID  # its own block's hash draws nothing
    assert chain.state.account(account("pool0")).balance == FUNDS - 1 - price
    assert rules.due(chain.state, Milliseconds(chain.state.tip.timestamp_ms + 500), False)
    chain, _ = drawn(TradePhase.NO_DEAL)
    assert chain.state.account(account("pool0")).balance == FUNDS - 1


def test_receipts_release_the_price_and_a_clean_trade_earns_reputation() -> None:
    chain, trade_id = drawn(TradePhase.DELIVERY)
    price = chain.state.trades[trade_id].price
    # What the draw paid, and burned, is in both.
    before, burned = FUNDS - 1 - chain.state.params.provider_fee, chain.state.params.provider_fee
    for miner in MINERS:
        chain.block(*(chain.tx("provider", receipt(chain, trade_id, miner, c)) for c in range(10)))
    trade = chain.state.trades[trade_id]
    assert trade.phase is TradePhase.SETTLED
    assert trade.held == 0
    earned = chain.state.account(account("provider")).balance - before + 30
    assert earned + chain.state.burned - burned == price
    assert price // 20 - 30 <= chain.state.burned - burned <= price // 20
    assert rules_market.highs(chain.state, account("provider")) == (trade.markup, trade.bid)
    start = chain.state.reputation(account("pool0"))
    chain.until(chain.clock + chain.state.params.leak_window_ms)
    chain.block()
    params = chain.state.params
    share = price // 20 * 10**6 // params.clean_trade_burn
    assert 500_000 < share < 10**6
    assert chain.state.reputation(account("pool0")) == start + (10**6 - start) * params.clean_trade_ppm * share // 10**12
    assert chain.state.trading == ()


def test_a_name_is_not_mended_by_trades_with_ones_own_providers() -> None:
    """Two sham providers, prices of a coin or two, epoch after epoch: what burns nothing earns nothing."""
    rule = contract.IntegerRule(0, 1_000, 1_800_000, Amount(0), 1_000_000, Amount(1), Amount(1), Amount(0))
    chain = ready()
    chain.block(chain.tx("other", RegisterProvider(some("rows"), ROWS, "p:2")))
    for nonce in range(3):
        for sham in ("provider", "other"):
            offer = make_offer(chain, "pool0", nonce, sham, rule)
            assert contract.terms(offer.rule, Amount(1), offer.reputation_ppm).p_ppm > 990_000
            chain.block(chain.tx("pool0", make_bid(offer, 1, signer=sham)))
        chain.block()
        for trade_id in chain.state.trading:
            if chain.state.trades[Digest(trade_id)].phase is TradePhase.DELIVERY:
                for miner in MINERS:
                    receipts = [receipt(chain, Digest(trade_id), miner, c) for c in range(10)]
                    chain.block(*(chain.tx("provider", r) for r in receipts))
        chain.until(chain.clock + chain.state.params.leak_window_ms)
        chain.block()
    assert sum(t.phase is TradePhase.SETTLED for _, t in chain.state.trades.items()) >= 4
    assert chain.state.reputation(account("pool0")) == chain.state.params.initial_reputation_ppm


def test_nobody_gets_the_first_chunks_for_nothing() -> None:
    """A pool that only takes what goes out before any receipt, and signs none, has paid for it; the rest it gets back."""
    chain, trade_id = drawn(TradePhase.DELIVERY)
    trade = chain.state.trades[trade_id]
    advance = rows.advance(trade.price, trade.rows, len(MINERS))
    assert trade.price * 9 // 100 - 3 <= advance <= trade.price // 10, "of a share of 33 rows, 3"
    assert trade.held == trade.price - advance
    earned = chain.state.account(account("provider")).balance - (FUNDS - 1 - chain.state.params.provider_fee)
    assert earned == advance - advance // 20
    chain.block(chain.tx("provider", receipt(chain, trade_id, "m0", 0)))
    assert chain.state.trades[trade_id].held == trade.held, "it is not paid twice"
    chain.until(chain.clock + chain.state.params.delivery_ms)
    chain.block()
    assert chain.state.account(account("pool0")).balance == FUNDS - 1 - advance


def test_what_is_not_delivered_in_time_goes_back_and_earns_nothing() -> None:
    chain, trade_id = drawn(TradePhase.DELIVERY)
    chain.block(*(chain.tx("provider", receipt(chain, trade_id, "m0", c)) for c in range(10)))
    held = chain.state.trades[trade_id].held
    before = chain.state.account(account("pool0")).balance
    chain.until(chain.clock + chain.state.params.delivery_ms)
    chain.block()
    assert chain.state.trades[trade_id].phase is TradePhase.REFUNDED
    assert chain.state.account(account("pool0")).balance == before + held
    assert chain.refused(chain.tx("provider", receipt(chain, trade_id, "m1", 0))) == Refusal.WRONG_PHASE
    chain.until(chain.clock + chain.state.params.leak_window_ms)
    chain.block()
    assert chain.state.reputation(account("pool0")) == chain.state.params.initial_reputation_ppm


def test_openings_that_fill_every_block_do_not_keep_a_refund(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_leaks, "is_full", lambda parent, state: True)
    chain, trade_id = drawn(TradePhase.DELIVERY)
    chain.until(chain.clock + chain.state.params.delivery_ms)
    chain.block()
    assert chain.state.trades[trade_id].phase is TradePhase.REFUNDED


def test_a_pool_does_not_draw_its_own_bid_with_its_work_block() -> None:
    chain = ready()
    task = chain.publish()
    chain.enter(task, "pool0")
    chain.commit(task, pool0="model")
    chain.block(chain.tx("pool0", make_claim(chain.state, task, "pool0", "model", 200)))
    windows = chain.state.windows(task)
    assert windows is not None
    chain.clock = windows.claim_close_ms
    chain.block(chain.tx("pool0", make_bid(make_offer(chain), m=3000)), after_ms=0)
    assert rules.is_work_height(chain.state)
    trade_id, trade = only_trade(chain)

    def divided(first: int) -> Block:
        """The pool's work block, of which the first of its miners is paid ``first``."""

        def change(parts: dict[str, object]) -> None:
            payouts = parts["payouts"]
            assert isinstance(payouts, tuple)
            whole = sum(payout.amount for payout in payouts)
            parts["payouts"] = (Payout(account("a"), Amount(first)), Payout(account("b"), Amount(whole - first)))

        return chain.work_block("pool0", change, after_ms=0)

    lots = [draw.lot(divided(first).block_hash, trade_id) for first in range(1, 41)]
    assert min(lots) < trade.p_ppm < 400_000 < max(lots), "it has as many hashes as it likes"
    chain.clock += 1000
    chain.apply(divided(1 + lots.index(min(lots))))
    assert chain.state.trades[trade_id] == trade
    chain.block()
    assert chain.state.trades[trade_id].draw_height == chain.state.height


def test_receipts_that_release_nothing() -> None:
    chain, trade_id = drawn(TradePhase.DELIVERY)
    good = receipt(chain, trade_id, "m0", 3)
    for bad, reason in (
        (receipt(chain, trade_id, "m0", 3, signer="provider"), Refusal.BAD_RECEIPT),
        (replace(good, chunk=4), Refusal.BAD_RECEIPT),
        (replace(good, miner=account("m1")), Refusal.BAD_RECEIPT),
        (receipt(chain, trade_id, "m0", 10), Refusal.OUT_OF_RANGE),
        (receipt(chain, trade_id, "stranger", 3), Refusal.OUT_OF_RANGE),
        (receipt(chain, Digest(bytes(32)), "m0", 3), Refusal.UNKNOWN_TRADE),
    ):
        assert chain.refused(chain.tx("provider", bad)) == reason
    chain.block(chain.tx("provider", good))
    assert chain.refused(chain.tx("provider", good)) == Refusal.DUPLICATE


def test_bids_that_do_not_agree_with_the_chain() -> None:
    chain = ready()
    offer = make_offer(chain)
    stranger = replace(offer, provider=account("other"))
    cases = [
        (make_bid(offer, signer="pool0"), Refusal.BAD_OFFER),
        (make_bid(offer, p_ppm=make_bid(offer).p_ppm + 1), Refusal.BAD_BID),
        (make_bid(replace(offer, reputation_ppm=PartsPerMillion(600_000))), Refusal.BAD_OFFER),
        (make_bid(replace(offer, rows=ROWS + 1)), Refusal.BAD_OFFER),
        (make_bid(replace(offer, data_root=some("others"))), Refusal.BAD_OFFER),
        (make_bid(replace(offer, pool=account("pool1"))), Refusal.BAD_OFFER),
        (make_bid(replace(offer, expiry_ms=Milliseconds(5))), Refusal.EXPIRED),
        (make_bid(replace(offer, chain_id=some("chain"))), Refusal.WRONG_CHAIN),
        (make_bid(stranger, signer="other"), Refusal.UNKNOWN_PROVIDER),
        (replace(make_bid(offer), offer=b"\0" * 40), Refusal.BAD_OFFER),
        (replace(make_bid(offer), miners=(account("m0"),)), Refusal.BAD_BID),
    ]
    for bad, reason in cases:
        assert chain.refused(chain.tx("pool0", bad)) == reason
    chain.block(chain.tx("pool0", make_bid(offer)))
    assert chain.refused(chain.tx("pool0", make_bid(make_offer(chain, nonce=1)))) == Refusal.DUPLICATE
    assert chain.refused(chain.tx("pool0", make_bid(offer))) == Refusal.DUPLICATE


def test_nobody_redraws_within_the_window_but_later_one_may_bid_again() -> None:
    chain, _ = drawn(TradePhase.NO_DEAL)
    again = make_bid(make_offer(chain, nonce=77))
    assert chain.refused(chain.tx("pool0", again)) == Refusal.DUPLICATE
    chain.until(chain.clock + chain.state.params.draw_window_ms)
    chain.block(chain.tx("pool0", again))


def test_a_provider_has_so_many_trades_open_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_market, "MAX_OPEN", 1)
    chain = ready()
    first, second = make_bid(make_offer(chain)), make_bid(make_offer(chain, "pool1"))
    built = build.build_transaction_block(
        chain.state, key("v0"), chain.certificate(), [chain.tx("pool0", first), chain.tx("pool1", second)]
    )
    assert [d.error.reason for d in built.dropped] == [Refusal.LIMIT]


def test_offers_must_name_the_chains_highs_once_there_are_some() -> None:
    chain, trade_id = drawn(TradePhase.DELIVERY)
    for miner in MINERS:
        chain.block(*(chain.tx("provider", receipt(chain, trade_id, miner, c)) for c in range(10)))
    offer = make_offer(chain, "pool1")
    high = rules_market.highs(chain.state, account("provider"))
    assert high is not None
    for name, value in (("D_bar", high[0]), ("m_bar", high[1])):
        low = replace(offer, rule=replace(offer.rule, **{name: Amount(value - 1)}))
        assert chain.refused(chain.tx("pool1", make_bid(low))) == Refusal.BAD_OFFER
    chain.block(chain.tx("pool1", make_bid(offer)))


def test_a_genesis_whose_trades_could_time_out_in_a_stall_is_refused() -> None:
    genesis = make_genesis()
    with pytest.raises(ConfigError, match="longest stall"):
        replace(genesis, params=replace(genesis.params, delivery_ms=60_000)).check()
