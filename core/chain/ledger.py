"""Money: balances, burning, and how a reward is divided. Nothing here creates any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from core.chain.state import Account, State
from core.chain.transaction import Refusal
from core.errors import LimitError, TransactionError
from core.ids import MILLION, Amount, short
from core.params import ChainParams

__all__ = [
    "MAX_AMOUNT", "RewardParts", "burn", "credit", "debit", "divide_reward", "part", "split_payout", "work_payout_total",
]  # fmt: skip

MAX_AMOUNT: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class RewardParts:
    """A reward, divided: the burned and the auditors' part rounded down, the rest to the payout list."""

    burned: Amount
    auditors: Amount
    payouts: Amount


def part(amount: int, ppm: int) -> Amount:
    """``floor(amount * ppm / 10^6)``."""
    return Amount(amount * ppm // MILLION)


def divide_reward(reward: Amount, params: ChainParams) -> RewardParts:
    """10 % burned, 5 % to the validators with right tags, the rest to the payout list (with the default parameters)."""
    burned, auditors = part(reward, params.burn_ppm), part(reward, params.auditors_ppm)
    return RewardParts(burned, auditors, Amount(reward - burned - auditors))


def work_payout_total(reward: Amount, params: ChainParams) -> Amount:
    """What a work block's payouts must sum to: ``reward - floor(burned part) - floor(auditors' part)``."""
    return divide_reward(reward, params).payouts


def split_payout(total: Amount, weights: Sequence[int]) -> tuple[Amount, ...]:
    """``total`` in proportion to ``weights``, each rounded down; what rounding leaves goes, one unit each, to the largest
    remainders, ties to the earlier. Sums to ``total``.

    Raises:
        LimitError: no weight is positive, or one is negative.
    """
    whole = sum(weights)
    if whole <= 0 or min(weights) < 0:
        raise LimitError(f"payout weights must not be negative and must not all be zero, got {list(weights)[:8]}")
    shares = [total * w // whole for w in weights]
    order = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in order[: total - sum(shares)]:
        shares[i] += 1
    return tuple(Amount(s) for s in shares)


def credit(state: State, account: bytes, amount: int) -> State:
    """``amount`` more for ``account``. Balances cannot overflow: the supply is bounded by the genesis document."""
    if amount == 0:
        return state
    known = state.account(account)
    return state.with_accounts(state.accounts.put(account, Account(Amount(known.balance + amount), known.nonce)))


def debit(state: State, account: bytes, amount: int, used: int = 0) -> State:
    """``amount`` less for ``account``, and ``used`` nonces.

    Raises:
        TransactionError: ``amount`` is negative or more than the balance.
    """
    known = state.account(account)
    if amount < 0:
        raise TransactionError(f"an amount of {amount} is negative", Refusal.OUT_OF_RANGE, amount=amount)
    if known.balance < amount:
        raise TransactionError(
            f"account {short(account)} has {known.balance}, {amount} is needed",
            Refusal.INSUFFICIENT_FUNDS, balance=known.balance, needed=amount,
        )  # fmt: skip
    return state.with_accounts(state.accounts.put(account, Account(Amount(known.balance - amount), known.nonce + used)))


def burn(state: State, amount: int) -> State:
    """Takes ``amount``, which the caller has unlocked, out of circulation."""
    return replace(state, burned=Amount(state.burned + amount))
