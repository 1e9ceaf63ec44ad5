"""pool.manager.payouts: integers that sum exactly, whatever was contributed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.chain.block import MAX_MINERS
from core.errors import LimitError
from core.ids import AccountId, Amount
from pool.manager.payouts import MAX_PAID, share_out

POOL = AccountId(b"p" * 32)


def account(number: int) -> AccountId:
    return AccountId(number.to_bytes(32, "big"))


@given(
    total=st.integers(1, 2**62),
    amounts=st.dictionaries(st.integers(1, 60).map(account), st.integers(0, 2**60), max_size=40),
    cut=st.integers(0, 1_000_000),
)
def test_payouts_are_positive_distinct_and_sum_to_the_total(total: int, amounts: dict[AccountId, int], cut: int) -> None:
    paid = share_out(Amount(total), amounts, POOL, cut)
    assert sum(p.amount for p in paid) == total
    assert all(p.amount > 0 for p in paid)
    accounts = [p.account for p in paid]
    assert accounts == sorted(set(accounts))
    assert set(accounts) <= {*amounts, POOL}
    whole = sum(amounts.values())
    for p in paid:
        if p.account != POOL:
            assert p.amount <= total * amounts[p.account] // whole
    if cut == 0 and whole:
        # What the pool keeps is rounding alone: less than one unit a miner.
        assert sum(p.amount for p in paid if p.account == POOL) < max(1, len(amounts))


def test_shares_follow_contributions() -> None:
    paid = {p.account: p.amount for p in share_out(Amount(850_000), {account(1): 600, account(2): 200}, POOL)}
    assert paid == {account(1): 637_500, account(2): 212_500}
    cut = {p.account: p.amount for p in share_out(Amount(850_000), {account(1): 600, account(2): 200}, POOL, 100_000)}
    assert cut == {account(1): 573_750, account(2): 191_250, POOL: 85_000}


def test_without_contributions_the_pool_has_it_all() -> None:
    for contributions in ({}, {account(1): 0}):
        (only,) = share_out(Amount(7), contributions, POOL)
        assert (only.account, only.amount) == (POOL, 7)


def test_the_list_never_exceeds_a_blocks_limit() -> None:
    contributions = {account(i): i for i in range(1, MAX_MINERS + 50)}
    paid = share_out(Amount(10**12), contributions, POOL, 1)
    assert len(paid) == MAX_MINERS
    assert account(1) not in {p.account for p in paid}
    assert len(paid) - 1 == MAX_PAID


@pytest.mark.parametrize(("total", "contribution", "cut"), [(0, 1, 0), (5, -1, 0), (5, 1, -1), (5, 1, 1_000_001)])
def test_impossible_values_are_refused(total: int, contribution: int, cut: int) -> None:
    with pytest.raises(LimitError):
        share_out(Amount(total), {account(1): contribution}, POOL, cut)
