"""The closed forms against searches, the integers against the floats, misreports against the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.errors import MarketError
from core.ids import MILLION, Amount, PartsPerMillion
from core.market import bridge, contract, reputation
from core.market.contract import IntegerRule
from core.market.reverse_game import (
    Array,
    PoolPrivate,
    Rule,
    best_bid,
    best_response,
    deal_probability,
    interior_bid,
    least_bid,
    markup,
    pool_utility,
    provider_utility,
)

unit = st.floats(0, 1)
reserves = st.just(0.0) | st.floats(0, 12)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    e2 = draw(st.floats(0.01, 1))
    e1 = draw(unit) * (1 - e2)
    beta = draw(st.floats(0.1, 3))
    eta = (1 + draw(st.floats(0.01, 4))) / beta
    return Rule(e1, e2, eta, draw(st.floats(0, 10)), beta, draw(st.floats(0.1, 20)), draw(st.floats(0.1, 20)), draw(reserves))


privates = st.builds(PoolPrivate, st.floats(0, 40), st.floats(0, 10), st.floats(0, 4))

amounts = st.integers(0, contract.MAX_RULE_AMOUNT)
small = st.integers(0, 100_000)


@st.composite
def integer_rules(draw: st.DrawFn) -> IntegerRule:
    e2 = draw(st.integers(contract.MIN_E2_PPM, MILLION))
    e1 = draw(st.integers(0, MILLION - e2))
    beta = draw(st.integers(10_000, contract.MAX_COEFFICIENT_MICRO))
    least = MILLION**2 // beta + 1
    eta = draw(st.integers(least, max(least, contract.MAX_COEFFICIENT_MICRO)))
    size = draw(st.sampled_from([small, amounts]))
    alpha, D_bar, m_bar = draw(size), max(1, draw(size)), max(1, draw(size))
    reserve = draw(st.just(0) | small)
    return IntegerRule(e1, e2, eta, Amount(alpha), beta, Amount(D_bar), Amount(m_bar), Amount(reserve))


def refined(objective: Callable[[Array], Array], low: float, high: float) -> tuple[float, float]:
    """Maximum of a vectorised function by a grid that closes in: no formula, no derivative."""
    x, best = low, -math.inf
    for _ in range(12):
        grid = np.linspace(low, high, 2_001)
        values = objective(grid)
        i = int(np.argmax(values))
        if values[i] >= best:
            x, best = float(grid[i]), float(values[i])
        step = (high - low) / 2_000
        low, high = max(low, x - 2 * step), min(high, x + 2 * step)
        if step < 1e-13 * (1 + abs(x)):
            break
    return x, best


@settings(max_examples=150, deadline=None)
@given(rules(), unit, unit)
def test_markup_is_the_providers_best_answer(rule: Rule, r: float, above: float) -> None:
    m = float(least_bid(rule, r)) + 20 * above
    chosen = float(markup(rule, m, r))
    _, best = refined(lambda D_s: provider_utility(rule, m, D_s, r), 0.0, float(np.asarray(rule.D_bar) / rule.e2))
    value = float(provider_utility(rule, m, chosen, r))
    assert value == pytest.approx(best, rel=1e-6, abs=1e-9)
    assert value >= -1e-12


@settings(max_examples=200, deadline=None)
@given(rules(), privates, unit)
@example(Rule(0.0, 0.4, 1.1, 4.0, 1.0, 8.0, 8.0), PoolPrivate(11.0, 0.0, 0.0), 0.0)  # best where D_s* leaves 0
def test_best_bid_agrees_with_a_grid_search(rule: Rule, private: PoolPrivate, r: float) -> None:
    found = best_bid(rule, private, r)
    low = float(least_bid(rule, r))
    # past p = 1 the pool only pays more, and no markup above D_bar/e2 exists: nothing can be better beyond this bid
    worth = private.Q + np.asarray(private.alpha) + abs(private.beta * np.asarray(rule.eta) - 1) * rule.D_bar / rule.e2
    high = low + float(worth) + 1

    def utility(m: Array) -> Array:
        return pool_utility(rule, private, m, markup(rule, m, r), r)

    # piecewise: search each of many cells, then close in around the best few and around the bid itself (a hump of the
    # utility can be narrower than a cell)
    grid = np.linspace(low, high, 20_001)
    values = np.asarray(utility(grid))
    cells = [(grid[max(0, i - 1)], grid[min(len(grid) - 1, i + 1)]) for i in np.argsort(values)[-3:]]
    if found is not None:
        cells.append((max(low, float(found.m) - grid[1] + low), float(found.m) + grid[1] - low))
    best = max(refined(utility, float(a), float(b))[1] for a, b in cells)
    if found is None:
        assert best <= 1e-9
    else:
        assert found.U_pool == pytest.approx(best, rel=1e-6, abs=1e-9)
        assert found.U_pool == utility(np.asarray(found.m))
        assert 0 < found.p <= 1
        assert found.m >= 0
        assert found.D_s >= 0
        assert found.U_provider >= -1e-9


def drawn(count: int) -> tuple[Rule, PoolPrivate, Array]:
    """Seeded rules, pools and reputations, as columns; half of the rules without a reserve."""
    rng = np.random.Generator(np.random.PCG64(20261122))
    e2 = rng.uniform(0.05, 1, count)
    beta = rng.uniform(0.1, 3, count)
    eta = (1 + rng.uniform(0.05, 4, count)) / beta
    reserve = rng.uniform(0, 12, count) * rng.integers(0, 2, count)
    rule = [rng.uniform(0, 1, count) * (1 - e2), e2, eta, rng.uniform(0, 10, count), beta]
    rule += [rng.uniform(0.1, 20, count), rng.uniform(0.1, 20, count), reserve]
    private = [rng.uniform(0, high, count) for high in (40, 10, 4)]
    columns: list[Any] = [np.asarray(c, dtype=np.longdouble)[:, None] for c in [*rule, *private, rng.uniform(0, 1, count)]]
    return Rule(*columns[:8]), PoolPrivate(*columns[8:11]), columns[11]


def searched(objective: Callable[[Array], Array], low: Array, high: Array, points: int = 21, rounds: int = 15) -> Array:
    """As ``refined``, for many functions at once: one row each. Extended precision, or the top of a parabola is flat."""
    steps = np.linspace(np.longdouble(0), np.longdouble(1), points)[None, :]
    x = low
    for _ in range(rounds):
        grid = low + (high - low) * steps
        x = np.take_along_axis(grid, np.argmax(objective(grid), axis=1)[:, None], axis=1)
        step = (high - low) / (points - 1)
        low, high = np.maximum(low, x - 2 * step), np.minimum(high, x + 2 * step)
    return x


def test_ten_thousand_drawn_games_agree_with_a_grid_search() -> None:
    """m* and D_s*, both to 1e-6 relative."""
    rule, private, r = drawn(10_000)
    found = best_response(rule, private, r)
    takes_part = ~np.isnan(found.m)
    assert 0.5 < takes_part.mean() < 1.0
    low = least_bid(rule, r)
    m = np.where(takes_part, found.m, low + 1)
    D_s = markup(rule, m, r)
    by_search = searched(lambda grid: provider_utility(rule, m, grid, r), 0 * m, np.asarray(rule.D_bar / rule.e2))
    assert (np.abs(D_s - by_search) <= 1e-6 * np.maximum(1, np.abs(by_search))).all()

    def utility(bids: Array) -> Array:
        return pool_utility(rule, private, bids, markup(rule, bids, r), r)

    high = low + private.Q + private.alpha + np.abs(private.beta * rule.eta - 1) * rule.D_bar / rule.e2 + 1
    # Pieces have humps of their own: the cells around the highest points of a grid that top their neighbours.
    cells = 1_000
    coarse = low + (high - low) * np.linspace(0, 1, cells + 1)[None, :]
    heights = np.asarray(utility(coarse).astype(np.float64))
    walled = np.pad(heights, ((0, 0), (1, 1)), constant_values=-np.inf)
    is_top = (heights >= walled[:, :-2]) & (heights >= walled[:, 2:])
    humps = np.argpartition(np.where(is_top, -heights, np.inf), 3, axis=1)[:, :3]
    around = [np.take_along_axis(coarse, np.clip(humps + d, 0, cells), axis=1) for d in (-1, 1)]
    tops = [searched(utility, around[0][:, i : i + 1], around[1][:, i : i + 1]) for i in range(3)]
    candidates = np.concatenate(tops, axis=1)
    values = utility(candidates)
    best = np.argmax(values, axis=1)[:, None]
    top, bid = np.take_along_axis(values, best, axis=1), np.take_along_axis(candidates, best, axis=1)
    assert (top[~takes_part] <= 1e-9).all()
    own, top, bid, m = (v[takes_part] for v in (utility(m), top, bid, m))
    assert (np.abs(own - top) <= 1e-6 * np.maximum(1, np.abs(top))).all()
    assert (own >= top - 1e-12 * np.maximum(1, np.abs(top))).all()
    # Two humps as high as each other have two best bids.
    same = np.abs(m - bid) <= 1e-6 * np.maximum(1, np.abs(bid))
    tied = np.abs(own - top) <= 1e-12 * np.maximum(1, np.abs(top))
    assert (same | tied).all()
    assert same.mean() > 0.9999


@settings(max_examples=100, deadline=None)
@given(rules(), privates, unit)
def test_with_equal_beta_the_equilibrium_is_a_share_of_the_surplus(rule: Rule, private: PoolPrivate, r: float) -> None:
    """Eq. (5) against a formula that was found another way (docs/adr/0111)."""
    private = PoolPrivate(private.Q, private.alpha, rule.beta)
    k = float((np.asarray(rule.beta) * rule.eta - 1) * rule.D_bar / rule.e2)
    surplus = float(private.Q + (np.asarray(private.alpha) - rule.alpha) * (1 - r))
    m = interior_bid(rule, private, r)
    D_s = markup(rule, m, r, as_printed=True)
    scale = 1 + abs(surplus) / k
    assert float(deal_probability(rule, m, D_s, r, as_printed=True)) == pytest.approx(surplus / (2 * k), abs=1e-6 * scale)
    share = pytest.approx(surplus**2 / (4 * k), abs=1e-6 * scale * (1 + abs(surplus)))
    assert float(pool_utility(rule, private, m, D_s, r, as_printed=True)) == share
    assert float(provider_utility(rule, m, D_s, r, as_printed=True)) == share


@settings(max_examples=200, deadline=None)
@given(rules(), privates, privates, unit)
def test_acting_on_false_private_values_never_gains(rule: Rule, true: PoolPrivate, false: PoolPrivate, r: float) -> None:
    honest, lying = best_bid(rule, true, r), best_bid(rule, false, r)
    honest_utility = float(honest.U_pool) if honest else 0.0
    lying_utility = float(pool_utility(rule, true, lying.m, lying.D_s, r)) if lying else 0.0
    assert lying_utility <= honest_utility + 1e-9 * (1 + abs(honest_utility))


@settings(max_examples=300, deadline=None)
@given(integer_rules(), amounts | small, st.integers(0, MILLION))
def test_integer_terms_are_the_exact_rationals_rounded_down(rule: IntegerRule, m: int, r_ppm: int) -> None:
    r, M = Fraction(r_ppm, MILLION), MILLION
    e1, e2 = Fraction(rule.e1_ppm, M), Fraction(rule.e2_ppm, M)
    s = Fraction(rule.beta_micro, M) * Fraction(rule.eta_micro, M) - 1
    surplus = m - rule.alpha * (1 - r)
    if surplus < 0 or m < rule.m_min:
        with pytest.raises(MarketError):
            contract.terms(rule, Amount(m), PartsPerMillion(r_ppm))
        return
    found = contract.terms(rule, Amount(m), PartsPerMillion(r_ppm))
    bare = e1 * r + (1 - e1 - e2) * Fraction(m, rule.m_bar)
    eq4 = (e2 * surplus - s * rule.D_bar * bare) / (2 * e2 * s)
    cap = (1 - bare) * rule.D_bar / e2
    D_s = max(0, math.floor(min(eq4, cap)))
    p = min(Fraction(1), bare + e2 * Fraction(D_s, rule.D_bar))
    assert found == contract.Terms(Amount(D_s), Amount(m + D_s), PartsPerMillion(math.floor(p * M)))
    assert found.price < 1 << 63
    eta_beta = 1 + s
    assert p * (m + D_s - rule.alpha * (1 - r) - eta_beta * D_s) >= 0  # the provider never expects a loss


@settings(max_examples=200, deadline=None)
@given(integer_rules(), st.floats(0, 1e6), st.floats(0, 1e6), unit, st.integers(0, MILLION))
def test_a_chosen_bid_has_terms_near_the_float_game(rule: IntegerRule, Q: float, alpha: float, beta: float, r_ppm: int) -> None:
    chosen = bridge.choose_bid(rule, PoolPrivate(Q, alpha, beta), PartsPerMillion(r_ppm))
    if chosen is None:
        return
    m, found = chosen
    assert found == contract.terms(rule, m, PartsPerMillion(r_ppm))
    near = float(markup(bridge.to_float(rule), float(m), r_ppm / MILLION))
    rounding = 1e-9 + 1e-15 * m / rule.m_bar  # of p in floats: 1-e1-e2 is off by 1e-16, times m/m_bar
    assert found.markup == pytest.approx(near, rel=1e-6, abs=1 + rounding * rule.D_bar * MILLION / rule.e2_ppm)


@given(st.lists(st.booleans(), max_size=60), st.integers(0, MILLION))
def test_reputation_stays_in_range_and_moves_the_right_way(leaks: list[bool], start: int) -> None:
    r = PartsPerMillion(start)
    for leak in leaks:
        before = r
        r = (reputation.after_leak if leak else reputation.after_clean_trade)(reputation.DEFAULT_REPUTATION, r)
        assert 0 <= r <= MILLION
        assert r <= before if leak else r >= before
