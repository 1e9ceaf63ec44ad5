"""Secure aggregation under a real guard and manager: real miner processes, the hybrid suite, a death, a word broken."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from core.crypto.masking import Aggregation
from core.crypto.sealing import Suite
from pool.flower.engine import MiningEngine, MiningJob, RoundReport
from pool.learning.datasets import Dataset, save_npz
from pool.learning.model_spec import score
from pool.learning.privacy import LocalPrivacy
from services.data.partition import even
from tests.mining_support import CLASSES, FEATURES, MinerProcess, digits, patient, start_miner, write_certificate

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow, pytest.mark.timeout(900)]


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
            int(1000 * (time.time() + seconds)), hidden=(32,), learning_rate=0.3, quorum=2, round_timeout_s=20.0,
        )  # fmt: skip
        return replace(job, **values)  # type: ignore[arg-type]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("secure")
    train, practice = digits()
    save_npz(folder / "practice.npz", practice)
    engine = MiningEngine(
        folder / "engine", "127.0.0.1:0", "127.0.0.1:0", write_certificate(folder / "tls"), suite=Suite.HYBRID,
        aggregation=Aggregation.SECURE,
    )  # fmt: skip
    miners: list[MinerProcess] = []
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(patient())
        await engine.start()
        for index, rows in enumerate(even(train.y, 4, 1)):
            # The last one blurs its updates a little: that is between it and nobody else.
            privacy = LocalPrivacy(5.0, 0.001) if index == 3 else LocalPrivacy()
            miners.append(await start_miner(engine, folder / f"miner{index}", train.take(rows), privacy=privacy))
        await asyncio.gather(*(miner.online() for miner in miners))
        yield World(engine, miners, practice, folder)
    finally:
        await asyncio.gather(*(miner.stop() for miner in miners), engine.stop())
        stack.close()


async def test_miners_learn_digits_and_the_manager_sees_sums_only(world: World) -> None:
    ticket = world.miners[0].ticket
    assert (ticket.suite, ticket.aggregation, len(ticket.hpke_public_key)) == (Suite.HYBRID, Aggregation.SECURE, 1216)
    job = world.job(400, target_correct=int(0.85 * len(world.practice)))
    keys = {miner.key: 300 for miner in world.miners}
    reports: list[RoundReport] = []
    result = await world.engine.mine(job, keys, reports.append)
    assert result.best_practice_correct > 0.85 * len(world.practice)
    again = score(job.spec, result.weights, world.practice.x, world.practice.y)
    assert again.correct == result.best_practice_correct
    whole = [report for report in reports if report.accepted]
    assert whole
    assert all(set(report.accepted.values()) == {300} for report in whole)
    # Eight bytes a parameter, and the adverts, shares and signatures of five steps.
    masked = 8 * (job.spec.parameters + 1)
    full = [report for report in whole if len(report.accepted) == 4]
    assert all(4 * masked < report.bytes_up < 4 * (masked + 20_000) for report in full)


async def test_a_miner_killed_between_two_steps_is_left_out(world: World) -> None:
    victim = world.miners[3]
    reports: list[RoundReport] = []

    def on_round(report: RoundReport) -> None:
        reports.append(report)
        if len(reports) == 1:
            victim.child.kill()

    job = world.job(600, max_rounds=4)
    result = await world.engine.mine(job, {miner.key: 300 for miner in world.miners}, on_round)
    assert result.rounds == 4
    rest = {miner.key.hex() for miner in world.miners[:3]}
    assert set(reports[-1].accepted) == rest
    assert max(report.seconds for report in reports) < job.round_timeout_s + 1


async def test_a_plain_manager_gets_nothing_from_miners_of_a_secure_pool(world: World) -> None:
    """The manager breaks its pool's signed word, and asks for single updates."""
    first: asyncio.Future[RoundReport] = asyncio.get_running_loop().create_future()

    def on_round(report: RoundReport) -> None:
        if not first.done():
            first.set_result(report)

    world.engine._aggregation = Aggregation.PLAIN
    mining = asyncio.create_task(world.engine.mine(world.job(300), [m.key for m in world.miners[:3]], on_round))
    try:
        report = await asyncio.wait_for(first, 250)
    finally:
        world.engine._aggregation = Aggregation.SECURE
        mining.cancel()
        await asyncio.gather(mining, return_exceptions=True)
    assert not report.accepted
    assert len(report.refused) == 3
    assert all("nothing else is answered" in reason for reason in report.refused.values())
