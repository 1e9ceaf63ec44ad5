"""A season as a whole: what a pool works on, and that it stops when there is nothing to win any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import UnavailableError
from core.ids import AccountId, Milliseconds
from core.params import ChainParams
from pool.manager.board import Board, TaskFeed
from pool.manager.config import TrainingConfig
from pool.manager.season import Season, Windows
from services.rpc.views import TaskPhase, TaskView
from tests.pool_kit import CHAIN, T0, VALIDATORS, entry, task

OWN = entry(1).pool


class Clock:
    def now_ms(self) -> Milliseconds:
        return Milliseconds(T0)


class Probe(Season):
    """A season whose inner work waits for ever, and says how it ended."""

    def __init__(self, folder: Path, feed: TaskFeed, failure: Exception | None = None) -> None:
        cfg = SimpleNamespace(data_dir=folder, min_miners=1, bond=0, training=TrainingConfig())
        self.board = Board()
        self.sent: list[object] = []
        pool: Any = SimpleNamespace(
            cfg=cfg, account=OWN, chain_id=CHAIN, board=self.board, clock=Clock(), validators=VALIDATORS,
            blobs=SimpleNamespace(delete=lambda _: None), role=SimpleNamespace(genesis=SimpleNamespace(params=ChainParams())),
            members=SimpleNamespace(online=(), missing=lambda features, count: f"{count} of {features} features are missing"),
            seconds_until=lambda _: 0.05, endpoint="pool:1",
        )  # fmt: skip
        super().__init__(pool, feed)
        self.working = asyncio.Event()
        self.ended = ""
        self.failure = failure

    async def _play(self, windows: Windows) -> None:
        self.working.set()
        try:
            if self.failure is not None:
                raise self.failure
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise

    async def _send(self, payload: Any, close_ms: Milliseconds) -> None:
        self.sent.append(payload)


def ended(view: TaskView, phase: TaskPhase, winner: AccountId | None = None) -> TaskView:
    return replace(view, phase=phase, winner=winner)


def rivals(view: TaskView) -> TaskView:
    """Entries have closed, and eight others have higher bonds."""
    others = [entry(n, bond=90_000) for n in range(2, 10)]
    return replace(view, phase=TaskPhase.TRAINING, entries=(*view.entries, *others))


@pytest.mark.parametrize(
    ("end", "word", "detail"),
    [
        (lambda v: ended(v, TaskPhase.WON, entry(2).pool), "lost", "won"),
        (lambda v: ended(v, TaskPhase.WON, OWN), "won", "height"),
        (lambda v: ended(v, TaskPhase.VOID), "lost", "void"),
        (rivals, "lost", "higher bonds"),
    ],
)
async def test_work_stops_when_the_task_is_over_for_this_pool(
    tmp_path: Path, end: Callable[[TaskView], TaskView], word: str, detail: str
) -> None:
    view = task(TaskPhase.TRAINING, [entry(1)])
    feed = TaskFeed(view)
    season = Probe(tmp_path, feed)
    running = asyncio.create_task(season.run())
    await season.working.wait()
    feed.update(end(view))
    async with asyncio.timeout(60):
        await running
    assert season.ended == "cancelled"
    assert season.board.present.phase == word
    assert detail in season.board.present.detail


async def test_a_closed_task_is_not_worked_on(tmp_path: Path) -> None:
    season = Probe(tmp_path, TaskFeed(task(TaskPhase.VOID)))
    await season.run()
    late = Probe(tmp_path, TaskFeed(task(TaskPhase.TRAINING)))
    await late.run()
    assert not season.working.is_set()
    assert not late.working.is_set()
    assert late.sent == [], "entries have closed: no bond is locked"


async def test_without_members_for_the_task_no_bond_is_locked(tmp_path: Path) -> None:
    """Members of another task's width are no members for this one."""
    feed = TaskFeed(task(TaskPhase.ENTRY))
    season, waits = Probe(tmp_path, feed), asyncio.Event()

    async def wait_ready(features: int, count: int) -> None:
        assert (features, count) == (64, 1)
        waits.set()
        await asyncio.Event().wait()

    season._pool.members.wait_ready = wait_ready  # type: ignore[method-assign]
    running = asyncio.create_task(season.run())
    await asyncio.wait_for(waits.wait(), 60)
    feed.update(task(TaskPhase.TRAINING))
    async with asyncio.timeout(60):
        await running
    assert season.sent == []
    assert not season.working.is_set()


@pytest.mark.parametrize("is_ready", [False, True])
async def test_why_a_pool_did_not_enter_is_what_it_waited_for(
    tmp_path: Path, is_ready: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Members that are all ready are no reason: then it was the transaction that came into no block."""
    feed = TaskFeed(task(TaskPhase.ENTRY))
    season = Probe(tmp_path, feed)
    sending, waits = asyncio.Event(), asyncio.Event()

    async def wait_ready(features: int, count: int) -> None:
        if not is_ready:
            waits.set()
            await asyncio.Event().wait()

    async def never(payload: Any, close_ms: Milliseconds) -> None:
        sending.set()
        await asyncio.Event().wait()

    season._pool.members.wait_ready = wait_ready  # type: ignore[method-assign]
    season._send = never  # type: ignore[method-assign]
    running = asyncio.create_task(season.run())
    await asyncio.wait_for((sending if is_ready else waits).wait(), 60)
    feed.update(task(TaskPhase.TRAINING))
    async with asyncio.timeout(60):
        await running
    assert sending.is_set() is is_ready
    reason = "the entry is in no block yet" if is_ready else "1 of 64 features are missing"
    told = [str(vars(record)) for record in caplog.records if "did not enter" in record.getMessage()]
    assert [reason in each for each in told] == [True]


async def test_a_pool_that_fails_says_why_and_waits_for_the_next_task(tmp_path: Path) -> None:
    feed = TaskFeed(task(TaskPhase.TRAINING, [entry(1)]))
    season = Probe(tmp_path, feed, UnavailableError("no round was accepted"))
    async with asyncio.timeout(60):
        await season.run()
    assert (season.board.present.phase, season.board.present.detail) == ("lost", "no round was accepted")
