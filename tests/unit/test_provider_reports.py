"""The provider's report command: whom it finds, and when it sends nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.chain.transaction import RegisterProvider
from core.errors import ConfigError, MarketError
from core.ids import Digest, Milliseconds
from core.market import delivery, marks
from provider import report_leak
from services.rpc.views import LeakReportView, ReportOutcome, TradeView
from tests.chainkit import account, key, some
from tests.market_kit import MINERS, SCALE_MICRO, KitChain, Shop, bidding, make_goods, on_chain, seed_of, terms_for, write_npz

ROWS = 900


async def sale() -> tuple[Shop, Digest]:
    kit = KitChain()
    shop = Shop(kit, rows=ROWS)
    shop.goods = make_goods(ROWS, 125_000)
    shop.seller = shop.restarted()
    kit.take(kit.chain.tx("provider", RegisterProvider(shop.goods.data.root, ROWS, "127.0.0.1:9")))
    accepted = await shop.seller.accept(bidding(terms_for(await shop.offer())))
    kit.take(kit.chain.tx("pool0", on_chain(accepted.trade, key("provider"), accepted.signature)))
    return shop, accepted.trade_id


def held(shop: Shop, trade: TradeView, miner: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    data = shop.goods.data
    share = delivery.Share.of(data.root, ROWS, data.features, data.classes, 3, miner)
    choices = marks.choices_of(seed_of(MINERS[miner]), share.marks)
    which = choices[np.arange(share.count) % share.marks] ^ data.trace(trade.trade_id, MINERS[miner], share.count)
    stop = share.first + share.count
    return np.where(which[:, None] == 0, data.variant(0)[share.first : stop], data.variant(1)[share.first : stop])


async def test_trades_are_found_on_the_chain_and_the_copy_leads_to_its_miner(tmp_path: Path) -> None:
    shop, trade_id = await sale()
    assert await report_leak.find_trades(shop.kit, account("provider")) == [trade_id]
    assert await report_leak.find_trades(shop.kit, account("pool0")) == []
    trade = await shop.kit.trade(trade_id)
    found = delivery.to_floats(held(shop, trade, 2)[::-1], SCALE_MICRO)
    copy, digest = report_leak.read_copy(write_npz(tmp_path / "c.npz", found, np.zeros(300)), SCALE_MICRO)
    ranked = report_leak.suspects(shop.goods, [trade], copy)
    assert ranked[0].miner == MINERS[2]
    report = report_leak.make_report(ranked[0], digest)
    shop.kit.take(shop.kit.chain.tx("provider", report))
    assert (await shop.kit.trade(trade_id)).reports[0].outcome is ReportOutcome.OPEN
    _, _, proven = marks.agreement(
        int.from_bytes(report.found, "little"), int.from_bytes(report.seen, "little"),
        int.from_bytes(marks.bitmap(marks.choices_of(seed_of(MINERS[2]), 100)), "little"),
    )  # fmt: skip
    assert proven


async def test_no_bond_is_risked_on_a_stranger_a_scrap_or_a_second_report() -> None:
    shop, trade_id = await sale()
    trade = await shop.kit.trade(trade_id)
    rng = np.random.default_rng(4)
    with pytest.raises(MarketError, match="fits nobody"):
        report_leak.make_report(report_leak.suspects(shop.goods, [trade], rng.uniform(0, 127, (300, 8)))[0], some("copy"))
    whole = held(shop, trade, 0).astype(np.float64)
    best = report_leak.suspects(shop.goods, [trade], whole)[0]
    few = replace(best, sight=replace(best.sight, found=best.sight.found & (np.arange(100) < 30)))
    with pytest.raises(MarketError, match="too few to prove"):
        report_leak.make_report(few, some("copy"))
    told = LeakReportView(MINERS[0], ReportOutcome.CLEARED, 100, 50, some("copy"), trade.bid_height, Milliseconds(1))
    with pytest.raises(MarketError, match="reported already"):
        report_leak.make_report(replace(best, trade=replace(trade, reports=(told,))), some("copy"))
    assert report_leak.suspects(shop.goods, [replace(trade, data_root=some("other"))], whole) == []


@pytest.mark.parametrize("arrays", [{"y": np.zeros(3)}, {"x": np.zeros(3)}, {"x": np.array([["a"]])}])
def test_a_file_that_is_no_copy_is_named(arrays: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "copy.npz"
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match=r"copy\.npz"):
        report_leak.read_copy(path, SCALE_MICRO)
    with pytest.raises(ConfigError, match=r"none\.npz"):
        report_leak.read_copy(tmp_path / "none.npz", SCALE_MICRO)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_leak.main([str(tmp_path / "c.npz"), "--config", str(tmp_path / "none.toml")]) == 2
    assert "none.toml" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="64 hex digits"):
        report_leak._trade_id("beef")
