"""``pofl market offers`` and ``pofl market quote``: what is on sale, and what a pool would bid for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

import numpy as np
import typer

from core.errors import ConfigError, MarketError, PoflError, UnavailableError
from core.ids import MILLION, AccountId, Amount, PartsPerMillion, short
from core.market import contract, reverse_game
from core.market.bridge import choose_bid, to_float
from core.market.contract import DEFAULT_RULE, IntegerRule, Terms
from core.market.reputation import DEFAULT_REPUTATION
from core.market.reverse_game import PoolPrivate
from services.cli.connection import Connection, NetOption, NodeOption, TlsOption, network
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json, table
from services.rpc.convert_market import DataSetView
from services.rpc.market_client import MarketClient
from services.rpc.views import ProviderView

__all__ = ["account_of", "bid_steps", "register", "show_steps", "steps_json"]

NOBODY: Final = AccountId(bytes(32))
"""An account that asks for the figures of a provider only."""
Steps = list[tuple[str, str, Any]]
"""Name, formula, value."""


def register(market: typer.Typer) -> None:
    market.command("offers")(offers)
    market.command("quote")(quote)


@dataclass(frozen=True, slots=True)
class OnSale:
    """A data set, and the rule that an offer made now would have."""

    provider: ProviderView
    data_set: DataSetView | None
    rule: IntegerRule | None
    height: int
    problem: str = ""
    """Why there is no more."""


def account_of(connection: Connection, text: str, role: str | None = None) -> AccountId:
    """An account by its 64 hex digits, or by the name of a process of the testnet. Raises ConfigError."""
    if connection.layout is not None:
        members = [m for m in connection.layout.members if m.name == text and (role is None or m.role == role)]
        if members:
            return AccountId(members[0].account)
    try:
        account = bytes.fromhex(text)
    except ValueError:
        account = b""
    if len(account) != 32:
        raise ConfigError(
            f"{text!r} is no {role or 'account'}: give 64 hex digits, or a name as `pofl testnet status` shows it"
        )
    return AccountId(account)


async def _on_sale(connection: Connection, provider: ProviderView) -> OnSale:
    market = await connection.chain.market(provider.provider, NOBODY)
    try:
        client = MarketClient(connection.channel(provider.endpoint, "provider"), provider.endpoint)
        data_set = await client.data_set(provider.data_root)
    except PoflError as error:
        return OnSale(provider, None, None, market.height, error.message)
    rule = data_set.rule
    if rule is not None and (market.markup_high, market.bid_high) != (0, 0):
        rule = contract.with_highs(rule, market.markup_high, market.bid_high)
    return OnSale(provider, data_set, rule, market.height)


@runs
async def offers(
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False
) -> None:  # fmt: skip
    """What providers sell, and by which rule: the highs D_bar and m_bar are the chain's once a trade is settled.

    Example: pofl market offers --json
    """
    async with network(net, node, tls) as connection:
        found = [await _on_sale(connection, provider) for provider in await connection.chain.providers()]
        if as_json:
            emit_json(found)
            return
        rows = [
            (
                connection.name_of(one.provider.provider), one.data_set.name if one.data_set else "-",
                short(one.provider.data_root),
                one.provider.rows, f"{one.data_set.features} / {one.data_set.classes}" if one.data_set else "-",
                *_rule_columns(one.rule),
            )
            for one in found
        ]  # fmt: skip
        columns = ["provider", "data set", "root", "rows", "features / classes", "e1", "e2", "eta", "alpha", "beta", "D_bar",
                   "m_bar", "m_min"]  # fmt: skip
        console.print(table("on sale", columns, rows, right=range(3, len(columns))))
        for one in found:
            if one.problem:
                console.print(f"{connection.name_of(one.provider.provider)}: {one.problem}", markup=False)


def _rule_columns(rule: IntegerRule | None) -> tuple[object, ...]:
    if rule is None:
        return ("-",) * 8
    floats = to_float(rule)
    numbers = [f"{v:g}" for v in (floats.e1, floats.e2, floats.eta, rule.alpha, floats.beta)]
    return (*numbers, rule.D_bar, rule.m_bar, rule.m_min)


@runs
async def quote(
    profit: Annotated[float, typer.Option("--profit", metavar="Q", help="Legal profit that the pool expects, coins.")],
    leak_alpha: Annotated[float, typer.Option(help="alpha~: profit of leaking at reputation 0, coins.")] = 0.0,
    leak_beta: Annotated[float, typer.Option(help="beta~: profit of leaking per unit of value V.")] = 0.0,
    reputation: Annotated[int | None, typer.Option(metavar="PPM", help="r; default: that of --pool, or of a new pool.")] = None,
    pool: Annotated[str | None, typer.Option(help="Name or account of the pool whose reputation counts.")] = None,
    provider: Annotated[str | None, typer.Option(help="Name or account of the provider; default: the first.")] = None,
    default_rule: Annotated[bool, typer.Option("--default-rule", help="By the default rule; asks no network.")] = False,
    e1: Annotated[float | None, typer.Option(help="Another weight of the reputation.")] = None,
    e2: Annotated[float | None, typer.Option(help="Another weight of the markup.")] = None,
    eta: Annotated[float | None, typer.Option(help="Another eta: V = eta D_s.")] = None,
    alpha: Annotated[int | None, typer.Option(help="Another alpha, coins.")] = None,
    beta: Annotated[float | None, typer.Option(help="Another beta.")] = None,
    markup_high: Annotated[int | None, typer.Option(help="Another D_bar, coins.")] = None,
    bid_high: Annotated[int | None, typer.Option(help="Another m_bar, coins.")] = None,
    bid_least: Annotated[int | None, typer.Option(help="Another m_min, coins.")] = None,
    net: NetOption = None, node: NodeOption = None, tls: TlsOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """What a pool with these private values would bid on an offer, and the markup, price and probability that follow.

    Nothing is sent but questions: Q, alpha~ and beta~ stay here. Options change single parameters of the rule.

    Example: pofl market quote --profit 20000 --pool pool0

    Example: pofl market quote --profit 10000 --leak-alpha 500 --leak-beta 1 --default-rule --reputation 500000
    """
    who = "the default rule"
    if default_rule:
        if pool is not None or provider is not None:
            raise ConfigError("--default-rule asks no network: leave out --pool and --provider, and say --reputation")
        rule, r = DEFAULT_RULE, reputation
    else:
        async with network(net, node, tls) as connection:
            rule, who, r = await _offered(connection, provider, pool, reputation)
    r = DEFAULT_REPUTATION.start_ppm if r is None else r
    given = {
        "e1_ppm": _millionths("--e1", e1), "e2_ppm": _millionths("--e2", e2), "eta_micro": _millionths("--eta", eta),
        "alpha": alpha, "beta_micro": _millionths("--beta", beta), "D_bar": markup_high, "m_bar": bid_high, "m_min": bid_least,
    }  # fmt: skip
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    private = PoolPrivate(profit, leak_alpha, leak_beta)
    try:
        rule = replace(rule, **changed)
        contract.check_rule(rule)
        if not 0 <= r <= MILLION:
            raise MarketError(f"the reputation {r} is not in 0..{MILLION} ppm", reputation=r)
        reverse_game.check_private(to_float(rule), private)
        chosen = choose_bid(rule, private, PartsPerMillion(r))
    except MarketError as error:
        # The chain counts rates in millionths; on this command line they are fractions.
        hint = "; in millionths, so 0.5 is 500000" if " ppm is violated" in error.message else ""
        raise ConfigError(error.message + hint) from None
    steps = bid_steps(rule, PartsPerMillion(r), private, None if chosen is None else chosen[0])
    if as_json:
        emit_json(_as_json(rule, r, private, chosen) | {"rule_of": who, "steps": steps_json(steps)})
        return
    console.print(f"{who}{' with changes' if changed else ''}, reputation {r} ppm", markup=False)
    show_steps(steps)
    if chosen is None:
        console.print("the pool declines: no bid within the bounds is worth it")
    else:
        m, terms = chosen
        console.print(f"bid {m}, markup {terms.markup}, price {terms.price}, deal with probability {terms.p_ppm / MILLION:.6f}")


async def _offered(
    connection: Connection, provider: str | None, pool: str | None, reputation: int | None
) -> tuple[IntegerRule, str, int | None]:
    """The rule that an offer made now would have, whose it is, and the pool's reputation."""
    known = await connection.chain.providers()
    if provider is not None:
        account = account_of(connection, provider, "provider")
        known = tuple(p for p in known if p.provider == account)
    if not known:
        raise ConfigError(f"{provider or 'nobody'} is no registered provider: see `pofl market offers`, or take --default-rule")
    found = await _on_sale(connection, known[0])
    if found.rule is None:
        name = connection.name_of(known[0].provider)
        raise UnavailableError(f"provider {name} does not tell its rule{f': {found.problem}' if found.problem else ''}")
    if reputation is None and pool is not None:
        account = account_of(connection, pool, "pool")
        reputation = (await connection.chain.market(known[0].provider, account)).pool_reputation_ppm
    elif reputation is None:
        reputation = (await connection.genesis()).params.initial_reputation_ppm
    return found.rule, f"provider {connection.name_of(known[0].provider)} at height {found.height}", reputation


