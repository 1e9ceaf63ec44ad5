"""The reverse game against the paper's figures and promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from core.errors import MarketError
from core.ids import Amount, PartsPerMillion
from core.market import bridge, contract
from core.market.contract import DEFAULT_RULE
from core.market.reverse_game import (
    PoolPrivate,
    Rule,
    best_bid,
    best_response,
    check_private,
    deal_probability,
    interior_bid,
    is_concave,
    markup,
    pool_utility,
    provider_utility,
)

PAPER = Rule(e1=0.4, e2=0.4, eta=1.8, alpha=1.5, beta=1.0, D_bar=4.0, m_bar=8.0)
PAPER_POOL = PoolPrivate(Q=8.0, alpha=1.5, beta=1.0)


def test_erratum_p1_by_its_published_numbers() -> None:
    printed = float(interior_bid(PAPER, PAPER_POOL, 0.5, as_printed=True))
    true = float(interior_bid(PAPER, PAPER_POOL, 0.5))
    assert (round(printed, 2), round(true, 2)) == (2.04, 5.96)
    best, worse = (
        float(pool_utility(PAPER, PAPER_POOL, m, markup(PAPER, m, 0.5, as_printed=True), 0.5, as_printed=True))
        for m in (true, printed)
    )
    assert best > worse


def test_printed_and_corrected_agree_at_d_bar_one() -> None:
    rule = dataclasses.replace(PAPER, D_bar=1.0)
    assert interior_bid(rule, PAPER_POOL, 0.3) == pytest.approx(interior_bid(rule, PAPER_POOL, 0.3, as_printed=True))


def test_erratum_p2_the_printed_condition_is_neither_needed_nor_enough() -> None:
    # not needed: beta~ eta = 0.9 < 1, and the bid is a maximum
    assert is_concave(PAPER, dataclasses.replace(PAPER_POOL, beta=0.5))
    # not enough: beta~ eta = 9 > 1, and with A2 > 0 large the bid is a minimum
    rule = dataclasses.replace(PAPER, e1=0.1, e2=0.9)
    greedy = dataclasses.replace(PAPER_POOL, beta=5.0)
    assert not is_concave(rule, greedy)
    with pytest.raises(MarketError, match=r"Theorem III\.2, corrected"):
        check_private(rule, greedy)
    check_private(PAPER, PAPER_POOL)


def test_erratum_p3_with_equal_coefficients_the_equilibrium_does_not_depend_on_reputation() -> None:
    m = interior_bid(PAPER, PAPER_POOL, np.linspace(0, 1, 5))
    D_s = markup(PAPER, m, np.linspace(0, 1, 5), as_printed=True)
    p = deal_probability(PAPER, m, D_s, np.linspace(0, 1, 5), as_printed=True)
    assert np.ptp(p) < 1e-12


def test_erratum_p4_the_printed_game_leaves_its_bounds_and_ours_does_not() -> None:
    rich = dataclasses.replace(PAPER_POOL, Q=40.0)
    assert best_response(PAPER, rich, 0.5, as_printed=True).p > 1
    bounded = best_bid(PAPER, rich, 0.5)
    assert bounded is not None
    assert bounded.p <= 1
    poor = dataclasses.replace(PAPER_POOL, Q=0.5)
    assert best_response(PAPER, poor, 0.5, as_printed=True).D_s < 0
    kept = best_bid(PAPER, poor, 0.5)
    assert kept is not None
    assert kept.D_s >= 0


def test_a_pool_that_would_lose_declines() -> None:
    pool = PoolPrivate(Q=0.5, alpha=0.0, beta=0.0)
    assert best_bid(PAPER, pool, 0.0) is None
    assert best_bid(PAPER, dataclasses.replace(pool, Q=1.6), 0.0) is not None
    assert np.isnan(best_response(PAPER, pool, np.array([0.0, 1.0])).m).tolist() == [True, False]


def test_arrays_broadcast() -> None:
    Q, r = np.linspace(5, 12, 4)[:, None], np.linspace(0, 1, 3)
    table = best_response(PAPER, PoolPrivate(Q, 1.5, 1.0), r)
    single = best_bid(PAPER, PoolPrivate(float(Q[2, 0]), 1.5, 1.0), float(r[1]))
    assert single is not None
    assert np.shape(table.m) == (4, 3)
    assert np.asarray(table.m)[2, 1] == pytest.approx(single.m)


@pytest.mark.parametrize("change", [{"eta": 1.0}, {"e2": 0.0}, {"e1": 0.7}, {"D_bar": 0.0}, {"alpha": float("nan")}])
def test_a_rule_out_of_its_domain_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(MarketError):
        best_bid(dataclasses.replace(PAPER, **change), PAPER_POOL, 0.5)


@pytest.mark.parametrize("change", [{"Q": -1.0}, {"alpha": -1.0}, {"beta": -0.1}, {"Q": float("inf")}])
def test_private_values_out_of_their_domain_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(MarketError):
        check_private(PAPER, dataclasses.replace(PAPER_POOL, **change))


@pytest.mark.parametrize("Q", [6_000.0, 8_000.0, 10_000.0, 12_000.0])
@pytest.mark.parametrize("leak", [0.0, 500.0, 1_000.0])
def test_default_rule_does_what_the_paper_promises(Q: float, leak: float) -> None:
    """As reputation falls, p* falls and the price rises; the provider gains by it; the bid is inside all bounds."""
    rule = bridge.to_float(DEFAULT_RULE)
    assert rule.alpha > leak  # alpha > alpha~: a leak costs the provider more than it brings the pool
    private = PoolPrivate(Q, leak, 1.0)
    check_private(rule, private)
    found = best_response(rule, private, np.linspace(0, 1, 101))
    p, price, D_s = np.asarray(found.p), np.asarray(found.price), np.asarray(found.D_s)
    assert (np.diff(p) > 0).all()
    assert (np.diff(price) < 0).all()
    assert (D_s > 0).all()
    assert (p < 1).all()
    assert (np.asarray(found.U_provider) > 0).all()
    more_leaking = best_response(rule, dataclasses.replace(private, alpha=leak + 500), np.linspace(0, 0.9, 10))
    assert (np.asarray(more_leaking.p) > np.asarray(best_response(rule, private, np.linspace(0, 0.9, 10)).p)).all()


def test_default_rule_in_integers() -> None:
    private = PoolPrivate(10_000.0, 500.0, 1.0)
    outcomes = []
    for reputation in (0, 100_000, 500_000, 1_000_000):
        chosen = bridge.choose_bid(DEFAULT_RULE, private, PartsPerMillion(reputation))
        assert chosen is not None
        outcomes.append(chosen[1])
    assert [t.p_ppm // 1_000 for t in outcomes] == sorted(t.p_ppm // 1_000 for t in outcomes)
    assert [t.price for t in outcomes] == sorted((t.price for t in outcomes), reverse=True)


def test_round_bid_never_falls_below_the_providers_loss() -> None:
    rule = dataclasses.replace(DEFAULT_RULE, alpha=Amount(3_001))
    bid = bridge.round_bid(rule, 1_500.5, PartsPerMillion(500_000))
    assert bid == 1_501
    assert contract.terms(rule, bid, PartsPerMillion(500_000)).markup == 0
    with pytest.raises(MarketError):
        bridge.round_bid(rule, float("nan"), PartsPerMillion(0))


def test_utilities_are_the_integrands() -> None:
    m, D_s, r = 5.0, 1.0, 0.5
    p = 0.4 * 0.5 + 0.4 * 1 / 4 + 0.2 * 5 / 8
    assert pool_utility(PAPER, PAPER_POOL, m, D_s, r) == pytest.approx(p * (8 + 1.5 * 0.5 + 1.8 * 1 - 6))
    assert provider_utility(PAPER, m, D_s, r) == pytest.approx(p * (6 - 1.5 * 0.5 - 1.8 * 1))


def test_a_good_name_buys_for_nothing_without_a_reserve() -> None:
    """The paper's parameters: at r = 1 the best bid is 0 with no markup, and e1 r of all draws still deal."""
    free = best_bid(PAPER, PAPER_POOL, 1.0)
    assert free is not None
    assert free.price == free.U_provider == 0.0
    assert free.p == pytest.approx(0.4)
    inner = float(interior_bid(PAPER, PAPER_POOL, 1.0))
    assert pool_utility(PAPER, PAPER_POOL, inner, markup(PAPER, inner, 1.0), 1.0) < free.U_pool
    reserved = best_bid(dataclasses.replace(PAPER, m_min=3.0), PAPER_POOL, 1.0)
    assert reserved is not None
    assert reserved.m >= 3.0
    assert reserved.U_provider > 0
