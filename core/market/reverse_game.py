"""The reverse game between a data provider and a pool (paper, section III), equations (1)-(5).

Symbols are the paper's: bid ``m``, markup ``D_s``, legal profit ``Q``, reputation ``r`` in [0, 1], ``V = eta D_s``.
Every argument is a float or a float64 array, and arrays broadcast. Amounts share one unit of the caller's choice.

The paper's closed forms ignore that ``p`` is a probability and that bids and markups are not negative. Here the game is
played on ``0 <= p <= 1``, ``m >= 0``, ``D_s >= 0``, and each side takes part only if its utility is not negative.
``as_printed=True`` gives the paper's formulas without bounds and with the printed eq. (5), for the figures.

Errata: eq. (5)'s term ``2 e2 A2 A3`` must be ``2 e2 A2 A3 / D_bar`` (P1); Theorem III.2's condition must be
``(beta~ eta - 1) A2 < A0`` (P2); bounds (P4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.errors import MarketError

__all__ = [
    "Array", "Bid", "Lines", "PoolPrivate", "Real", "Rule", "best_bid", "best_response", "check_private", "check_rule",
    "coefficients", "deal_probability", "expected_leak_profit", "expected_loss", "interior_bid", "is_concave", "least_bid",
    "markup", "pool_utility", "provider_utility",
]  # fmt: skip

Array: TypeAlias = NDArray[np.float64]
Real: TypeAlias = float | Array


@dataclass(frozen=True, slots=True)
class Rule:
    """The provider's parameters, known to both sides. ``beta eta > 1`` (Theorem III.1), ``e2 > 0``, highs positive."""

    e1: Real
    e2: Real
    eta: Real
    alpha: Real
    beta: Real
    D_bar: Real
    m_bar: Real
    m_min: Real = 0.0
    """Reserve: no bid below it. Not in the paper, where it is 0."""


@dataclass(frozen=True, slots=True)
class PoolPrivate:
    """What only the pool knows."""

    Q: Real
    """Expected legal profit from the data."""
    alpha: Real
    """``alpha~`` of the expected profit of leaking, ``c~ = alpha~ (1-r) + beta~ V``."""
    beta: Real
    """``beta~``."""


@dataclass(frozen=True, slots=True)
class Bid:
    """A bid and what follows from it; expected utilities are per round."""

    m: Real
    D_s: Real
    p: Real
    U_pool: Real
    U_provider: Real

    @property
    def price(self) -> Real:
        """``m + D_s``."""
        return self.m + self.D_s


@dataclass(frozen=True, slots=True)
class Lines:
    """``A0``, ``A1``, ``A2`` below eq. (5). Along the rule ``D_s*(m)``, eq. (4), ``p = p0 + p1 m``."""

    A0: Array
    A1: Array
    A2: Array
    B: Array
    """``D_s* = (A2 m + B) / A0``."""
    p0: Array
    p1: Array


def expected_loss(rule: Rule, D_s: Real, r: Real) -> Array:
    """``c(r, V) = alpha (1-r) + beta eta D_s``: what the provider expects to lose by a leak (below eq. (3))."""
    return np.asarray(rule.alpha * (1 - np.asarray(r)) + rule.beta * rule.eta * np.asarray(D_s))


def expected_leak_profit(rule: Rule, private: PoolPrivate, D_s: Real, r: Real) -> Array:
    """``c~(r, V) = alpha~ (1-r) + beta~ eta D_s``: what the pool expects to gain by leaking (below eq. (1))."""
    return np.asarray(private.alpha * (1 - np.asarray(r)) + private.beta * rule.eta * np.asarray(D_s))


def deal_probability(rule: Rule, m: Real, D_s: Real, r: Real, *, as_printed: bool = False) -> Array:
    """Eq. (2), ``p = e1 r + e2 D_s/D_bar + (1-e1-e2) m/m_bar``, cut to [0, 1] unless ``as_printed``."""
    p = rule.e1 * np.asarray(r) + rule.e2 * np.asarray(D_s) / rule.D_bar
    p = p + (1 - np.asarray(rule.e1) - rule.e2) * np.asarray(m) / rule.m_bar
    return np.asarray(p if as_printed else np.clip(p, 0.0, 1.0))


def pool_utility(rule: Rule, private: PoolPrivate, m: Real, D_s: Real, r: Real, *, as_printed: bool = False) -> Array:
    """The integrand of eq. (1), ``p (Q + c~ - m - D_s)``: the pool's expected utility per round."""
    p = deal_probability(rule, m, D_s, r, as_printed=as_printed)
    return np.asarray(p * (private.Q + expected_leak_profit(rule, private, D_s, r) - m - D_s))


def provider_utility(rule: Rule, m: Real, D_s: Real, r: Real, *, as_printed: bool = False) -> Array:
    """The integrand of eq. (3), ``p (m + D_s - c)``: the provider's expected utility per round."""
    p = deal_probability(rule, m, D_s, r, as_printed=as_printed)
    return np.asarray(p * (np.asarray(m) + D_s - expected_loss(rule, D_s, r)))