def _millionths(option: str, value: float | None) -> int | None:
    if value is None:
        return None
    if not abs(value) <= 1e12:
        raise ConfigError(f"{option} is {value}: it must be a number up to 1e12")
    return round(value * MILLION)


# -- the numbers behind a bid ------------------------------------------------------------------------------------------


def bid_steps(rule: IntegerRule, reputation: PartsPerMillion, private: PoolPrivate | None, bid: Amount | None) -> Steps:
    """What goes into m* (where the private values are known), D_s* and p, step by step."""
    f, r = to_float(rule), reputation / MILLION
    a = reverse_game.coefficients(f, r)
    A0, A1, A2, B = (float(v) for v in (a.A0, a.A1, a.A2, a.B))
    steps: Steps = [
        ("rule", "e1, e2, eta", f"{f.e1:g}, {f.e2:g}, {f.eta:g}"),
        ("", "alpha, beta, m_min", f"{rule.alpha}, {f.beta:g}, {rule.m_min}"),
        ("highs", "D_bar, m_bar", f"{rule.D_bar}, {rule.m_bar}"),
        ("r", "reputation", r),
        ("A0", "2 e2 (beta eta - 1)", A0),
        ("A1", "(1 - e1 - e2) / m_bar", A1),
        ("A2", "e2 + (1 - beta eta)(1 - e1 - e2) D_bar/m_bar", A2),
        ("B", "(1 - beta eta) D_bar e1 r - e2 alpha (1 - r)", B),
        ("least bid", "max(m_min, alpha (1 - r))", contract.least_bid(rule, reputation)),
    ]
    if private is not None:
        steps += _private_steps(f, private, r, A0, A2)
    if bid is None:
        return steps
    bare = f.e1 * r + (1 - f.e1 - f.e2) * bid / f.m_bar
    found = contract.terms(rule, bid, reputation)
    return [
        *steps,
        ("m", "the bid, in whole coins", bid),
        ("eq. (4)", "(A2 m + B) / A0", (A2 * bid + B) / A0),
        ("cap", "D_s at which p = 1", float((1 - bare) * f.D_bar / f.e2)),
        ("D_s*", "eq. (4) within 0 and the cap, rounded down", found.markup),
        ("price", "m + D_s*", found.price),
        ("p: reputation", "e1 r", f.e1 * r),
        ("p: markup", "e2 D_s*/D_bar", f.e2 * found.markup / f.D_bar),
        ("p: bid", "(1 - e1 - e2) m/m_bar", (1 - f.e1 - f.e2) * bid / f.m_bar),
        ("p", "eq. (2), their sum, at most 1", found.p_ppm / MILLION),
        ("c", "alpha (1 - r) + beta eta D_s*", float(reverse_game.expected_loss(f, found.markup, r))),
        ("U_provider", "p (m + D_s* - c)", float(reverse_game.provider_utility(f, bid, found.markup, r))),
        *_utility(f, private, bid, found, r),
    ]


