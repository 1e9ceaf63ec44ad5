"""``pofl market history``, ``trade``, ``explain`` and ``reputation``: what became of bids, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from typing import Annotated, Final

import typer

from core.chain.rules_leaks import reputation_rule
from core.chain.transaction import Bid, ChunkReceipt, SignedTransaction
from core.codec import decode
from core.errors import ChainError, ConfigError, MarketError, NotFoundError
from core.ids import MILLION, AccountId, Amount, Digest, Height, PartsPerMillion, TxId, short
from core.market import contract, draw, reputation, reverse_game, rows
from core.market.bridge import to_float
from core.market.contract import TradeTerms
from core.market.reverse_game import PoolPrivate
from services.cli.connection import Connection, NetOption, NodeOption, TlsOption, network
from services.cli.errors import runs
from services.cli.market_quotes import account_of, bid_steps, show_steps, steps_json
from services.cli.output import JsonOption, console, emit_json, instant, table
from services.rpc.views import TradePhase, TradeView

__all__ = ["Found", "all_trades", "find_bid", "find_trade", "register"]

PAGE: Final = 500
SCAN: Final = 2_000
"""Blocks in which the receipts of one trade are looked for."""
TradeArgument = Annotated[str, typer.Argument(metavar="TRADE", help="Trade id, or its first 8 or more hex digits.")]


def register(market: typer.Typer) -> None:
    for command in (history, trade, explain):
        market.command()(command)
    market.command("reputation")(show_reputation)


@dataclass(frozen=True, slots=True)
class Found:
    """A bid as it stands in its block."""

    terms: TradeTerms
    transaction: TxId
    time_ms: int


async def all_trades(
    connection: Connection, provider: AccountId | None = None, pool: AccountId | None = None
) -> AsyncIterator[TradeView]:
    """Newest bid first, each once, page by page."""
    after = b""
    while True:
        page = await connection.chain.trades(provider, pool, PAGE, after)
        for each in page:
            yield each
        if len(page) < PAGE:
            return
        after = page[-1].trade_id


async def find_trade(connection: Connection, text: str) -> TradeView:
    """The trade whose id is ``text`` or begins with it. Raises ConfigError, NotFoundError."""
    digits = text.lower()
    if not 8 <= len(digits) <= 64 or set(digits) - set("0123456789abcdef"):
        raise ConfigError(
            f"{text!r} is no trade id: 64 hex digits, or the first 8 or more of them as `pofl market history` prints them"
        )
    if len(digits) == 64:
        return await connection.chain.trade(Digest(bytes.fromhex(digits)))
    found = [each.trade_id async for each in all_trades(connection) if each.trade_id.hex().startswith(digits)]
    if not found:
        raise NotFoundError(f"no trade on this chain has an id that begins with {digits}: see `pofl market history`")
    if len(found) > 1:
        raise ConfigError(f"{len(found)} trades have ids that begin with {digits}: give more digits")
    return await connection.chain.trade(found[0])


async def find_bid(connection: Connection, view: TradeView) -> Found:
    """The bid of a trade, from its block: the offer and all that both sides signed. Raises ChainError if it is not there."""
    block = await connection.chain.block(view.bid_height)
    for data in block.block.decoded_body().transactions:
        signed = decode(SignedTransaction, data)
        payload = signed.decoded().payload
        if isinstance(payload, Bid):
            offer = contract.decode_offer(payload.offer)
            terms = TradeTerms(offer, payload.bid, PartsPerMillion(payload.p_ppm), payload.miners, payload.marks)
            if contract.trade_id(terms) == view.trade_id:
                return Found(terms, signed.tx_id, block.header.timestamp_ms)
    raise ChainError(f"the node says trade {short(view.trade_id)} was bid in block {view.bid_height}, which has no such bid")


@runs
async def history(
    provider: Annotated[str | None, typer.Option(help="Trades with this provider only: name or account.")] = None,
    pool: Annotated[str | None, typer.Option(help="Trades of this pool only: name or account.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Trades on the chain, newest first.

    Example: pofl market history --pool pool0
    """
    async with network(net, node, tls) as connection:
        seller = account_of(connection, provider, "provider") if provider else None
        buyer = account_of(connection, pool, "pool") if pool else None
        found = await connection.chain.trades(seller, buyer, limit)
        if as_json:
            emit_json([_as_json(each) for each in found])
            return
        shown = [
            (
                short(t.trade_id), t.bid_height, connection.name_of(t.provider), connection.name_of(t.pool), t.reputation_ppm,
                t.bid, t.markup, t.bid + t.markup, f"{t.p_ppm / MILLION:.4f}", t.phase.name.lower().replace("_", " "),
                f"{t.chunks_delivered}/{t.chunks_total}", "leaked" if t.is_leaked else "",
            )
            for t in found
        ]  # fmt: skip
        columns = ["trade", "height", "provider", "pool", "r ppm", "m", "D_s", "price", "p", "phase", "chunks", "leak"]
        console.print(table("trades", columns, shown, right=[1, 4, 5, 6, 7, 8, 10]))


