"""``pofl market``: quotes, trades and the numbers behind them, over the real rules of the chain."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from core.chain.records import Trade
from core.chain.table import Table
from core.chain.transaction import Bid, RegisterProvider
from core.codec import encode
from core.crypto import signing
from core.errors import NotFoundError, UnavailableError
from core.ids import AccountId, Amount, Digest, PartsPerMillion
from core.market import contract, delivery
from core.market.bridge import choose_bid
from core.market.contract import CHUNKS, DEFAULT_RULE
from core.params import Genesis
from node import queries
from services.cli import market_quotes, market_trades
from services.cli.connection import Connection
from services.cli.main import main
from services.rpc.convert_market import DataSetView, data_set_from_proto, data_set_to_proto
from services.rpc.views import TradeView
from tests.chainkit import account, key
from tests.market_kit import MINERS, PRIVATE, KitChain, Shop, terms_for

LABEL = contract.DOMAIN_TRADE_SIGNATURE


class ListingChain(KitChain):
    """A node's answers that the commands ask for."""

    async def trades(
        self, provider: AccountId | None = None, pool: AccountId | None = None, limit: int = 100, after: bytes = b""
    ) -> tuple[TradeView, ...]:
        return queries.trade_views(self.chain.state, provider, pool, limit, Digest(after) if after else None)

    async def genesis(self) -> Genesis:
        return self.chain.genesis


async def bought(deal: bool = True) -> tuple[ListingChain, Digest]:
    """A chain on which pool0 bid, and got all chunks of one miner if there was a deal."""
    kit = ListingChain(deal=deal)
    shop = Shop(kit)
    offer = await shop.offer()
    terms = terms_for(offer)
    kit.take(kit.chain.tx("provider", RegisterProvider(offer.data_root, offer.rows, "127.0.0.1:9")))
    signature = signing.sign(key("provider"), LABEL, encode(terms))
    offered = signing.sign(key("provider"), contract.DOMAIN_OFFER, encode(offer))
    bid = Bid(encode(offer), offered, terms.bid, terms.p_ppm, terms.miners, terms.marks, signature)
    kit.take(kit.chain.tx("pool0", bid))
    trade_id = contract.trade_id(terms)
    for chunk in range(CHUNKS if deal else 0):
        kit.take(kit.chain.tx("provider", delivery.sign_receipt(key("miner0"), kit.chain_id, trade_id, chunk)))
    return kit, trade_id


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the commands reach a kit's chain, and a provider who tells the default rule or cannot be reached."""

    def set_up(kit: ListingChain, view: DataSetView | None = None) -> None:
        names = {bytes(account(n)): n for n in ("provider", "pool0", "pool1", "miner0")}
        members = [SimpleNamespace(name=n, role=n.rstrip("01"), account=a) for a, n in names.items()]
        layout = SimpleNamespace(
            members=members, genesis=kit.chain.genesis, name_of=lambda a: names.get(bytes(a), a.hex()[:8]),
            of=lambda role: [m for m in members if m.role == role],
        )  # fmt: skip

        @asynccontextmanager
        async def network(net: Any, node: Any, tls: Any) -> AsyncIterator[Connection]:
            async with AsyncExitStack() as stack:
                yield Connection(cast(Any, kit), cast(Any, layout), None, stack)

        class Provider:
            def __init__(self, channel: Any, peer: str) -> None: ...

            async def data_set(self, root: Digest) -> DataSetView:
                if view is None:
                    raise UnavailableError("the provider cannot be reached")
                return view

        monkeypatch.setattr(Connection, "channel", lambda self, target, role: None)
        monkeypatch.setattr(market_quotes, "MarketClient", Provider)
        for module in (market_quotes, market_trades):
            monkeypatch.setattr(module, "network", network)

    return set_up


class Pofl:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["pofl", "market", *arguments])
        try:
            code = main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = self.capsys.readouterr()
        return code, printed.out, printed.err

    def json(self, *arguments: str) -> Any:
        code, out, err = self(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)


@pytest.fixture
def pofl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pofl:
    return Pofl(monkeypatch, capsys)


def run(coroutine: Any) -> Any:
    import asyncio

    return asyncio.run(coroutine)


