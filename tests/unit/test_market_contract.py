from __future__ import annotations

import dataclasses
import itertools

import pytest

from core.chain.block import MAX_TRANSACTION
from core.chain.transaction import Bid, Transaction
from core.codec import decode, encode
from core.errors import LimitError, MalformedError, MarketError
from core.ids import AccountId, Amount, BlockHash, Digest, Height, Milliseconds, PartsPerMillion, Signature
from core.market import contract, draw
from core.market.contract import DEFAULT_RULE, IntegerRule, Offer, TradeTerms

HALF = PartsPerMillion(500_000)
BASE = IntegerRule(400_000, 400_000, 1_800_000, Amount(1_500), 1_000_000, Amount(4_000), Amount(8_000), Amount(0))


def an_offer(**changes: object) -> Offer:
    offer = Offer(
        chain_id=Digest(b"c" * 32),
        provider=AccountId(b"p" * 32),
        pool=AccountId(b"q" * 32),
        data_root=Digest(b"d" * 32),
        rows=1_000,
        features=64,
        classes=10,
        rule=BASE,
        reputation_ppm=HALF,
        height_read=Height(7),
        expiry_ms=Milliseconds(1_000),
        nonce=b"n" * 16,
    )
    return dataclasses.replace(offer, **changes)  # type: ignore[arg-type]


def a_trade(**changes: object) -> TradeTerms:
    miners, marks = (AccountId(b"1" * 32), AccountId(b"2" * 32)), (Digest(b"3" * 32), Digest(b"4" * 32))
    trade = TradeTerms(an_offer(), Amount(5_958), PartsPerMillion(499_984), miners, marks)
    return dataclasses.replace(trade, **changes)  # type: ignore[arg-type]


def test_terms_of_a_worked_example() -> None:
    # D_s = (0.4 (5958 - 750) - 0.8 * 4000 (0.2 + 0.2 * 0.74475)) / (2 * 0.4 * 0.8) = 1510.25; p = 0.2 + 0.151 + 0.14895
    found = contract.terms(BASE, Amount(5_958), HALF)
    assert found == contract.Terms(Amount(1_510), Amount(7_468), PartsPerMillion(499_950))


def test_probability_never_passes_one_and_the_markup_gives_way() -> None:
    sure = contract.terms(BASE, Amount(15_000), HALF)
    assert 999_000 < sure.p_ppm <= 1_000_000
    beyond = contract.terms(BASE, Amount(50_000), HALF)
    assert beyond == contract.Terms(Amount(0), Amount(50_000), PartsPerMillion(1_000_000))


def test_a_bid_below_the_providers_loss_is_refused() -> None:
    assert contract.terms(BASE, Amount(750), HALF).markup == 0
    with pytest.raises(MarketError, match="749 is below 750"):
        contract.terms(BASE, Amount(749), HALF)
    reserved = dataclasses.replace(BASE, m_min=Amount(900))
    assert contract.terms(reserved, Amount(900), HALF) == contract.terms(BASE, Amount(900), HALF)
    with pytest.raises(MarketError, match="899 is below 900"):
        contract.terms(reserved, Amount(899), HALF)


@pytest.mark.parametrize("bid", [-1, contract.MAX_RULE_AMOUNT + 1])
def test_a_bid_out_of_range_is_refused(bid: int) -> None:
    with pytest.raises(MarketError, match="is not in 0"):
        contract.terms(BASE, Amount(bid), HALF)


def test_a_reputation_out_of_range_is_refused() -> None:
    with pytest.raises(MarketError, match="1000001"):
        contract.terms(BASE, Amount(1), PartsPerMillion(1_000_001))


@pytest.mark.parametrize(
    ("change", "condition"),
    [
        ({"eta_micro": 1_000_000}, "beta eta > 1"),
        ({"beta_micro": 555_555}, "beta eta > 1"),
        ({"e1_ppm": 600_001}, "e1 \\+ e2 <= 1000000"),
        ({"e2_ppm": 999}, "e2 >= 1000"),
        ({"D_bar": 0}, "D_bar = 0"),
        ({"m_bar": 0}, "m_bar = 0"),
        ({"m_bar": 10**15 + 1}, "m_bar"),
        ({"alpha": -1}, "alpha = -1"),
        ({"m_min": -1}, "m_min = -1"),
        ({"eta_micro": 10**9 + 1}, "eta_micro"),
    ],
)
def test_check_rule_names_the_condition(change: dict[str, int], condition: str) -> None:
    with pytest.raises(MarketError, match=condition):
        contract.check_rule(dataclasses.replace(BASE, **change))  # type: ignore[arg-type]


