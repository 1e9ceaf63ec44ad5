"""Reputation of a pool, in parts per million (design: market, "Leaks and reputation").

A leak costs a share of what is there; a clean trade gives back a share of what is missing. So reputation stays in
0..10^6 by itself, and is slow to earn at the top, where it is worth most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from core.codec import U32, U64
from core.errors import MarketError
from core.ids import MILLION, Milliseconds, PartsPerMillion

__all__ = [
    "DEFAULT_REPUTATION", "ReputationRule", "after_clean_trade", "after_leak", "check_reputation_rule", "is_credit_due",
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


def after_clean_trade(rule: ReputationRule, r: PartsPerMillion) -> PartsPerMillion:
    """``r' = r + floor((10^6 - r) g / 10^6)``. Raises MarketError if ``r`` is out of range."""
    _check(r)
    return PartsPerMillion(r + (MILLION - r) * rule.recovery_ppm // MILLION)


def is_credit_due(
    rule: ReputationRule, settled_ms: Milliseconds, now_ms: Milliseconds, epoch: int, last_credited_epoch: int | None
) -> bool:
    """Whether a settled trade without a proven leak counts as clean now.

    The leak window must be over, and a pool gets credit for at most one trade per provider and epoch:
    ``last_credited_epoch`` is that of this pool with this provider, None if there was none.
    """
    window_over = now_ms - settled_ms >= rule.leak_window_ms
    return window_over and (last_credited_epoch is None or epoch > last_credited_epoch)


def _check(r: PartsPerMillion) -> None:
    if not 0 <= r <= MILLION:
        raise MarketError(f"the reputation {r} is not in 0..{MILLION} ppm", reputation=r)