def test_a_quote_is_the_bid_that_the_pool_would_make(pofl: Pofl) -> None:
    found = pofl.json("quote", "--profit", "10000", "--leak-alpha", "500", "--leak-beta", "1", "--default-rule",
                      "--reputation", "500000")  # fmt: skip
    expected = choose_bid(DEFAULT_RULE, contract_private(10_000, 500, 1), PartsPerMillion(500_000))
    assert expected is not None
    m, terms = expected
    assert (found["bid"], found["markup"], found["price"], found["p_ppm"]) == (m, terms.markup, terms.price, terms.p_ppm)
    steps = {step["name"]: step["value"] for step in found["steps"]}
    assert (steps["D_s*"], steps["price"]) == (terms.markup, terms.price)
    assert steps["p: reputation"] + steps["p: markup"] + steps["p: bid"] == pytest.approx(terms.p_ppm / 1e6, abs=1e-6)
    assert "declines" in pofl("quote", "--profit", "100", "--default-rule")[1]


def contract_private(Q: float, alpha: float, beta: float) -> Any:
    return dataclasses.replace(PRIVATE, Q=Q, alpha=alpha, beta=beta)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--beta", "0.5"), "beta eta > 1 (Theorem III.1) is violated: beta = 500000, eta = 1800000 millionths"),
        (("--e1", "0.6"), "e1 + e2 <= 1000000 ppm is violated: e1 = 600000, e2 = 500000"),
        (("--bid-high", "0"), "m_bar = 0 is not in 1.."),
        (("--reputation", "1000001"), "the reputation 1000001 is not in 0..1000000 ppm"),
        (("--leak-beta", "-1"), "alpha~, beta~ >= 0 is violated: alpha~ = 0.0, beta~ = -1.0"),
        (("--leak-beta", "20"), "(beta~ eta - 1) A2 < A0 (Theorem III.2, corrected) is violated"),
        (("--e1", "nan"), "--e1 is nan"),
        (("--pool", "pool0"), "--default-rule asks no network"),
    ],
)
def test_parameters_that_violate_a_condition_are_named(pofl: Pofl, arguments: tuple[str, ...], said: str) -> None:
    code, _, err = pofl("quote", "--profit", "10000", "--default-rule", *arguments)
    assert code == 2
    assert said in err


def test_offers_and_a_quote_by_a_providers_rule(pofl: Pofl, use: Any) -> None:
    kit, trade_id = run(bought())
    view = run(kit.trade(trade_id))
    data = DataSetView(view.data_root, "rows", view.rows, 8, 10, 127_000_000, DEFAULT_RULE)
    use(kit, data)
    (one,) = pofl.json("offers")
    assert one["rule"]["m_bar"] == DEFAULT_RULE.m_bar
    assert "8 / 10" in pofl("offers")[1]
    quoted = pofl.json("quote", "--profit", "20000", "--pool", "pool0")
    assert (quoted["bid"], quoted["markup"]) == (view.bid, view.markup)
    assert pofl("quote", "--profit", "1", "--provider", "pool0")[0] == 2
    use(kit, None)
    code, _, err = pofl("quote", "--profit", "20000")
    assert code == 3
    assert "does not tell its rule: the provider cannot be reached" in err
    assert "the provider cannot be reached" in pofl("offers")[1]


def test_a_providers_rule_survives_the_wire_and_a_bad_one_does_not() -> None:
    view = DataSetView(Digest(b"d" * 32), "rows", 9, 8, 10, 1, DEFAULT_RULE)
    assert data_set_from_proto(data_set_to_proto(view)) == view
    assert data_set_from_proto(data_set_to_proto(dataclasses.replace(view, rule=None))).rule is None
    bad = dataclasses.replace(DEFAULT_RULE, D_bar=Amount(0))
    with pytest.raises(Exception, match="D_bar = 0 is not in"):
        data_set_from_proto(data_set_to_proto(dataclasses.replace(view, rule=bad)))


