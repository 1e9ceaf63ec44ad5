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
from services.rpc.market_client import Declined
from services.rpc.views import ProviderView, TaskView, TradePhase, TradeView
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
    async with asyncio.timeout(60):
        while len(bought) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    buying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await buying
    assert sorted(bought) == sorted([account("p2"), account("p3")])


def deal(**values: object) -> TradeView:
    view = SimpleNamespace(
        phase=TradePhase.SETTLED, chunks_delivered=1, delivery_deadline_ms=1_000, data_root=some("rows 0"), miners=()
    )  # fmt: skip
    view.__dict__.update(values)
    return cast(TradeView, view)


async def with_last(pool: Pool, last: TradeView | None) -> None:
    async def trades(seller: AccountId, buyer: AccountId, limit: int) -> list[TradeView]:
        assert (seller, buyer, limit) == (account("p0"), account("pool0"), trading.LOOK_BACK)
        no_deals = [deal(phase=TradePhase.BID), deal(phase=TradePhase.NO_DEAL)]
        return no_deals if last is None else [*no_deals, last]

    pool.chain.trades = trades  # type: ignore[method-assign, assignment]
    cast(Any, pool).account = account("pool0")


async def test_a_provider_that_did_not_deliver_whole_is_let_alone_for_a_while() -> None:
    """The draw pays the first chunks, receipts the others: who keeps back the last one gets that once in a while."""
    pool = make_pool(100)
    (provider,) = await pool.chain.providers()
    now = 2_000
    cast(Any, pool).clock = SimpleNamespace(now_ms=lambda: now)
    short = deal(phase=TradePhase.REFUNDED, chunks_delivered=99)
    await with_last(pool, short)
    # A draw that said no, after it, does not hide it.
    assert await trading._deals(pool, provider) == [short]
    await with_last(pool, None)
    assert await trading._deals(pool, provider) == []
    assert trading._was_refunded(pool, short)
    assert trading._was_refunded(pool, deal(phase=TradePhase.REFUNDED, chunks_delivered=0))
    assert not trading._was_refunded(pool, deal())
    assert not trading._was_refunded(pool, None)
    now = 1_000 + trading.WARY_MS
    assert not trading._was_refunded(pool, short)


@pytest.mark.parametrize(
    ("holders", "last", "buyers"),
    [
        (0, None, 5),
        (5, deal(), None),
        (3, deal(), None),
        # Most of them are new: they get it, the others do not get it twice.
        (2, deal(), 3),
        # What was acknowledged is not bought again at a miner's word, for a day: it may be the provider's, who gains by it.
        (0, deal(miners=tuple(MINERS)), None),
        (0, deal(miners=tuple(MINERS[:2])), 3),
        (0, deal(miners=tuple(MINERS), phase=TradePhase.DELIVERY), 5),
        (0, deal(miners=tuple(MINERS), data_root=some("older")), 5),
        (0, deal(miners=tuple(MINERS), delivery_deadline_ms=2_000 - trading.AGAIN_MS), 5),
        # Another data set of hers was the last one; this one they have all the same.
        (5, deal(data_root=some("older")), None),
        # Whose share did not come is not known: all of them once more, after a while.
        (5, deal(phase=TradePhase.REFUNDED), None),
        (5, deal(phase=TradePhase.REFUNDED, delivery_deadline_ms=2_000 - trading.WARY_MS), 5),
    ],
)
async def test_the_same_rows_are_not_bought_again(
    monkeypatch: pytest.MonkeyPatch, holders: int, last: TradeView | None, buyers: int | None
) -> None:
    pool = make_pool(5 * LEAST_SHARE)
    (provider,) = await pool.chain.providers()
    await with_last(pool, last)
    kit = cast(Any, pool)
    kit.clock = SimpleNamespace(now_ms=lambda: 2_000)
    kit.members = SimpleNamespace(has_share=lambda miner, root: root == provider.data_root and miner in MINERS[:holders])

    async def close(_: object) -> None:
        return None

    kit.open = lambda *_: SimpleNamespace(close=close)
    asked: list[list[AccountId]] = []

    async def buy(seller: object, of: ProviderView, miners: list[AccountId], **_: object) -> Declined:
        asked.append(miners)
        return Declined("busy")

    monkeypatch.setattr(trading, "MarketClient", lambda *_: None)
    spec = SimpleNamespace(spec=SimpleNamespace(features=4, classes=2))
    buyer = SimpleNamespace(buy=buy)
    await trading._buy_from(pool, cast(Any, buyer), provider, cast(TaskView, spec), MINERS)
    assert asked == ([] if buyers is None else [MINERS[-buyers:]])


async def test_few_rows_are_shared_by_few_members() -> None:
    pool = make_pool(3 * LEAST_SHARE, 50, 5)
    assert await trading.most_rows(pool, len(MINERS)) == LEAST_SHARE + 50 + 5
    assert await trading.most_rows(pool, 2) == 3 * LEAST_SHARE // 2 + 50 + 5
    assert await trading.most_rows(pool, 0) == 0
