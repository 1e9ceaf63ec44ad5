"""The engine without its processes: what is left of a task when they do not come up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Callable, Collection, ValuesView
from pathlib import Path

import numpy as np
import pytest

from core.errors import DeadlineError, UnavailableError
from core.ids import AccountId
from pool.flower import health
from pool.flower.children import Child
from pool.flower.engine import MAX_STARTS, MiningEngine, MiningJob, RoundReport, _registered, _run_folder
from pool.flower.jobs import save_weights
from pool.learning.model_spec import initial_weights
from pool.manager.members import Roster, _Member


class Down(MiningEngine):
    """Its guard takes longer than a request may."""

    starts = 0

    async def _manage(
        self,
        job: MiningJob,
        miners: Collection[bytes],
        folder: Path,
        reports: list[RoundReport],
        on_round: Callable[[RoundReport], None],
    ) -> str:
        self.starts += 1
        raise UnavailableError("the guard did not answer 'start_run' in 15 s")


def engine_and_job(folder: Path) -> tuple[Down, MiningJob]:
    practice = folder / "practice.npz"
    practice.write_bytes(b"")
    job = MiningJob(bytes(32), 2, 2, practice, deadline_ms=round(1000 * time.time()) + 60_000)
    none = folder / "none.pem"
    return Down(folder, "127.0.0.1:0", "127.0.0.1:0", (none, none, none)), job


async def test_the_best_model_on_the_disk_outlives_a_guard_that_does_not_come_back(tmp_path: Path) -> None:
    engine, job = engine_and_job(tmp_path)
    best = initial_weights(job.spec, 3)
    meta = {"round": 7, "accepted_rounds": 6, "best_score": [8, 10, 0.5], "report": None}
    save_weights(_run_folder(tmp_path / "runs", job) / "state.npz", {"weights": best, "best": best}, meta)
    result = await engine.mine(job, [], lambda _: None)
    assert (result.rounds, result.best_practice_correct, engine.starts) == (6, 8, MAX_STARTS)
    np.testing.assert_array_equal(result.weights[0][0], best[0][0])


async def test_without_a_round_the_reason_is_said(tmp_path: Path) -> None:
    engine, job = engine_and_job(tmp_path)
    with pytest.raises(DeadlineError, match="did not answer 'start_run'"):
        await engine.mine(job, [], lambda _: None)
    assert engine.starts == MAX_STARTS


class Silent:
    """A child that is alive."""

    name = "guard"
    kills = 0

    def kill(self) -> None:
        self.kills += 1


async def test_a_child_that_lives_and_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "SLICE_S", 0.01)
    child, asked, ended = Silent(), 0, 0

    async def ping() -> None:
        nonlocal asked, ended
        asked += 1
        try:
            if asked == 3:
                await asyncio.Event().wait()
        finally:
            ended += 1

    await asyncio.wait_for(health.end_if_silent(child, ping), 60)
    await asyncio.sleep(0)
    assert (asked, child.kills) == (3, 1), "the first two answers were enough"
    assert ended == 3, "nobody waits for the third any more"


async def test_a_wait_that_is_over_because_this_process_was_held_up_kills_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its timer is over the moment it goes on, and the child had no time to answer."""
    monkeypatch.setattr(health, "SLICE_S", 60.0)
    child, waits, all_over = Silent(), 0, asyncio.Event()
    wait = asyncio.wait

    async def held_up(them: set[asyncio.Future[object]], *, timeout: float) -> object:
        nonlocal waits
        waits += 1
        if waits < health.SILENT_SLICES:
            return set(), them
        found = await wait(them, timeout=timeout)
        all_over.set()
        return found

    monkeypatch.setattr(asyncio, "wait", held_up)
    watching = asyncio.create_task(health.end_if_silent(child, lambda: asyncio.sleep(0)))
    await asyncio.wait_for(all_over.wait(), 60)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert child.kills == 0


async def test_a_guard_that_cannot_be_started_for_want_of_files_or_memory_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = engine_and_job(tmp_path)
    (tmp_path / "guard").mkdir()
    tries, again = 0, asyncio.Event()

    async def spawn(*_: object, **__: object) -> object:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        again.set()
        return await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
    keeping = asyncio.create_task(engine._keep_guard())
    reached = asyncio.create_task(again.wait())
    await asyncio.wait({keeping, reached}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    assert (tries, keeping.done()) == (2, False)
    for task in (keeping, reached):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_child_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"a\.module could not be started: .*No such file"):
        await Child.start(str(tmp_path / "no-python"), "a.module", {}, tmp_path / "log")
    with pytest.raises(UnavailableError, match="could not be started"):
        await Child.start("python", "a.module", {}, tmp_path / "no-folder" / "log")


class Counting(dict[AccountId, _Member]):
    """A pool's members, and how often all of them were looked at."""

    passes = 0

    def values(self) -> ValuesView[_Member]:  # type: ignore[override]
        self.passes += 1
        return super().values()


def test_the_rows_of_all_members_are_taken_in_one_pass() -> None:
    """It is done twice a second: with a pass for each, a thousand members are a million looks."""
    them = Counting()
    for number in range(20):
        account = AccountId(bytes([number]) * 32)
        them[account] = _Member(account, bytes([number]) * 33, number, 64, 0, bought=5, is_online=number != 3)
    roster = Roster(them, 64, 100)
    assert _registered(roster) == {(bytes([n]) * 33).hex(): n + 105 for n in range(20) if n != 3}
    assert them.passes == 1
    assert dict(roster.items()) == {key: roster[key] for key in roster}
