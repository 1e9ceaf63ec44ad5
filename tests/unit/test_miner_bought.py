"""Rows that were bought are on the disk before they are acknowledged, and are found again whatever happened to the miner."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from core.errors import MarketError
from core.ids import MILLION
from pool.learning.targets import TargetRows
from pool.miner import bought
from pool.miner.bought import BoughtRows, Delivery, Heading
from pool.miner.member import Membership
from pool.miner.rows import TrainingRows
from tests.chainkit import account, key, some

POOL = account("pool0")
TRADE = some("trade")
HEADING = Heading(some("rows"), 30, 20, 2, MILLION)


def chunk(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of it."""
    return np.full((2, 2), number, np.int8), np.full(2, number % 10, np.uint8)


def deliver(folder: Path, chunks: range, trade: Any = TRADE, heading: Heading = HEADING, end: bool = False) -> None:
    """As a process does that is killed behind the last of them."""
    came = BoughtRows(folder).open(POOL, trade, heading)
    for number in chunks:
        came.keep(*chunk(number))
    if end:
        came.end()
    came.close()


def numbers(found: Delivery) -> list[int]:
    return [int(x[0, 0]) for x, _ in found.parts]


def test_a_delivery_goes_on_behind_the_last_chunk_that_was_kept(tmp_path: Path) -> None:
    deliver(tmp_path, range(4))
    again = BoughtRows(tmp_path).open(POOL, TRADE, HEADING)
    assert (numbers(again), again.is_whole) == ([0, 1, 2, 3], False)
    again.close()
    deliver(tmp_path, range(4, 10), end=True)
    (found,) = BoughtRows(tmp_path).read(POOL)
    assert (numbers(found), found.is_whole, found.heading) == ([*range(10)], True, HEADING)
    assert found.x.shape == (20, 2)
    assert found.x.dtype == np.int8
    assert found.y.tolist() == [n % 10 for n in range(10) for _ in range(2)]
    assert not list(BoughtRows(tmp_path).read(account("pool1"))), "another pool's members have no part in them"


def test_a_trade_is_of_the_same_rows_for_good(tmp_path: Path) -> None:
    deliver(tmp_path, range(1))
    with pytest.raises(MarketError, match="now the pool names others"):
        BoughtRows(tmp_path).open(POOL, TRADE, replace(HEADING, first=31))
    assert numbers(BoughtRows(tmp_path).open(POOL, TRADE, HEADING)) == [0]


def test_any_damaged_byte_loses_no_more_than_this_trade(tmp_path: Path) -> None:
    deliver(tmp_path, range(3))
    deliver(tmp_path, range(5, 6), trade=some("other"))
    path = tmp_path / POOL.hex() / f"{TRADE.hex()}.rows"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        found = {each.trade_id: numbers(each) for each in BoughtRows(tmp_path).read(POOL)}
        assert found.pop(some("other")) == [5]
        # Set aside, or without the last chunk: that looks like a kill in the middle of it. Never other rows.
        before = found.get(TRADE, [])
        aside = path.with_suffix(".damaged")
        assert before == ([] if aside.exists() else [0, 1]), place
        again = BoughtRows(tmp_path).open(POOL, TRADE, HEADING)
        assert numbers(again) == before
        again.close()
        aside.unlink(missing_ok=True)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        again = BoughtRows(tmp_path).open(POOL, TRADE, HEADING)
        assert numbers(again) in ([], [0], [0, 1])
        again.keep(*chunk(7))
        again.close()
        assert numbers(BoughtRows(tmp_path).open(POOL, TRADE, HEADING))[-1] == 7


def test_more_than_fits_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        deliver(tmp_path, range(2), trade=some(name))
        os.utime(tmp_path / POOL.hex() / f"{some(name).hex()}.rows", (1000 - age, 1000 - age))
    size = (tmp_path / POOL.hex() / f"{some('new').hex()}.rows").stat().st_size
    monkeypatch.setattr(bought, "MOST_BYTES", 2 * size)
    assert [each.trade_id for each in BoughtRows(tmp_path).read(POOL)] == [some("new"), some("middle")]
    assert len(list((tmp_path / POOL.hex()).iterdir())) == 3


def miner(folder: Path, features: int = 2) -> Membership:
    role = SimpleNamespace(
        cfg=SimpleNamespace(data_dir=folder), tls=None, identity=SimpleNamespace(caller=None), key=key("miner0"),
        account=account("miner0"), genesis=SimpleNamespace(chain_id=some("chain")),
    )  # fmt: skip
    own = TargetRows(np.zeros((5, features), np.float32), np.zeros(5))
    return Membership(cast(Any, role), TrainingRows(own), cast(Any, None))


async def test_a_miner_started_again_has_what_its_pool_bought(tmp_path: Path) -> None:
    deliver(tmp_path / "bought", range(10), end=True)
    # The same data set in other shares: no row counts twice. And one that was cut off.
    deliver(tmp_path / "bought", range(10), trade=some("twice"), heading=replace(HEADING, first=40), end=True)
    deliver(tmp_path / "bought", range(2), trade=some("part"), heading=replace(HEADING, data_root=some("second"), first=0))
    again = miner(tmp_path)
    await again._read_bought(POOL)
    assert again._rows.bought == 20 + 10 + 4
    assert again._rows.holds == tuple(sorted((some("rows"), some("second"))))
    assert [again._rows.has(some(name)) for name in ("trade", "twice", "part")] == [True, True, False]
    await again._read_bought(POOL)
    assert again._rows.bought == 34
    # They were bought for that pool.
    await again._read_bought(account("pool1"))
    assert (again._rows.bought, again._rows.holds) == (0, ())


async def test_bought_rows_of_another_width_are_left_out(tmp_path: Path) -> None:
    deliver(tmp_path / "bought", range(10), end=True)
    again = miner(tmp_path, features=3)
    await again._read_bought(POOL)
    assert (again._rows.bought, again._rows.holds) == (0, ())
