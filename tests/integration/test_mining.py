"""A guard, managers and three miners as real processes, on scikit-learn's digits; some of them are killed or lie."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from core.errors import ConfigError, DeadlineError, MalformedError, UnavailableError
from pool.flower.engine import MiningEngine, MiningJob, RoundReport
from pool.flower.fleet import FleetMiner
from pool.flower.keys import new_node_key
from pool.learning.datasets import Dataset, save_npz
from pool.learning.model_spec import score
from services.data.partition import even
from tests import mining_attacks
from tests.mining_support import CLASSES, FEATURES, LOADED_S, MinerProcess, digits, patient, start_miner, write_certificate

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow, pytest.mark.timeout(600)]

LATE_S = 30.0
"""Seconds that a busy machine may take to see a deadline that has come."""


@dataclass
class Rounds:
    """Reports of a job that goes on."""

    reports: list[RoundReport] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, report: RoundReport) -> None:
        self.reports.append(report)
        self.changed.set()

    async def until(self, true: Callable[[RoundReport], bool]) -> RoundReport:
        """The next report of which this is true."""
        seen = len(self.reports)
        async with asyncio.timeout(200):
            while not any(true(report) for report in self.reports[seen:]):
                self.changed.clear()
                await self.changed.wait()
        return next(report for report in self.reports[seen:] if true(report))


@dataclass
class World:
    engine: MiningEngine
    miners: list[MinerProcess]
    practice: Dataset
    folder: Path
    jobs: int = 0

    def job(self, seconds: float, **values: object) -> MiningJob:
        self.jobs += 1
        job = MiningJob(
            bytes([self.jobs]) * 32, FEATURES, CLASSES, self.folder / "practice.npz",
            int(1000 * (time.time() + seconds)), hidden=(32,), learning_rate=0.3, quorum=2, round_timeout_s=60.0,
        )  # fmt: skip
        return replace(job, **values)  # type: ignore[arg-type]

    @property
    def keys(self) -> list[bytes]:
        return [miner.key for miner in self.miners]

    @contextlib.asynccontextmanager
    async def mining(self, members: Collection[bytes], **values: object) -> AsyncIterator[Rounds]:
        """A job of as many rounds as the test looks at: how many go by before it does something is the machine's affair."""
        found = Rounds()
        running = asyncio.create_task(self.engine.mine(self.job(400, **values), members, found.note))
        try:
            yield found
            assert not running.done(), running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("mining")
    train, practice = digits()
    save_npz(folder / "practice.npz", practice)
    before = set(psutil.Process().children(recursive=True))
    engine = MiningEngine(folder / "engine", "127.0.0.1:0", "127.0.0.1:0", write_certificate(folder / "tls"))
    miners: list[MinerProcess] = []
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(patient())
        await engine.start()
        for index, rows in enumerate(even(train.y, 3, 1)):
            miners.append(await start_miner(engine, folder / f"miner{index}", train.take(rows)))
        await asyncio.gather(*(miner.online() for miner in miners))
        yield World(engine, miners, practice, folder)
    finally:
        await asyncio.gather(*(miner.stop() for miner in miners), engine.stop())
        stack.close()
    assert set(psutil.Process().children(recursive=True)) <= before, "a process was left behind"


async def test_three_miners_learn_digits_before_the_deadline(world: World) -> None:
    assert await world.engine.connected() == set(world.keys)
    # A quorum of all: no round goes on without one that is late.
    job = world.job(200, target_correct=int(0.93 * len(world.practice)), quorum=3)
    reports: list[RoundReport] = []
    result = await world.engine.mine(job, world.keys, reports.append)
    assert time.time() < job.deadline_ms / 1000
    assert result.best_practice_correct > 0.9 * result.best_practice_total == 0.9 * len(world.practice)
    again = score(job.spec, result.weights, world.practice.x, world.practice.y)
    assert again.correct == result.best_practice_correct
    assert result.reports == tuple(reports)
    assert [r.number for r in reports] == list(range(1, len(reports) + 1))
    assert result.contributions == {key.hex(): 400 * result.rounds for key in world.keys}
    sealed = job.spec.parameters * 4
    assert all(3 * sealed < r.bytes_up < 3 * sealed + 3 * 500 for r in reports)
    # One process a task, yet miners stay: the same miners serve the next run.
    second = await world.engine.mine(world.job(200, max_rounds=2, algorithm="fedsgd"), world.keys, lambda _: None)
    assert second.rounds == 2


