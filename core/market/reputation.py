"""Reputation of a pool, in parts per million (design: market, "Leaks and reputation").

A leak costs a share of what is there; a clean trade gives back a share of what is missing. So reputation stays in
0..10^6 by itself, and is slow to earn at the top, where it is worth most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from core.codec import U32, U64
from core.errors import MarketError
from core.ids import MILLION, Amount, Milliseconds, PartsPerMillion

__all__ = [
    "DEFAULT_REPUTATION", "ReputationRule", "after_clean_trade", "after_leak", "check_reputation_rule", "counted_share",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReputationRule:
    """Constants of the genesis."""

    start_ppm: Annotated[PartsPerMillion, U32]
    """Of an identity that has not traded."""
    penalty_ppm: Annotated[PartsPerMillion, U32]
    """Share of the reputation that a proven leak takes."""
    recovery_ppm: Annotated[PartsPerMillion, U32]
    """``g``: share of the missing reputation that a clean trade gives."""
    leak_window_ms: Annotated[Milliseconds, U64]
    """w: a trade is clean when this much block time has passed since its settlement without a leak proven."""


WHOLE: Final = PartsPerMillion(MILLION)

DEFAULT_REPUTATION: Final = ReputationRule(
    start_ppm=PartsPerMillion(100_000),
    penalty_ppm=PartsPerMillion(600_000),
    recovery_ppm=PartsPerMillion(120_000),
    leak_window_ms=Milliseconds(60_000),
)


def check_reputation_rule(rule: ReputationRule) -> None:
    """Refuse constants under which leaking and coming back under a new name pays.

    A punished identity, even one at zero, stands above a fresh one after one clean trade: ``start < g``. What a fresh
    name can gain is then less than one clean trade, and registering must cost more than that.

    Raises:
        MarketError: names the condition and the values.
    """
    for name in ("start_ppm", "penalty_ppm", "recovery_ppm"):
        value = getattr(rule, name)
        if not 0 <= value <= MILLION:
            raise MarketError(f"{name} = {value} is not in 0..{MILLION}", **{name: value})
    if rule.start_ppm >= rule.recovery_ppm:
        raise MarketError(
            f"a new identity starts at {rule.start_ppm} ppm, a punished one recovers to {rule.recovery_ppm} ppm by one "
            "clean trade; the start must be lower, or leaking under throw-away names pays",
            start_ppm=rule.start_ppm, recovery_ppm=rule.recovery_ppm,
        )  # fmt: skip


def after_leak(rule: ReputationRule, r: PartsPerMillion) -> PartsPerMillion:
    """``r' = r - floor(r penalty / 10^6)``. Raises MarketError if ``r`` is out of range."""
    _check(r)
    return PartsPerMillion(r - r * rule.penalty_ppm // MILLION)


def after_clean_trade(rule: ReputationRule, r: PartsPerMillion, share: PartsPerMillion = WHOLE) -> PartsPerMillion:
    """``r' = r + floor((10^6 - r) g share / 10^12)``; ``share`` is what of a whole clean trade this one counts for.

    Raises MarketError if ``r`` or ``share`` is out of range.
    """
    _check(r)
    _check(share)
    return PartsPerMillion(r + (MILLION - r) * rule.recovery_ppm * share // MILLION**2)


def counted_share(burned: Amount, counted: Amount, whole: Amount) -> PartsPerMillion:
    """What of a whole clean trade one that burned so much counts for, if ``counted`` coins of its epoch count already.

    Buyer and seller may be one person, who gets the price back; only what burned was really paid. An epoch counts for one
    whole trade at most, however many providers a pool trades with (docs/adr/0139).
    """
    more = min(whole, counted + burned) - min(whole, counted)
    return PartsPerMillion(more * MILLION // whole)


def _check(r: PartsPerMillion) -> None:
    if not 0 <= r <= MILLION:
        raise MarketError(f"the reputation {r} is not in 0..{MILLION} ppm", reputation=r)
