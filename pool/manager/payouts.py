"""How a won reward is shared: by contribution, in integers that sum exactly (design: mining, "Aggregation, models, data")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from core.chain.block import MAX_MINERS, Payout
from core.errors import LimitError
from core.ids import MILLION, AccountId, Amount

__all__ = ["share_out"]

MAX_PAID: Final = MAX_MINERS - 1
"""Miners in one payout list: one place is the pool's own."""


def share_out(total: Amount, contributions: Mapping[AccountId, int], pool: AccountId, cut_ppm: int = 0) -> tuple[Payout, ...]:
    """``total`` among miners by contribution, each rounded down, after the owner's cut; the pool has what is left.

    Every amount is positive, every account is named once, and all sum to ``total``. Without any contribution the pool has
    it all. Beyond MAX_PAID miners the smallest contributions are not paid. Accounts are in ascending order.

    Raises:
        LimitError: ``total`` is not positive, a contribution is negative, or the cut is not in 0..10^6.
    """
    if total <= 0 or not 0 <= cut_ppm <= MILLION or any(c < 0 for c in contributions.values()):
        raise LimitError(
            f"a total of {total}, a cut of {cut_ppm} ppm, contributions from {min(contributions.values(), default=0)}: the "
            f"total must be positive, the cut 0 to {MILLION}, contributions not negative"
        )
    paid = sorted(contributions.items(), key=lambda item: (-item[1], item[0]))[:MAX_PAID]
    whole = sum(contribution for _, contribution in paid)
    miners_part = total - total * cut_ppm // MILLION
    amounts: dict[AccountId, int] = {pool: total}
    for account, contribution in paid:
        amount = miners_part * contribution // whole if whole else 0
        if amount and account != pool:
            amounts[account] = amount
            amounts[pool] -= amount
    return tuple(Payout(account, Amount(amount)) for account, amount in sorted(amounts.items()) if amount)
