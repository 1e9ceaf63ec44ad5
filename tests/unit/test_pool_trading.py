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
from services.rpc.views import ProviderView, TaskView, TradePhase
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


async def test_a_provider_that_brought_nothing_is_let_alone_for_a_while() -> None:
    """The draw pays the first chunks: who delivers none gets that once in a while, not at every task."""
    pool = make_pool(100)
    (provider,) = await pool.chain.providers()
    last = SimpleNamespace(phase=TradePhase.REFUNDED, chunks_delivered=0, delivery_deadline_ms=1_000)
    asked: list[object] = []

    async def trades(seller: AccountId, buyer: AccountId, limit: int) -> list[object]:
        asked.append((seller, buyer, limit))
        return [last]

    pool.chain.trades = trades  # type: ignore[method-assign, assignment]
    now = 2_000
    kit = cast(Any, pool)
    kit.account, kit.clock = account("pool0"), SimpleNamespace(now_ms=lambda: now)
    assert await trading._brought_nothing(pool, provider)
    assert asked == [(account("p0"), account("pool0"), 1)]
    last.chunks_delivered = 1
    assert not await trading._brought_nothing(pool, provider)
    last.chunks_delivered, last.phase = 0, TradePhase.SETTLED
    assert not await trading._brought_nothing(pool, provider)
    last.phase, now = TradePhase.REFUNDED, 1_000 + trading.WARY_MS
    assert not await trading._brought_nothing(pool, provider)


async def test_few_rows_are_shared_by_few_members() -> None:
    pool = make_pool(3 * LEAST_SHARE, 50, 5)
    assert await trading.most_rows(pool, len(MINERS)) == LEAST_SHARE + 50 + 5
    assert await trading.most_rows(pool, 2) == 3 * LEAST_SHARE // 2 + 50 + 5
    assert await trading.most_rows(pool, 0) == 0