def least_bid(rule: Rule, r: Real) -> Array:
    """``max(m_min, alpha (1-r))``: below it every markup ``D_s >= 0`` leaves the provider a loss, and she refuses."""
    return np.asarray(np.maximum(rule.m_min, rule.alpha * (1 - np.asarray(r))))


def markup(rule: Rule, m: Real, r: Real, *, as_printed: bool = False) -> Array:
    """``D_s*(m)``, eq. (4): the provider's best markup, the maximum of eq. (3)'s integrand for ``beta eta > 1``.

    Bounded: past ``p = 1`` a larger markup only loses, so the maximum over ``D_s >= 0`` is eq. (4) cut to
    ``[0, (1 - e1 r - (1-e1-e2) m/m_bar) D_bar/e2]``.
    """
    lines = coefficients(rule, r)
    best = (lines.A2 * m + lines.B) / lines.A0
    if as_printed:
        return np.asarray(best)
    cap = (1 - rule.e1 * np.asarray(r) - lines.A1 * m) * rule.D_bar / rule.e2
    return np.asarray(np.maximum(0.0, np.minimum(best, cap)))


def interior_bid(rule: Rule, private: PoolPrivate, r: Real, *, as_printed: bool = False) -> Array:
    """``m*``, eq. (5): where eq. (1)'s integrand is stationary along the rule, bounds left aside.

    Corrected by default (errata P1). It is a maximum iff :func:`is_concave`, NaN or infinite where the integrand is
    linear in ``m``.
    """
    lines = coefficients(rule, r)
    r = np.asarray(r)
    A0, A1, A2 = lines.A0, lines.A1, lines.A2
    e1, e2, D_bar = rule.e1, rule.e2, rule.D_bar
    A3 = D_bar * (np.asarray(private.beta) * rule.eta - 1)
    gain = private.Q + private.alpha * (1 - r)
    repaired = 2 * e2 * A2 * A3 if as_printed else 2 * e2 * A2 * A3 / D_bar
    numerator = A0 * A2 * A3 * e1 * r + (A0 * A2 * e2 + D_bar * A0**2 * A1) * gain - e1 * r * D_bar * A0**2
    numerator = numerator + (repaired + A0 * A1 * A3 - A0 * e2) * lines.B
    denominator = 2 * e2 * A0 * A2 + 2 * A1 * A0**2 * D_bar - 2 * e2 * A3 / D_bar * A2**2 - 2 * A0 * A1 * A2 * A3
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(numerator / denominator)


def is_concave(rule: Rule, private: PoolPrivate) -> NDArray[np.bool_]:
    """The true second-order condition of eq. (5): ``(beta~ eta - 1) A2 < A0`` (errata P2). It does not depend on r."""
    lines = coefficients(rule, 0.0)
    return np.asarray((np.asarray(private.beta) * rule.eta - 1) * lines.A2 < lines.A0)


def check_private(rule: Rule, private: PoolPrivate) -> None:
    """Refuse private values that the game is not defined for, or for which eq. (5) is no maximum.

    A pool checks this when it starts, so that its operator sees it. :func:`best_bid` itself needs only the first part:
    on the bounded game it compares all pieces, so it finds the maximum either way.

    Raises:
        MarketError: names the condition and the values.
    """
    if not (_all_finite(private.Q, private.alpha, private.beta) and np.all(np.asarray(private.Q) >= 0)):
        raise MarketError(f"Q must be a number and not negative, got {private.Q}", Q=private.Q)
    if not (np.all(np.asarray(private.alpha) >= 0) and np.all(np.asarray(private.beta) >= 0)):
        raise MarketError(
            f"alpha~, beta~ >= 0 is violated: alpha~ = {private.alpha}, beta~ = {private.beta}",
            alpha=private.alpha, beta=private.beta,
        )  # fmt: skip
    if not np.all(is_concave(rule, private)):
        lines = coefficients(rule, 0.0)
        left = (np.asarray(private.beta) * rule.eta - 1) * lines.A2
        raise MarketError(
            f"(beta~ eta - 1) A2 < A0 (Theorem III.2, corrected) is violated: {left} against {lines.A0}; "
            "with such a beta~ the pool gains more by leaking than any price costs it",
            left=left, A0=lines.A0,
        )  # fmt: skip