async def test_liars_are_refused_and_the_round_goes_on(world: World) -> None:
    liars: dict[str, FleetMiner] = {}
    keys = {miner.key: 400 for miner in world.miners}
    names = {}
    try:
        for name in ("not_a_number", "exaggerating", "another_pools_key"):
            private, public = new_node_key()
            ticket = await world.engine.register(public)
            miner = FleetMiner(ticket, private, lambda _: None, world.folder / name)
            miner._app = getattr(mining_attacks, name)(ticket, miner._key)
            miner.start()
            liars[name], keys[public], names[public.hex()] = miner, 400, name
        await asyncio.gather(*(asyncio.to_thread(miner.wait_online, LOADED_S) for miner in liars.values()))
        reports: list[RoundReport] = []
        await world.engine.mine(world.job(200, max_rounds=2, quorum=3), keys, reports.append)
        reasons = {names[key]: reason for key, reason in reports[-1].refused.items() if key in names}
        assert "not finite" in reasons["not_a_number"]
        assert "1000000000 examples, registered 400" in reasons["exaggerating"]
        assert "does not open" in reasons["another_pools_key"]
        assert set(reports[-1].accepted) == {key.hex() for key in world.keys}
    finally:
        await asyncio.gather(*(asyncio.to_thread(miner.stop) for miner in liars.values()))
        for key in names:
            await world.engine.unregister(bytes.fromhex(key))


async def test_a_member_joins_during_a_task(world: World) -> None:
    members = {miner.key: 400 for miner in world.miners[:2]}
    late = world.miners[2].key
    first = world.miners[0].key
    async with world.mining(members, quorum=1) as rounds:
        report = await rounds.until(lambda report: report.number >= 2)
        assert late.hex() not in report.accepted.keys() | report.refused.keys()
        members[late] = 399
        # Its own count bounds what it may claim.
        bound = "400 examples, registered 399"
        report = await rounds.until(lambda report: bound in report.refused.get(late.hex(), ""))
        assert first.hex() in report.accepted
        del members[first]
        report = await rounds.until(lambda report: first.hex() not in report.accepted.keys() | report.refused.keys())
        assert world.miners[1].key.hex() in report.accepted


async def test_a_deregistered_key_is_told_to_join_again(world: World) -> None:
    private, public = new_node_key()
    ticket = await world.engine.register(public)
    assert (await world.engine.register(public)) == ticket
    await world.engine.unregister(public)
    miner = FleetMiner(ticket, private, lambda _: None, world.folder / "late")
    miner.start()
    with pytest.raises(Exception, match="join again"):
        await asyncio.to_thread(miner.wait_online, LOADED_S)
    with pytest.raises(UnavailableError, match="fresh"):
        await world.engine.register(public)


async def test_without_an_accepted_round_the_deadline_is_an_error(world: World) -> None:
    job = world.job(4, quorum=50)
    with pytest.raises(DeadlineError, match="no round was accepted"):
        await world.engine.mine(job, world.keys, lambda _: None)
    assert time.time() <= job.deadline_ms / 1000 + LATE_S
    with pytest.raises(DeadlineError):
        await world.engine.mine(world.job(-1), world.keys, lambda _: None)
    with pytest.raises(ConfigError, match="practice"):
        await world.engine.mine(world.job(4, practice=world.folder / "none.npz"), world.keys, lambda _: None)
    with pytest.raises(MalformedError):
        await world.engine.register(b"no key")


async def test_a_killed_manager_goes_on_from_its_last_round(world: World) -> None:
    reports: list[RoundReport] = []

    def on_round(report: RoundReport) -> None:
        reports.append(report)
        if report.number == 3:
            (manager,) = world.engine._managers
            manager.kill()

    result = await world.engine.mine(world.job(300, max_rounds=6, round_timeout_s=4.0), world.keys, on_round)
    assert result.rounds == 6
    numbers = [r.number for r in reports]
    assert numbers == sorted(set(numbers))
    assert reports[-1].practice_correct > reports[0].practice_correct


async def test_a_killed_guard_costs_a_round(world: World) -> None:
    reports: list[RoundReport] = []

    def on_round(report: RoundReport) -> None:
        reports.append(report)
        if len(reports) == 2:
            assert world.engine._guard is not None
            world.engine._guard.kill()

    result = await world.engine.mine(world.job(400, max_rounds=5, round_timeout_s=4.0), world.keys, on_round)
    assert result.rounds == 5
    assert set(reports[-1].accepted) <= {key.hex() for key in world.keys}


async def test_a_miner_killed_in_a_round_does_not_stop_rounds(world: World) -> None:
    victim = world.miners[2]
    survivors = {miner.key.hex() for miner in world.miners[:2]}
    # Long beside what a round takes on a busy machine: one that waits for the dead one takes all of it.
    async with world.mining(world.keys, round_timeout_s=60.0) as rounds:
        await rounds.until(lambda report: report.number >= 2)
        victim.child.kill()
        for _ in range(3):
            report = await rounds.until(lambda report: report.participants == 2)
            assert set(report.accepted) == survivors
    assert max(report.seconds for report in rounds.reports) < 60.0
