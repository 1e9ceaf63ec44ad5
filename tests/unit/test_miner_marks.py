"""A miner fetches bought rows by the choices that its pool gave it, and never asks twice after a row that did not open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from core.errors import CheatingError, DeadlineError
from core.ids import Digest, Milliseconds
from core.market import marks
from pool.miner import member
from pool.miner.member import REFUSED, Membership
from services.rpc.convert_market import DataSetView
from services.rpc.convert_mining import FetchRows
from tests.chainkit import account, key, some
from tests.market_kit import SCALE_MICRO

FETCH = FetchRows(some("trade"), some("rows"), "127.0.0.1:9", account("provider"), 10, 0, 30, Milliseconds(10_000), b"s" * 32)


class Rows:
    features, bought, own = 4, 0, 5
    pool = account("pool0")

    def add(self, trade_id: Digest, data_root: Digest, first: int, x: Any, y: Any, scale: int, is_whole: bool) -> None:
        self.bought += len(y)
        assert is_whole == (len(y) == FETCH.rows)


class Seller:
    def __init__(self, *_: object) -> None:
        pass

    async def data_set(self, root: Digest) -> DataSetView:
        return DataSetView(root, "rows", 90, 4, 10, SCALE_MICRO)


def miner(folder: Path, rows: Rows) -> Membership:
    role = SimpleNamespace(
        cfg=SimpleNamespace(data_dir=folder, bought_mib=64), tls=None, identity=SimpleNamespace(caller=None), key=key("miner0"),
        account=account("miner0"), genesis=SimpleNamespace(chain_id=some("chain")),
    )  # fmt: skip
    made = Membership(cast(Any, role), cast(Any, rows), cast(Any, SimpleNamespace(now_ms=lambda: 0)))
    made._pool = account("pool0")
    return made


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the next deliveries come to: an error, or None for rows. Filled by a test; what was asked for is put there."""
    plan: list[Any] = []

    async def receive(seller: Any, chain: Any, trade: Any, keys: Any, share: Any, marking: Any, session: Any, *_: Any,
                      timeout: float, parts: Any, keep: Any) -> None:  # fmt: skip
        outcome = plan.pop(0)
        plan.append((marking, session))
        while len(parts) < 10:
            if outcome is not None and len(parts) == 4:
                raise outcome
            came = np.zeros((3, 4), np.int8), np.zeros(3, np.uint8)
            keep(*came)
            parts.append(came)

    async def close(_: object) -> None:
        return None

    monkeypatch.setattr(member, "connect", lambda *_, **__: SimpleNamespace(close=close))
    monkeypatch.setattr(member, "MarketClient", Seller)
    monkeypatch.setattr(member, "receive_rows", receive)
    return plan


async def test_the_choices_are_those_of_the_pools_seed(tmp_path: Path, tries: list[Any]) -> None:
    tries.append(None)
    rows = Rows()
    await miner(tmp_path, rows)._fetch(account("pool0"), FETCH)
    session = marks.session_id(some("chain"), account("provider"), account("pool0"), some("rows"), account("miner0"))
    assert tries == [(marks.commit(b"s" * 32, session, marks.mark_count(30)), session)]
    assert rows.bought == 30


async def test_after_a_row_that_does_not_open_the_trade_is_given_up_for_good(tmp_path: Path, tries: list[Any]) -> None:
    """Whether a spoiled row opens depends on the choice: each further try would tell the provider one more."""
    rows = Rows()
    tries.append(CheatingError("row 3 is none of its two variants"))
    await miner(tmp_path, rows)._fetch(account("pool0"), FETCH)
    assert rows.bought == 12, "what opened and is paid for is of use"
    rows.bought = 0
    assert (tmp_path / REFUSED / FETCH.trade_id.hex()).read_text().startswith("row 3")
    tries.clear()
    await miner(tmp_path, rows)._fetch(account("pool0"), FETCH)  # another process, after a restart
    assert (tries, rows.bought) == ([], 0)


async def test_a_broken_connection_is_no_reason_to_give_up(tmp_path: Path, tries: list[Any]) -> None:
    rows = Rows()
    tries.append(DeadlineError("not in time"))
    await miner(tmp_path, rows)._fetch(account("pool0"), FETCH)
    assert rows.bought == 12
    tries[:], rows.bought = [None], 0
    await miner(tmp_path, rows)._fetch(account("pool0"), FETCH)  # another process: four chunks are on the disk
    assert rows.bought == 30


async def test_a_refusal_that_cannot_be_written_down_holds_while_the_process_runs(tmp_path: Path, tries: list[Any]) -> None:
    """A full disk is no reason to tell the provider more."""
    (tmp_path / REFUSED).write_text("no folder can be made here")
    rows = Rows()
    asked = miner(tmp_path, rows)
    tries.append(CheatingError("row 3 is none of its two variants"))
    await asked._fetch(account("pool0"), FETCH)
    tries.clear()
    rows.bought = 0
    await asked._fetch(account("pool0"), FETCH)
    assert (tries, rows.bought) == ([], 0)


async def test_refusals_are_bounded(tmp_path: Path, tries: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "MOST_REFUSED", 2)
    asked = miner(tmp_path, Rows())
    for number in range(4):
        tries[:] = [CheatingError("row 3 is none of its two variants")]
        await asked._fetch(account("pool0"), replace(FETCH, trade_id=some(f"trade {number}")))
    kept = {path.name for path in (tmp_path / REFUSED).iterdir()}
    assert len(kept) == len(asked._refused) == 2
    assert some("trade 3").hex() in kept