def best_response(rule: Rule, private: PoolPrivate, r: Real, *, as_printed: bool = False) -> Bid:
    """The bid with the highest utility, elementwise, as arrays. Where the pool declines, ``m`` and all else is NaN.

    Bounded: the pool's utility along the bounded rule is a quadratic or a line on each of at most four pieces. They
    part where ``D_s*`` leaves 0, where it brings ``p`` to 1, and where ``p`` is 1 without a markup. The maximum is at
    a part point, at the least bid, or at the vertex of one of the two quadratics; past the last piece each further
    unit of ``m`` is lost. The pool declines if its utility would be negative or ``p`` zero.

    With ``as_printed`` eqs. (5), (4), (2), (1), (3) as they stand, and nobody declines.
    """
    if as_printed:
        m = interior_bid(rule, private, r, as_printed=True)
        return _outcome(rule, private, m, r, as_printed=True)
    lines = coefficients(rule, r)
    r = np.asarray(r)
    low = least_bid(rule, r)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        no_markup = -lines.B / lines.A2
        sure = (1 - lines.p0) / lines.p1
        sure_bare = (1 - rule.e1 * r) / lines.A1
        gain = private.Q + private.alpha * (1 - r)
        vertex_bare = (gain - rule.e1 * r / lines.A1) / 2
        vertex = interior_bid(rule, private, r)
    corners = np.broadcast_arrays(low, no_markup, sure, sure_bare, vertex_bare, vertex)
    candidates = np.maximum(np.stack([np.where(np.isfinite(c), c, low) for c in corners]), low)
    utilities = pool_utility(rule, private, candidates, markup(rule, candidates, r), r)
    best = np.argmax(utilities, axis=0)[np.newaxis]
    m = np.take_along_axis(np.broadcast_to(candidates, utilities.shape), best, axis=0)[0]
    found = _outcome(rule, private, m, r)
    takes_part = (np.asarray(found.U_pool) >= 0) & (np.asarray(found.p) > 0)
    kept = [np.where(takes_part, v, np.nan) for v in (found.m, found.D_s, found.p, found.U_pool, found.U_provider)]
    return Bid(*kept)


def best_bid(rule: Rule, private: PoolPrivate, r: float) -> Bid | None:
    """The pool's best bid at reputation ``r`` under the bounded rule, or None: it declines. All parameters are floats.

    Raises:
        MarketError: the rule or ``r`` is out of its domain.
    """
    if not 0 <= r <= 1:
        raise MarketError(f"the reputation {r} is not in [0, 1]", reputation=r)
    check_rule(rule)
    found = best_response(rule, private, r)
    if np.isnan(found.m):
        return None
    return Bid(*(float(v) for v in (found.m, found.D_s, found.p, found.U_pool, found.U_provider)))


def coefficients(rule: Rule, r: Real) -> Lines:
    """``A0``, ``A1``, ``A2`` as below eq. (5), and ``p`` as a line in ``m`` once eq. (4) is put into eq. (2)."""
    r = np.asarray(r)
    e1, e2 = np.asarray(rule.e1), np.asarray(rule.e2)
    s = np.asarray(rule.beta) * rule.eta - 1
    rest = 1 - e1 - e2
    A0 = 2 * e2 * s
    A1 = rest / rule.m_bar
    A2 = e2 - s * rest * rule.D_bar / rule.m_bar
    B = -s * rule.D_bar * e1 * r - e2 * rule.alpha * (1 - r)
    p0 = e1 * r + e2 * B / (rule.D_bar * A0)
    p1 = e2 * A2 / (rule.D_bar * A0) + A1
    return Lines(A0, np.asarray(A1), np.asarray(A2), np.asarray(B), np.asarray(p0), np.asarray(p1))


def _outcome(rule: Rule, private: PoolPrivate, m: Real, r: Real, *, as_printed: bool = False) -> Bid:
    D_s = markup(rule, m, r, as_printed=as_printed)
    return Bid(
        m,
        D_s,
        deal_probability(rule, m, D_s, r, as_printed=as_printed),
        pool_utility(rule, private, m, D_s, r, as_printed=as_printed),
        provider_utility(rule, m, D_s, r, as_printed=as_printed),
    )


def check_rule(rule: Rule) -> None:
    """Refuse parameters for which eq. (4) is no maximum. All are floats.

    Raises:
        MarketError: names the condition and the values.
    """
    if not _all_finite(rule.e1, rule.e2, rule.eta, rule.alpha, rule.beta, rule.D_bar, rule.m_bar, rule.m_min):
        raise MarketError(f"a parameter of the rule is not a finite number: {rule}")
    if not (rule.e1 >= 0 and rule.e2 > 0 and rule.e1 + rule.e2 <= 1 and rule.D_bar > 0 and rule.m_bar > 0):
        raise MarketError(
            f"e1 >= 0, e2 > 0, e1 + e2 <= 1, D_bar > 0, m_bar > 0 is violated: e1 = {rule.e1}, e2 = {rule.e2}, "
            f"D_bar = {rule.D_bar}, m_bar = {rule.m_bar}"
        )
    if not (rule.alpha >= 0 and rule.m_min >= 0 and rule.beta * rule.eta > 1):
        raise MarketError(
            f"alpha >= 0, m_min >= 0 and beta eta > 1 (Theorem III.1) is violated: alpha = {rule.alpha}, "
            f"m_min = {rule.m_min}, beta = {rule.beta}, eta = {rule.eta}"
        )


def _all_finite(*values: Real) -> bool:
    return all(bool(np.all(np.isfinite(v))) for v in values)
