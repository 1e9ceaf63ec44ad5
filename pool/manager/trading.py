"""Buying rows for a task: one try with each provider, many at once, then shares to the members (paper, section III; design:
market).

A trade that fails, for whatever reason, is logged and never keeps the pool from training.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from core.errors import PoflError
from core.ids import MILLION, AccountId, Milliseconds, short
from core.market.contract import CHUNKS, MAX_BUYERS
from core.market.marks import most_buyers
from core.market.reverse_game import PoolPrivate
from pool.manager.context import Pool
from services.rpc.convert_mining import FetchRows
from services.rpc.market_client import Buyer, Deal, Declined, MarketClient, NoDeal, TradeOutcome, Undecided
from services.rpc.views import ProviderView, TaskView, TradePhase, TradeView
from services.runtime.logging import logger
from services.runtime.metrics import counter

__all__ = ["buy_rows", "most_rows"]

log = logger(__name__)

ROWS = counter("pool_rows_bought", "Rows that this pool bought for its miners.")
SPENT = counter("pool_rows_spent", "What it paid or owes for them, bid and markup, in coins.")

BUY_SECONDS: Final = 10.0
"""For offer, bid and draw, and again for a bid that is not decided then."""
AT_ONCE: Final = 16
"""Providers negotiated with at a time: one that never answers must not keep the pool from the others."""
LONGEST_DELIVERY_MS: Final = 60_000
"""Used where the chain does not say when delivery ends."""


WARY_MS: Final = 3_600_000
"""No trade for so long with a provider whose last one was refunded: the draw pays her the first chunks, receipts the others."""
LOOK_BACK: Final = 16
"""Trades with a provider, the newest first, among which her deals are looked for."""
AGAIN_MS: Final = 86_400_000
"""Who acknowledged all its rows and says that it has none gets them again after so long: a disk fails rarely, and a provider's
own miner would forget them at every task, for each time is paid."""


async def most_rows(pool: Pool, miners: int) -> int:
    """The most rows that one of this many buyers may get from all registered providers."""
    if not pool.cfg.market.buy or not miners:
        return 0
    try:
        providers = await pool.chain.providers()
    except PoflError as error:
        log.warning("cannot list the providers, no rows are bought", error=error)
        return 0
    return sum(-(-provider.rows // max(1, min(miners, _most_buyers(provider)))) for provider in providers)


async def buy_rows(pool: Pool, task: TaskView, miners: Sequence[AccountId]) -> None:
    """Try a trade with every registered provider, AT_ONCE at a time."""
    if not pool.cfg.market.buy or not miners:
        return
    market = pool.cfg.market
    private = PoolPrivate(
        Q=float(market.profit), alpha=market.leak_alpha_micro / MILLION, beta=market.leak_beta_micro / MILLION
    )
    buyer = Buyer(pool.chain, pool.wallet, pool.role.key, pool.chain_id, private, pool.marks)
    try:
        providers = await pool.chain.providers()
    except PoflError as error:
        log.warning("cannot list the providers, no rows are bought", error=error)
        return
    slots = asyncio.Semaphore(AT_ONCE)

    async def attempt(provider: ProviderView) -> None:
        async with slots:
            try:
                await _buy_from(pool, buyer, provider, task, miners)
            except PoflError as error:
                log.warning("no rows bought", provider=provider.provider, error=error)

    await asyncio.gather(*(attempt(provider) for provider in providers))


def _most_buyers(provider: ProviderView) -> int:
    """Miners that each get a row in every chunk, and a share that the provider sells: small ones prove no leak."""
    return min(MAX_BUYERS, provider.rows // CHUNKS, most_buyers(provider.rows))


async def _buy_from(pool: Pool, buyer: Buyer, provider: ProviderView, task: TaskView, miners: Sequence[AccountId]) -> None:
    deals = await _deals(pool, provider)
    if _was_refunded(pool, deals[0] if deals else None):
        log.warning("no trade: her last one was not delivered whole", provider=provider.provider)
        return
    lacking = _without_share(pool, provider, deals, miners)
    if 2 * len(lacking) < len(miners):
        log.info("no trade: most members have rows of this data set", provider=provider.provider, rows=provider.rows)
        return
    buyers = lacking[: _most_buyers(provider)]
    if not buyers:
        log.info("no rows bought: too few on sale", provider=provider.provider, rows=provider.rows)
        return
    channel = pool.open(provider.endpoint, "provider")
    try:
        seller = MarketClient(channel, provider.endpoint)
        spec = task.spec
        outcome: TradeOutcome = await buyer.buy(
            seller, provider, buyers, timeout=BUY_SECONDS, features=spec.features, classes=spec.classes
        )
        if isinstance(outcome, Undecided):
            outcome = await buyer.follow(outcome, timeout=BUY_SECONDS)
    finally:
        await channel.close(None)
    _hand_out(pool, provider, outcome)


async def _deals(pool: Pool, provider: ProviderView) -> list[TradeView]:
    """Those with her, the newest first; a draw that said no tells nothing of what is held or was delivered."""
    found = await pool.chain.trades(provider.provider, pool.account, limit=LOOK_BACK)
    return [trade for trade in found if trade.phase not in (TradePhase.BID, TradePhase.NO_DEAL)]


def _was_refunded(pool: Pool, last: TradeView | None) -> bool:
    """Whether the last deal with her fell short within WARY_MS.

    However little was missing: rows that do not come whole are of no use, and most of their price may be hers.
    """
    if last is None or last.phase is not TradePhase.REFUNDED:
        return False
    return pool.clock.now_ms() < (last.delivery_deadline_ms or 0) + WARY_MS


def _without_share(
    pool: Pool, provider: ProviderView, deals: Sequence[TradeView], miners: Sequence[AccountId]
) -> list[AccountId]:
    """Members for whom her data set is new. The same rows once more teach nothing, and cost the same.

    All of them after a trade that was refunded: whose share did not come is not told apart.
    """
    if deals and deals[0].data_root == provider.data_root and deals[0].phase is TradePhase.REFUNDED:
        return list(miners)
    since = pool.clock.now_ms() - AGAIN_MS
    acknowledged = {
        miner
        for deal in deals
        if deal.data_root == provider.data_root
        and deal.phase is TradePhase.SETTLED
        and (deal.delivery_deadline_ms or 0) > since
        for miner in deal.miners
    }
    return [m for m in miners if m not in acknowledged and not pool.members.has_share(m, provider.data_root)]


def _hand_out(pool: Pool, provider: ProviderView, outcome: TradeOutcome) -> None:
    match outcome:
        case Declined(reason):
            log.info("no trade", provider=provider.provider, reason=reason)
        case NoDeal(trade):
            log.info("the draw said no", provider=provider.provider, p_ppm=trade.p_ppm, bid=trade.bid)
        case Undecided(trade_id):
            log.warning("the draw is not there in time; its rows come too late", trade=short(trade_id))
        case Deal(trade) as deal:
            deadline = trade.delivery_deadline_ms or Milliseconds(pool.clock.now_ms() + LONGEST_DELIVERY_MS)
            seeds = pool.marks.seeds(trade.trade_id)
            for miner, share in deal.shares():
                pool.members.assign_rows(
                    miner,
                    FetchRows(
                        trade.trade_id, share.data_root, provider.endpoint, provider.provider, CHUNKS, share.first,
                        share.count, deadline, seeds[miner],
                    ),
                )  # fmt: skip
            ROWS.inc(deal.data_set.rows)
            SPENT.inc(trade.bid + trade.markup)
            log.info(
                "rows bought", provider=provider.provider, price=trade.bid + trade.markup, rows=deal.data_set.rows,
                miners=len(trade.miners),
            )  # fmt: skip