def test_offers_and_trades_have_one_encoding() -> None:
    offer = an_offer()
    assert contract.decode_offer(encode(offer)) == offer
    assert decode(TradeTerms, encode(a_trade())) == a_trade()
    with pytest.raises(MalformedError):
        contract.decode_offer(encode(offer) + b"\0")
    with pytest.raises(LimitError):
        contract.decode_offer(bytes(contract.MAX_OFFER + 1))
    with pytest.raises(MarketError, match="beta eta > 1"):
        contract.decode_offer(encode(an_offer(rule=dataclasses.replace(BASE, eta_micro=1))))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"provider": b"q" * 32}, "one account"),
        ({"rows": 0}, "0 rows"),
        ({"rows": contract.MAX_ROWS + 1}, "rows"),
        ({"features": 0}, "0 features"),
        ({"classes": 257}, "257 classes"),
        ({"reputation_ppm": 1_000_001}, "reputation"),
    ],
)
def test_check_offer(change: dict[str, object], reason: str) -> None:
    with pytest.raises(MarketError, match=reason):
        contract.check_offer(an_offer(**change))


def test_check_trade_recomputes() -> None:
    trade = a_trade(p_ppm=PartsPerMillion(499_950))
    assert contract.check_trade(trade).price == 7_468
    with pytest.raises(MarketError, match=r"499951 ppm, eq. \(2\) gives 499950"):
        contract.check_trade(a_trade(p_ppm=PartsPerMillion(499_951)))
    miner = AccountId(b"1" * 32)
    with pytest.raises(MarketError, match="twice"):
        contract.check_trade(dataclasses.replace(trade, miners=(miner, miner)))
    with pytest.raises(MarketError, match="0 miners"):
        contract.check_trade(dataclasses.replace(trade, miners=()))


def test_every_field_changes_the_trade_id() -> None:
    ids = {
        contract.trade_id(trade)
        for trade in (
            a_trade(),
            a_trade(bid=Amount(1)),
            a_trade(p_ppm=PartsPerMillion(1)),
            a_trade(miners=(AccountId(b"1" * 32),)),
            a_trade(offer=an_offer(chain_id=Digest(b"x" * 32))),
            a_trade(offer=an_offer(nonce=b"m" * 16)),
        )
    }
    assert len(ids) == 6


def test_shares_of_a_price_sum_to_it() -> None:
    price, rows = Amount(7_469), 101
    cuts = [0, 3, 3, 50, 100, 101]
    assert sum(contract.range_amount(price, rows, a, b) for a, b in itertools.pairwise(cuts)) == price
    assert contract.range_amount(price, rows, 3, 3) == 0
    with pytest.raises(MarketError):
        contract.range_amount(price, rows, 5, 102)


def test_highs_are_at_least_the_rules_own() -> None:
    rule = contract.with_highs(DEFAULT_RULE, Amount(0), Amount(10**16))
    assert (rule.D_bar, rule.m_bar) == (DEFAULT_RULE.D_bar, 10**15)
    contract.check_rule(rule)


def test_draw_follows_the_probability() -> None:
    bid = Digest(bytes(32))
    hashes = [BlockHash(i.to_bytes(32, "big")) for i in range(4_000)]
    deals = sum(draw.is_deal(h, bid, PartsPerMillion(300_000)) for h in hashes)
    assert 1_100 < deals < 1_300  # 3.4 standard deviations
    assert not any(draw.is_deal(h, bid, PartsPerMillion(0)) for h in hashes)
    assert all(draw.is_deal(h, bid, PartsPerMillion(1_000_000)) for h in hashes)


def test_draw_is_the_printed_formula() -> None:
    import hashlib

    block, bid = b"b" * 32, b"i" * 32
    value = int(hashlib.sha256(block + bid).hexdigest(), 16) * 10**6 // 2**256
    assert draw.lot(BlockHash(block), Digest(bid)) == value
    assert not draw.is_deal(BlockHash(block), Digest(bid), PartsPerMillion(value))
    assert draw.is_deal(BlockHash(block), Digest(bid), PartsPerMillion(value + 1))


def test_draw_refuses_what_is_no_hash_or_probability() -> None:
    with pytest.raises(MarketError, match="31 bytes"):
        draw.lot(BlockHash(bytes(32)), Digest(bytes(31)))
    with pytest.raises(MarketError, match="1000001"):
        draw.is_deal(BlockHash(bytes(32)), Digest(bytes(32)), PartsPerMillion(1_000_001))


def test_the_largest_bid_fits_a_transaction() -> None:
    miners = tuple(AccountId(i.to_bytes(32, "big")) for i in range(contract.MAX_BUYERS))
    offer = encode(an_offer(rows=contract.MAX_ROWS))
    bid = Bid(offer, Signature(bytes(64)), Amount(1), 1, miners, tuple(Digest(m) for m in miners), Signature(bytes(64)))
    body = Transaction(Digest(bytes(32)), AccountId(bytes(32)), 2**60, Amount(2**40), bid)
    assert len(encode(body)) <= MAX_TRANSACTION
