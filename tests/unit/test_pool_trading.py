"""Buying rows from many providers at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from core.errors import MarketError
from core.ids import AccountId
from core.market.marks import LEAST_SHARE
from pool.manager import trading
from pool.manager.config import MarketConfig
from pool.manager.context import Pool
from services.rpc.views import ProviderView, TaskView
from tests.chainkit import account, key, some

MINERS = [account(f"miner{i}") for i in range(5)]


def make_pool(*rows: int) -> Pool:
    providers = tuple(ProviderView(account(f"p{i}"), some(f"rows {i}"), n, f"p{i}:1") for i, n in enumerate(rows))

    async def listed() -> tuple[ProviderView, ...]:
        return providers

    role = SimpleNamespace(key=key("pool0"))
    found = SimpleNamespace(
        cfg=SimpleNamespace(market=MarketConfig()), chain=SimpleNamespace(providers=listed), role=role, wallet=None,
        chain_id=some("chain"), marks=None,
    )  # fmt: skip
    return cast(Pool, found)


async def test_providers_that_never_answer_or_fail_keep_the_pool_from_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    bought: list[AccountId] = []

    async def buy_from(pool: Pool, buyer: Any, provider: ProviderView, task: TaskView, miners: Any) -> None:
        if provider.provider == account("p0"):
            await asyncio.Event().wait()
        if provider.provider == account("p1"):
            raise MarketError("no")
        bought.append(provider.provider)

    monkeypatch.setattr(trading, "_buy_from", buy_from)
    buying = asyncio.create_task(trading.buy_rows(make_pool(100, 100, 100, 100), cast(TaskView, None), MINERS))
    async with asyncio.timeout(5):
        while len(bought) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    buying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await buying
    assert sorted(bought) == sorted([account("p2"), account("p3")])


async def test_few_rows_are_shared_by_few_members() -> None:
    pool = make_pool(3 * LEAST_SHARE, 50, 5)
    assert await trading.most_rows(pool, len(MINERS)) == LEAST_SHARE + 50 + 5
    assert await trading.most_rows(pool, 2) == 3 * LEAST_SHARE // 2 + 50 + 5
    assert await trading.most_rows(pool, 0) == 0