@runs
async def trade(
    trade_id: TradeArgument,
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """One trade's life on the chain: offer, bid, draw, receipts, settlement, reports.

    Example: pofl market trade 1f3a9c02, with an id from `pofl market history`
    """
    async with network(net, node, tls) as connection:
        view = await find_trade(connection, trade_id)
        bid = await find_bid(connection, view)
        events = [*_begun(view, bid), *await _drawn(connection, view), *await _delivered(connection, view), *_reported(view)]
        if as_json:
            told = [{"height": height, "event": event, "what": what} for height, event, what in events]
            emit_json(_as_json(view) | {"transaction": bid.transaction, "offer": bid.terms.offer, "events": told})
            return
        console.print(f"trade {view.trade_id.hex()}")
        console.print(f"  {connection.name_of(view.pool)} buys {view.rows} rows from {connection.name_of(view.provider)}")
        console.print(f"  for {', '.join(connection.name_of(miner) for miner in view.miners)}")
        console.print(f"  phase {view.phase.name.lower().replace('_', ' ')}{', leaked' if view.is_leaked else ''}")
        console.print(table("its life on the chain", ["height", "what", ""], events, right=[0]))


Event = tuple[int, str, str]


def _begun(view: TradeView, bid: Found) -> list[Event]:
    offer = bid.terms.offer
    rule = offer.rule
    return [
        (
            offer.height_read, "offer",
            f"the provider read r = {offer.reputation_ppm} ppm; D_bar {rule.D_bar}, m_bar {rule.m_bar}; "
            f"good until {instant(offer.expiry_ms)}",
        ),
        (
            view.bid_height, "bid",
            f"m {view.bid}, D_s {view.markup}: price {view.bid + view.markup} locked, p {view.p_ppm / MILLION:.6f}",
        ),
    ]  # fmt: skip


async def _drawn(connection: Connection, view: TradeView) -> list[Event]:
    if view.draw_height is None:
        return [(view.bid_height + 1, "draw", "waits for the block after the bid")]
    drawn = draw.lot((await connection.chain.block(view.draw_height)).block_hash, view.trade_id)
    sign, deal = ("<", "a deal") if drawn < view.p_ppm else (">=", "no deal, the price went back")
    return [(view.draw_height, "draw", f"lot {drawn} {sign} {view.p_ppm} ppm: {deal}")]


async def _delivered(connection: Connection, view: TradeView) -> list[Event]:
    """Receipts block by block, and how the delivery ended."""
    if view.draw_height is None or view.phase is TradePhase.NO_DEAL:
        return []
    left, price = view.chunks_delivered, Amount(view.bid + view.markup)
    released = int(rows.advance(price, view.rows, len(view.miners)))
    last = int(view.draw_height)
    events: list[Event] = [(last, "advance", f"the first chunk of each of {len(view.miners)} shares is paid: {released}")]
    tip = (await connection.chain.tip()).height
    for height in range(view.draw_height, min(tip, view.draw_height + SCAN) + 1):
        if not left:
            break
        block = await connection.chain.block(Height(height))
        payloads = [decode(SignedTransaction, data).decoded().payload for data in block.block.decoded_body().transactions]
        receipts = [p for p in payloads if isinstance(p, ChunkReceipt) and p.trade_id == view.trade_id]
        if receipts:
            sums = [
                rows.chunk_amount(price, view.rows, len(view.miners), view.miners.index(p.miner), p.chunk) if p.chunk else 0
                for p in receipts
            ]
            count = Counter(p.miner for p in receipts)
            events.append((height, "receipts", f"{len(receipts)} chunks of {len(count)} miners release {sum(sums)}"))
            left, released, last = left - len(receipts), released + sum(sums), height
    if left:
        events.append((last, "receipts", f"{left} more, in blocks that were not looked through"))
    if view.phase is TradePhase.SETTLED:
        events.append((last, "settled", f"all {view.chunks_total} chunks are delivered and {price} is paid"))
    elif view.delivery_deadline_ms is not None:
        what = (
            f"until {instant(view.delivery_deadline_ms)}; {view.chunks_delivered} of {view.chunks_total} chunks are delivered"
        )
        if view.phase is TradePhase.REFUNDED:
            what += f", {price - released} went back to the pool"
        events.append((last, "refunded" if view.phase is TradePhase.REFUNDED else "delivery", what))
    return events


def _reported(view: TradeView) -> list[Event]:
    return [
        (
            report.height, "report",
            f"miner {short(report.miner)}: {report.found} marks found, {report.agreeing} agree: {report.outcome.name.lower()}",
        )
        for report in view.reports
    ]  # fmt: skip


@runs
async def explain(
    trade_id: TradeArgument,
    profit: Annotated[float | None, typer.Option("--profit", metavar="Q", help="The pool's Q, if you know it.")] = None,
    leak_alpha: Annotated[float, typer.Option(help="The pool's alpha~, with --profit.")] = 0.0,
    leak_beta: Annotated[float, typer.Option(help="The pool's beta~, with --profit.")] = 0.0,
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """The numbers that went into a trade's bid, markup and probability, from what is on the chain.

    The chain never sees a pool's Q, alpha~ and beta~. With --profit the best bid m* is computed for them; without, only
    which Q the bid would be the interior best for, if the pool gains nothing by leaks.

    Example: pofl market explain 1f3a9c02 --profit 20000
    """
    if profit is None and (leak_alpha or leak_beta):
        raise ConfigError("--leak-alpha and --leak-beta mean nothing without --profit")
    private = None if profit is None else PoolPrivate(profit, leak_alpha, leak_beta)
    async with network(net, node, tls) as connection:
        view = await find_trade(connection, trade_id)
        offer = (await find_bid(connection, view)).terms.offer
        name = connection.name_of(view.pool)
    try:
        if private is not None:
            reverse_game.check_private(to_float(offer.rule), private)
    except MarketError as error:
        raise ConfigError(error.message) from None
    found = contract.terms(offer.rule, view.bid, offer.reputation_ppm)
    if (found.markup, found.p_ppm) != (view.markup, view.p_ppm):
        raise ChainError(
            f"trade {short(view.trade_id)} has D_s = {view.markup}, p = {view.p_ppm} ppm on the chain, its rule gives "
            f"{found.markup} and {found.p_ppm}"
        )
    steps = bid_steps(offer.rule, offer.reputation_ppm, private, view.bid)
    implied = _implied_profit(view, offer)
    if as_json:
        emit_json(_as_json(view) | {"rule": offer.rule, "steps": steps_json(steps), "implied_profit": implied})
        return
    console.print(f"trade {view.trade_id.hex()} of {name}")
    show_steps(steps)
    if implied is not None:
        console.print(f"The bid is the interior best one, eq. (5), for Q = {implied:,.0f} if alpha~ = beta~ = 0.")


def _implied_profit(view: TradeView, offer: contract.Offer) -> float | None:
    """Eq. (5) is linear in Q, so a bid inside all bounds tells it. None at a bound."""
    least = contract.least_bid(offer.rule, offer.reputation_ppm)
    if view.markup == 0 or view.p_ppm == MILLION or view.bid <= least:
        return None
    rule, r = to_float(offer.rule), offer.reputation_ppm / MILLION
    zero, one = (float(reverse_game.interior_bid(rule, PoolPrivate(Q, 0.0, 0.0), r)) for Q in (0.0, 1.0))
    return (view.bid - zero) / (one - zero)


@runs
async def show_reputation(
    pool: Annotated[str | None, typer.Argument(help="Name or account of a pool; default: all known.")] = None,
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Reputations of pools, and what a proven leak or the next clean trade makes of them.

    Example: pofl market reputation pool0
    """
    async with network(net, node, tls) as connection:
        rule = reputation_rule((await connection.genesis()).params)
        wanted = account_of(connection, pool, "pool") if pool is not None else None
        trades = [each async for each in all_trades(connection, pool=wanted)]
        accounts = {each.pool for each in trades} | ({wanted} if wanted is not None else _known_pools(connection))
        lines = []
        for account in sorted(accounts, key=connection.name_of):
            r = (await connection.chain.account(account)).reputation_ppm
            own = [each for each in trades if each.pool == account]
            lines.append(
                {
                    "pool": account, "name": connection.name_of(account), "reputation_ppm": r, "bids": len(own),
                    "settled": sum(t.phase is TradePhase.SETTLED for t in own), "leaked": sum(t.is_leaked for t in own),
                    "after_leak_ppm": reputation.after_leak(rule, r),
                    "after_clean_trade_ppm": reputation.after_clean_trade(rule, r),
                }
            )  # fmt: skip
    if as_json:
        emit_json(lines)
        return
    columns = ["name", "reputation_ppm", "bids", "settled", "leaked", "after_leak_ppm", "after_clean_trade_ppm"]
    heads = ["pool", "r ppm", "bids", "settled", "leaked", "r after a proven leak", "r after a clean trade"]
    console.print(table("reputations", heads, [[line[c] for c in columns] for line in lines], right=range(1, 7)))


def _known_pools(connection: Connection) -> set[AccountId]:
    return {AccountId(m.account) for m in connection.layout.of("pool")} if connection.layout is not None else set()


def _as_json(view: TradeView) -> dict[str, object]:
    told = {f.name: getattr(view, f.name) for f in fields(view) if f.name != "marks"}
    return told | {"price": view.bid + view.markup}
