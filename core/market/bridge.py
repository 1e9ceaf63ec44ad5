"""Between the pool's best response, which is a float, and the integers that the chain recomputes.

Only the pool's *choice* of a bid goes through floats. All that follows from the bid is core.market.contract's.
"""

from __future__ import annotations

import math

from core.errors import MarketError
from core.ids import MILLION, Amount, PartsPerMillion
from core.market.contract import MAX_RULE_AMOUNT, IntegerRule, Terms, check_rule, least_bid, terms
from core.market.reverse_game import PoolPrivate, Rule, best_bid

__all__ = ["choose_bid", "round_bid", "to_float"]


def to_float(rule: IntegerRule) -> Rule:
    """The rule of eqs. (2)-(4), amounts in the coin's smallest unit."""
    return Rule(
        e1=rule.e1_ppm / MILLION,
        e2=rule.e2_ppm / MILLION,
        eta=rule.eta_micro / MILLION,
        alpha=float(rule.alpha),
        beta=rule.beta_micro / MILLION,
        D_bar=float(rule.D_bar),
        m_bar=float(rule.m_bar),
        m_min=float(rule.m_min),
    )


def round_bid(rule: IntegerRule, m: float, reputation: PartsPerMillion) -> Amount:
    """``m`` rounded down, but not below the least that the provider takes.

    Raises:
        MarketError: ``m`` is not a number, negative, or above MAX_RULE_AMOUNT.
    """
    if not 0 <= m <= MAX_RULE_AMOUNT:
        raise MarketError(f"the bid {m} is not in 0..{MAX_RULE_AMOUNT}", bid=m)
    return Amount(max(math.floor(m), least_bid(rule, reputation)))


def choose_bid(rule: IntegerRule, private: PoolPrivate, reputation: PartsPerMillion) -> tuple[Amount, Terms] | None:
    """The pool's bid and what it comes to, or None: the pool declines.

    Raises:
        MarketError: the rule breaks a condition.
    """
    check_rule(rule)
    found = best_bid(to_float(rule), private, reputation / MILLION)
    if found is None:
        return None
    m = round_bid(rule, float(found.m), reputation)
    return m, terms(rule, m, reputation)
