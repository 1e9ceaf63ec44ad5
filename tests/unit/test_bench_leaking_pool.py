"""bench.leaking_pool: what its report counts, and what it calls a problem."""

from __future__ import annotations

from typing import Any

import pytest

from bench.leaking_pool import Setting, compare, problems

SETTING = Setting(seed=2)


def bid(task: int, pool: str, p: float, price: float, deal: bool) -> dict[str, Any]:
    return {
        "task": task, "pool": pool, "r": p / 2, "p": p, "m": 100 * price, "D_s": 0, "price_a_row": price, "deal": deal,
        "rows": 100 if deal else 0,
    }  # fmt: skip


def found(p: float = 0.5, price: float = 140.0, outcome: str = "leaked") -> dict[str, Any]:
    trades = [
        bid(2, "pool0", p, price, False), bid(2, "pool1", 0.75, 120.0, True),
        bid(3, "pool1", 0.95, 60.0, True),  # the other did not bid: in sums only
    ]  # fmt: skip
    claims = {"pool0": 90, "pool1": 120}
    blocks = [{"task": task, "pool": "pool1", "claims": claims} for task in range(2, 6)]
    blocks += [{"task": 6, "pool": "pool0", "claims": {"pool0": 40}}]
    return {"problems": [], "reports": [{"outcome": outcome}], "after": compare(SETTING, trades, blocks)}


def test_means_are_over_data_sets_that_both_bid_for_and_sums_over_all() -> None:
    after = found()["after"]
    assert (after["leaking"]["p"], after["honest"]["p"], after["honest"]["price_a_row"]) == (0.5, 0.75, 120.0)
    assert (after["honest"]["bids"], after["honest"]["deals"], after["honest"]["rows"]) == (2, 2, 200)
    assert after["honest"]["expected_deals"] == 1.7
    assert (after["leaking"]["blocks"], after["honest"]["blocks"]) == (1, 4)
    assert (after["leaking"]["correct"], after["honest"]["correct"]) == (90, 120)
    assert after["chance_of_so_few_blocks"] == round(6 / 32, 4)
    assert after["leaking_to_honest"]["p"] == 0.667
    assert problems(found()) == []


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (found(p=0.8), "p: 1.067"), (found(price=100.0), "price a row: 0.833"),
        (found(outcome="cleared"), "ended as cleared"), (found() | {"reports": []}, "bought nothing"),
        (found() | {"problems": ["another block"]}, "another block"),
    ],
)  # fmt: skip
def test_what_is_not_as_promised_is_named(broken: dict[str, Any], says: str) -> None:
    assert any(says in problem for problem in problems(broken))
