"""The pool's desk of marks: seeds outlive the process, reports are answered without anybody, and nothing else is."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from core.chain.state import ReportOutcome
from core.chain.transaction import OpenMarks, Refusal
from core.errors import NotFoundError, StorageError, TransactionError, UnavailableError
from core.ids import Digest, Height
from pool.manager import marks as module
from pool.manager.marks import MarksDesk
from services.rpc.views import BlockView
from tests.chainkit import some
from tests.market_kit import MINERS, KitChain, seed_of
from tests.unit.test_chain_leaks import Sold, make_sold

SEEDS = tuple(seed_of(miner) for miner in MINERS)


@dataclass
class Watched:
    """A KitChain whose blocks can be watched as a node's are."""

    kit: KitChain
    lookups: list[Digest] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kit, name)

    async def trade(self, trade_id: Digest) -> Any:
        self.lookups.append(trade_id)
        return await self.kit.trade(trade_id)

    async def watch_blocks(self, following: Height) -> AsyncIterator[BlockView]:
        while True:
            while following <= self.kit.chain.state.height:
                yield await self.kit.block(following)
                following = Height(following + 1)
            await asyncio.sleep(0.01)


def desk(sold: Sold, folder: Path, wallet: Any = None) -> tuple[MarksDesk, Watched]:
    chain = Watched(sold.kit)
    window = sold.state.params.report_window_ms
    sender = wallet or sold.kit.wallet("pool0")
    return MarksDesk(folder, cast(Any, chain), sender, sold.kit.chain_id, sold.kit, window), chain


@contextlib.asynccontextmanager
async def running(made: MarksDesk) -> AsyncIterator[None]:
    task = asyncio.create_task(made.run())
    try:
        await asyncio.sleep(0.02)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ends(sold: Sold, miner: int = 0) -> ReportOutcome:
    async with asyncio.timeout(60):
        while (outcome := sold.outcome(miner).outcome) is ReportOutcome.OPEN:  # noqa: ASYNC110 - the chain's state has no event
            await asyncio.sleep(0.01)
    return outcome


@pytest.fixture
async def sold() -> Sold:
    return await make_sold()


async def test_a_report_is_answered_when_its_block_comes(sold: Sold, tmp_path: Path) -> None:
    made, _ = desk(sold, tmp_path)
    made.keep(sold.trade_id, MINERS, SEEDS)
    async with running(made):
        sold.send("provider", sold.report(1, agreeing=50))
        assert await ends(sold, 1) is ReportOutcome.CLEARED


async def test_a_report_from_before_a_restart_is_answered_from_the_disk(sold: Sold, tmp_path: Path) -> None:
    desk(sold, tmp_path)[0].keep(sold.trade_id, MINERS, SEEDS)
    sold.send("provider", sold.report(0))
    again, _ = desk(sold, tmp_path)
    assert again.seeds(sold.trade_id) == dict(zip(MINERS, SEEDS, strict=True))
    async with running(again):
        assert await ends(sold) is ReportOutcome.LEAKED, "what is due is shown, even where it convicts"
    assert (tmp_path / f"{sold.trade_id.hex()}.bin").stat().st_mode & 0o077 == 0


async def test_others_trades_are_not_ours_to_answer(sold: Sold, tmp_path: Path) -> None:
    made, chain = desk(sold, tmp_path)
    with pytest.raises(NotFoundError, match="no marks are kept"):
        made.seeds(sold.trade_id)
    async with running(made):
        sold.send("provider", sold.report(0))
        await asyncio.sleep(0.1)
        assert chain.lookups == []
    assert sold.outcome().outcome is ReportOutcome.OPEN


async def test_an_answer_is_sent_again_until_it_is_there(sold: Sold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    failures: list[Exception] = [UnavailableError("no node answers"), TransactionError("busy", Refusal.BAD_NONCE)]
    right = sold.kit.wallet("pool0")

    class Flaky:
        async def send_and_wait(self, payload: Any, timeout: float) -> Any:
            assert isinstance(payload, OpenMarks)
            if failures:
                raise failures.pop()
            return await right.send_and_wait(payload, timeout)

    made, _ = desk(sold, tmp_path, Flaky())
    made.keep(sold.trade_id, MINERS, SEEDS)
    sold.send("provider", sold.report(0, agreeing=50))
    async with running(made):
        assert await ends(sold) is ReportOutcome.CLEARED
    assert not failures


async def test_seeds_are_kept_as_long_as_reports_are_taken(sold: Sold, tmp_path: Path) -> None:
    made, _ = desk(sold, tmp_path)
    made.keep(sold.trade_id, MINERS, SEEDS)
    unknown = some("trade that reached no chain")
    made.keep(unknown, MINERS, SEEDS)
    async with running(made):
        assert made.seeds(sold.trade_id)
    sold.kit.chain.clock += sold.state.params.delivery_ms + sold.state.params.report_window_ms + 1000
    sold.send("pool0")
    async with running(made), asyncio.timeout(60):
        while os.listdir(tmp_path):  # noqa: ASYNC110 - a folder has no event
            await asyncio.sleep(0.01)
    for gone in (sold.trade_id, unknown):
        with pytest.raises(NotFoundError):
            made.seeds(gone)
    assert os.listdir(tmp_path) == []


async def test_a_damaged_file_is_said_at_the_start(sold: Sold, tmp_path: Path) -> None:
    made, _ = desk(sold, tmp_path)
    made.keep(sold.trade_id, MINERS, SEEDS)
    path = tmp_path / f"{sold.trade_id.hex()}.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="restore the file"):
        desk(sold, tmp_path)
