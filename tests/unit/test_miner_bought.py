"""Rows that were bought are on the disk before they are acknowledged, and are found again whatever happened to the miner."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from core.errors import LimitError, MarketError, StorageError, UnavailableError
from core.ids import MILLION, Milliseconds
from pool.learning.targets import TargetRows
from pool.miner import member
from pool.miner.bought import LEAST_FILE, BoughtRows, Delivery, Heading
from pool.miner.member import Membership
from pool.miner.rows import TrainingRows
from services.rpc.convert_mining import FetchRows
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
    with pytest.raises(MarketError, match="now pool or provider name others"):
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


def test_more_than_fits_is_left_on_the_disk(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        deliver(tmp_path, range(2), trade=some(name))
        os.utime(tmp_path / POOL.hex() / f"{some(name).hex()}.rows", (1000 - age, 1000 - age))
    assert [each.trade_id for each in BoughtRows(tmp_path, 2 * LEAST_FILE).read(POOL)] == [some("new"), some("middle")]
    assert len(list((tmp_path / POOL.hex()).iterdir())) == 3


def test_a_delivery_without_a_chunk_leaves_no_file(tmp_path: Path) -> None:
    """Or whoever names trades could fill the disk with them."""
    deliver(tmp_path, range(0))
    assert not list(tmp_path.iterdir())


def test_the_rows_of_a_pool_are_bounded_and_so_are_those_on_their_way(tmp_path: Path) -> None:
    store = BoughtRows(tmp_path, 3 * LEAST_FILE)
    with pytest.raises(LimitError, match="bought_mib"):
        store.open(POOL, TRADE, replace(HEADING, rows=3 * LEAST_FILE))
    deliver(tmp_path, range(10), end=True)
    first, second = (store.open(POOL, some(name), HEADING) for name in ("first", "second"))
    with pytest.raises(LimitError, match="bought_mib"):
        store.open(POOL, some("third"), HEADING)
    first.close()
    third = store.open(POOL, some("third"), HEADING)
    for each in (second, third):
        for number in range(10):
            each.keep(*chunk(number))
        each.close()
    with pytest.raises(LimitError, match="bought_mib"):
        store.open(POOL, some("fourth"), HEADING)
    again = store.open(POOL, TRADE, HEADING)  # is counted once
    assert again.is_whole
    again.close()
    assert len(list(store.read(POOL))) == 3


def test_rows_of_other_pools_make_room_oldest_first(tmp_path: Path) -> None:
    """A pool that changes its account, or many of them, take no more together; a promise of rows alone removes none."""
    deliver(tmp_path, range(10), end=True)
    deliver(tmp_path, range(10), trade=some("newer"), end=True)
    os.utime(tmp_path / POOL.hex() / f"{TRADE.hex()}.rows", (1000, 1000))
    (tmp_path / account("pool2").hex() / "somebody's").mkdir(parents=True)
    store = BoughtRows(tmp_path, 2 * LEAST_FILE)
    other = store.open(account("pool1"), some("its"), HEADING)
    assert len(list(store.read(POOL))) == 2
    other.keep(*chunk(0))
    assert [each.trade_id for each in store.read(POOL)] == [some("newer")]
    other.keep(*chunk(1))
    other.close()
    assert [numbers(each) for each in store.read(account("pool1"))] == [[0, 1]]
    second = store.open(account("pool1"), some("second"), HEADING)
    second.keep(*chunk(0))
    second.close()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted(account(name).hex() for name in ("pool1", "pool2"))


def test_a_delivery_that_ended_writes_nothing_any_more(tmp_path: Path) -> None:
    """A write that waits for its thread while the delivery's time ends would come between those of the next try."""
    came = BoughtRows(tmp_path).open(POOL, TRADE, HEADING)
    came.close()
    with pytest.raises(StorageError):
        came.keep(*chunk(0))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_keeps_no_other_rows_away(tmp_path: Path) -> None:
    deliver(tmp_path, range(10), end=True)
    (tmp_path / POOL.hex() / f"{some('folder').hex()}.rows").mkdir()
    (tmp_path / POOL.hex() / f"{some('gone').hex()}.rows").symlink_to(tmp_path / "nowhere")
    assert [each.trade_id for each in BoughtRows(tmp_path).read(POOL)] == [TRADE]
    deliver(tmp_path, range(1), trade=some("scale"), heading=replace(HEADING, feature_scale_micro=0))
    assert [each.trade_id for each in BoughtRows(tmp_path).read(POOL)] == [TRADE]


def miner(folder: Path, features: int = 2) -> Membership:
    role = SimpleNamespace(
        cfg=SimpleNamespace(data_dir=folder, bought_mib=64), tls=None, identity=SimpleNamespace(caller=None), key=key("miner0"),
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


async def test_receipts_are_handed_in_over_the_connection_that_there_is(tmp_path: Path) -> None:
    """A delivery outlives the connection to the pool on which it was begun, and is not another pool's."""
    got: list[object] = []

    class Client:
        async def hand_in(self, receipt: object) -> None:
            got.append(receipt)

    mine, receipt = miner(tmp_path), cast(Any, "receipt")
    mine._pool = POOL
    with pytest.raises(UnavailableError):
        await mine._hand_in(POOL, receipt)
    mine._client = cast(Any, Client())
    await mine._hand_in(POOL, receipt)
    assert got == ["receipt"]
    mine._pool = account("pool1")
    with pytest.raises(MarketError, match="not its member"):
        await mine._hand_in(POOL, receipt)


async def test_what_one_pool_bought_is_not_trained_on_for_the_next(tmp_path: Path) -> None:
    """Though its delivery ends only when the miner is that one's member."""
    mine = miner(tmp_path)
    await mine._read_bought(POOL)
    came = BoughtRows(tmp_path / "bought").open(POOL, TRADE, HEADING)
    came.keep(*chunk(0))
    came.parts.append(chunk(0))
    came.close()
    await mine._read_bought(account("pool1"))
    mine._take(POOL, came)
    assert mine._rows.bought == 0
    await mine._read_bought(POOL)
    assert mine._rows.bought == 2


async def test_a_pool_cannot_make_a_miner_fetch_any_number_of_trades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = miner(tmp_path)
    done, asked = asyncio.Event(), []

    async def fetch(_: object, pool: object, one: FetchRows) -> None:
        asked.append(one.trade_id)
        await done.wait()

    monkeypatch.setattr(member.Membership, "_fetch", fetch)
    trades = [some(f"trade {number}") for number in range(2 * member.MOST_FETCHING)]
    for trade in [*trades, *trades[:3]]:
        mine._begin_fetch(
            POOL, FetchRows(trade, some("rows"), "127.0.0.1:9", account("provider"), 10, 0, 30, Milliseconds(1), bytes(32))
        )
    await asyncio.sleep(0)
    assert asked == trades[: member.MOST_FETCHING]
    done.set()
    await asyncio.gather(*mine._fetching.values())
    mine._begin_fetch(
        POOL, FetchRows(trades[-1], some("rows"), "127.0.0.1:9", account("provider"), 10, 0, 30, Milliseconds(1), bytes(32))
    )
    await asyncio.sleep(0)
    assert asked[-1] == trades[-1]
    assert len(mine._fetching) == 1, "what ended is forgotten"