def _private_steps(f: reverse_game.Rule, private: PoolPrivate, r: float, A0: float, A2: float) -> Steps:
    best = reverse_game.best_bid(f, private, r)
    inner = float(reverse_game.interior_bid(f, private, r))
    printed = float(reverse_game.interior_bid(f, private, r, as_printed=True))
    chosen: Steps = [("m*", "best bid within the bounds", "declines" if best is None else float(best.m))]
    return [
        ("Q, alpha~, beta~", "the pool's own", f"{private.Q:g}, {private.alpha:g}, {private.beta:g}"),
        ("A3", "D_bar (beta~ eta - 1)", float(f.D_bar * (private.beta * f.eta - 1))),
        ("condition", "(beta~ eta - 1) A2 < A0", f"{(private.beta * f.eta - 1) * A2:.4g} < {A0:.4g}"),
        ("eq. (5)", "corrected: maximum without bounds", inner),
        ("eq. (5)", "as printed", printed),
        *chosen,
    ]


def _utility(f: reverse_game.Rule, private: PoolPrivate | None, bid: Amount, found: Terms, r: float) -> Steps:
    if private is None:
        return []
    gain = float(reverse_game.expected_leak_profit(f, private, found.markup, r))
    utility = float(reverse_game.pool_utility(f, private, bid, found.markup, r))
    return [("c~", "alpha~ (1 - r) + beta~ eta D_s*", gain), ("U_pool", "p (Q + c~ - m - D_s*)", utility)]


def show_steps(steps: Steps) -> None:
    rows = [(name, formula, _number(value)) for name, formula, value in steps]
    console.print(table("how it comes about", ["", "formula", "value"], rows, right=[2]))


def _number(value: object) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def steps_json(steps: Steps) -> list[dict[str, object]]:
    return [
        {"name": name, "formula": formula, "value": None if isinstance(value, float) and not np.isfinite(value) else value}
        for name, formula, value in steps
    ]


def _as_json(rule: IntegerRule, r: int, private: PoolPrivate, chosen: tuple[Amount, Terms] | None) -> dict[str, object]:
    known: dict[str, object] = {"rule": rule, "reputation_ppm": r, "private": private, "declines": chosen is None}
    if chosen is not None:
        m, terms = chosen
        known |= {"bid": m, "markup": terms.markup, "price": terms.price, "p_ppm": terms.p_ppm}
    return known