def test_a_trades_life(pofl: Pofl, use: Any) -> None:
    kit, trade_id = run(bought())
    use(kit)
    (listed,) = pofl.json("history", "--pool", "pool0")
    assert listed["trade_id"] == trade_id.hex()
    assert pofl.json("history", "--pool", "pool1") == []
    told = pofl.json("trade", trade_id.hex()[:8])
    events = {event["event"]: event for event in told["events"]}
    assert list(events) == ["offer", "bid", "draw", "advance", "receipts", "delivery"]
    assert "a deal" in events["draw"]["what"]
    chunks = [event for event in told["events"] if event["event"] == "receipts"]
    assert len(chunks) == CHUNKS
    assert "10 of 30 chunks are delivered" in events["delivery"]["what"]
    released = sum(int(event["what"].rsplit(" ", 1)[1]) for event in chunks)
    assert released == pytest.approx(0.9 * told["price"] / len(MINERS), abs=1)
    assert int(events["advance"]["what"].rsplit(" ", 1)[1]) == pytest.approx(0.1 * told["price"], abs=len(MINERS))
    code, out, _ = pofl("trade", trade_id.hex())
    assert code == 0
    assert "pool0 buys 90 rows from provider" in out


def test_a_draw_that_says_no(pofl: Pofl, use: Any) -> None:
    kit, trade_id = run(bought(deal=False))
    use(kit)
    events = pofl.json("trade", trade_id.hex())["events"]
    assert [event["event"] for event in events] == ["offer", "bid", "draw"]
    assert "no deal, the price went back" in events[-1]["what"]


def test_explain_shows_what_the_chain_computed_and_which_profit_the_bid_tells(pofl: Pofl, use: Any) -> None:
    kit, trade_id = run(bought())
    use(kit)
    view = run(kit.trade(trade_id))
    found = pofl.json("explain", trade_id.hex())
    steps = {step["name"]: step["value"] for step in found["steps"]}
    assert (steps["m"], steps["D_s*"], steps["p"]) == (view.bid, view.markup, view.p_ppm / 1e6)
    assert "m*" not in steps
    assert found["implied_profit"] == pytest.approx(PRIVATE.Q, rel=1e-3)
    known = {s["name"]: s["value"] for s in pofl.json("explain", trade_id.hex(), "--profit", "20000")["steps"]}
    assert int(known["m*"]) == view.bid
    assert pofl("explain", trade_id.hex(), "--profit", "-1")[0] == 2
    assert pofl("explain", trade_id.hex(), "--leak-beta", "1")[0] == 2


def test_reputations_and_what_becomes_of_them(pofl: Pofl, use: Any) -> None:
    kit, _ = run(bought())
    use(kit)
    lines = {line["name"]: line for line in pofl.json("reputation")}
    assert lines["pool0"]["bids"] == 1
    assert lines["pool0"]["reputation_ppm"] == 100_000
    assert lines["pool0"]["after_leak_ppm"] == 40_000
    assert lines["pool0"]["after_clean_trade_ppm"] == 208_000
    assert len(pofl.json("reputation", "pool0")) == 1
    assert pofl("reputation", "nobody")[0] == 2


@pytest.mark.parametrize(
    ("trade", "said"), [("12", "'12' is no trade id"), ("x" * 64, "is no trade id"), ("00000000", "no trade on this chain")]
)
def test_a_trade_that_is_not_there(pofl: Pofl, use: Any, trade: str, said: str) -> None:
    use(ListingChain())
    code, _, err = pofl("trade", trade)
    assert code == 2
    assert said in err


def test_lists_leave_out_what_grows_and_pages_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kit, trade_id = run(bought())
    state = kit.chain.state
    (view,) = queries.trade_views(state, None, None, 10, None)
    assert (view.trade_id, view.miners, view.marks, view.reports) == (trade_id, (), (), ())
    assert queries.trade_views(state, account("pool1"), None, 10, None) == ()
    assert queries.trade_views(state, None, None, 10, trade_id) == ()
    copies = {bytes([i]) * 32: state.trades[trade_id] for i in range(7)}
    many = dataclasses.replace(state, trades=Table(Trade, copies))
    monkeypatch.setattr(market_trades, "PAGE", 3)

    class Paged:
        async def trades(self, provider: Any, pool: Any, limit: int, after: bytes) -> tuple[TradeView, ...]:
            return queries.trade_views(many, provider, pool, limit, Digest(after) if after else None)

    async def listed() -> list[Digest]:
        return [each.trade_id async for each in market_trades.all_trades(cast(Any, SimpleNamespace(chain=Paged())))]

    assert sorted(run(listed())) == sorted(copies)
    with pytest.raises(NotFoundError):
        queries.trade_views(many, None, None, 10, Digest(b"z" * 32))
