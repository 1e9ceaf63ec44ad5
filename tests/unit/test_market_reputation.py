from __future__ import annotations

import dataclasses

import pytest

from core.codec import decode, encode
from core.errors import MarketError
from core.ids import MILLION, Amount, Milliseconds, PartsPerMillion
from core.market.reputation import (
    DEFAULT_REPUTATION,
    ReputationRule,
    after_clean_trade,
    after_leak,
    check_reputation_rule,
    counted_share,
)

RULE = ReputationRule(PartsPerMillion(100_000), PartsPerMillion(600_000), PartsPerMillion(120_000), Milliseconds(60_000))


def test_arithmetic_rounds_as_the_design_says() -> None:
    assert after_leak(RULE, PartsPerMillion(900_001)) == 900_001 - 540_000
    assert after_clean_trade(RULE, PartsPerMillion(100_001)) == 100_001 + 107_999


def test_defaults_hold_their_own_rule() -> None:
    check_reputation_rule(DEFAULT_REPUTATION)
    assert decode(ReputationRule, encode(DEFAULT_REPUTATION)) == DEFAULT_REPUTATION


def test_a_punished_identity_recovers_above_a_fresh_one() -> None:
    for r in range(0, 1_000_001, 50_000):
        assert after_clean_trade(RULE, after_leak(RULE, PartsPerMillion(r))) > RULE.start_ppm
    with pytest.raises(MarketError, match="throw-away names"):
        check_reputation_rule(dataclasses.replace(RULE, start_ppm=PartsPerMillion(120_000)))


@pytest.mark.parametrize("name", ["start_ppm", "penalty_ppm", "recovery_ppm"])
def test_constants_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(MarketError, match=name):
        check_reputation_rule(dataclasses.replace(RULE, **{name: PartsPerMillion(1_000_001)}))  # type: ignore[arg-type]


@pytest.mark.parametrize("r", [-1, 1_000_001])
def test_a_reputation_out_of_range_is_refused(r: int) -> None:
    with pytest.raises(MarketError):
        after_leak(RULE, PartsPerMillion(r))
    with pytest.raises(MarketError):
        after_clean_trade(RULE, PartsPerMillion(r))


def test_an_epoch_counts_for_one_clean_trade_and_by_what_burned() -> None:
    whole = Amount(500)
    assert counted_share(Amount(0), Amount(0), whole) == 0
    assert counted_share(Amount(106), Amount(0), whole) == 212_000
    assert counted_share(Amount(9_000), Amount(0), whole) == MILLION
    assert counted_share(Amount(400), Amount(0), whole) + counted_share(Amount(400), Amount(400), whole) == MILLION
    assert counted_share(Amount(400), Amount(800), whole) == 0
    assert after_clean_trade(RULE, PartsPerMillion(100_001), PartsPerMillion(212_000)) == 100_001 + 22_895
    with pytest.raises(MarketError):
        after_clean_trade(RULE, PartsPerMillion(0), PartsPerMillion(MILLION + 1))
