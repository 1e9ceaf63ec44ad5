"""The processes that ``pofl bench mining`` measures: the pool's own, one that trains alone, and a stock Flower deployment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from bench.verification_machine import Json, peak_memory, process_cpu_seconds, spread, tell
from core.errors import DeadlineError, UnavailableError
from pool.flower.children import flower_environment
from pool.flower.engine import MiningEngine, MiningJob, RoundReport
from pool.flower.jobs import job_to_json
from pool.learning.datasets import Dataset, load_npz, save_npz
from tests.flower_stock import Deployment
from tests.mining_support import MinerProcess, start_miner, write_certificate

__all__ = ["CLASSES", "FEATURES", "embedded", "stock_rounds", "write_rows"]

FEATURES: Final = 256
CLASSES: Final = 10
PRACTICE: Final = 500
LONGEST_S: Final = 900.0
ONLINE_S: Final = 60.0
DEADLINE_S: Final = 5.0
DEADLINES: Final = 3
SPARE_S: Final = 60.0
PATIENCE_S: Final = 60.0
"""How long after a deadline a result is waited for: later than this is a defect, not a figure."""
STOCK_ROUNDS: Final = 3

Hidden = tuple[int, ...]


def _rate(hidden: Hidden) -> float:
    """A step that is safe for layers of any width: a pool refuses steps that spoil the model."""
    return 8.0 / max(160, *hidden)


def write_rows(folder: Path, count: int, rows: int) -> list[Path]:
    """Files of ``rows`` rows each that a model can learn, classes by a fixed random map, and practice rows beside them."""
    rng = np.random.default_rng(5)
    truth = rng.normal(size=(FEATURES, CLASSES))
    files = [folder / f"rows{number}.npz" for number in range(count)]
    for path in (*files, folder / "practice.npz"):
        x = rng.normal(size=(PRACTICE if path.stem == "practice" else rows, FEATURES)).astype(np.float32)
        save_npz(path, Dataset(x, (x @ truth).argmax(axis=1).astype(np.int64)))
    return files


@dataclass
class _World:
    folder: Path
    engine: MiningEngine
    files: list[Path]
    rounds: int
    miners: list[MinerProcess] = field(default_factory=list)
    jobs: int = 0

    def job(self, hidden: Hidden, count: int, seconds: float, rounds: int | None) -> MiningJob:
        self.jobs += 1
        return MiningJob(
            self.jobs.to_bytes(32, "big"), FEATURES, CLASSES, self.folder / "practice.npz",
            int(1000 * (time.time() + seconds)), hidden=hidden, quorum=count, round_timeout_s=LONGEST_S / 3,
            local_epochs=1, learning_rate=_rate(hidden), max_rounds=rounds,
        )  # fmt: skip

    def keys(self, count: int) -> list[bytes]:
        return [miner.key for miner in self.miners[:count]]

    def pids(self, count: int) -> dict[str, list[int]]:
        """Of a task that runs: the roles' processes."""
        (manager,) = self.engine._managers
        assert self.engine._guard is not None
        return {
            "guard": [self.engine._guard.pid], "manager": [manager.pid],
            "miners": [miner.child.pid for miner in self.miners[:count]],
        }  # fmt: skip


@dataclass(frozen=True)
class _Mark:
    """The end of a round, as the pool's service learns of it."""

    at: float
    cpu: dict[str, float]
    memory: dict[str, int]
    report: RoundReport


async def embedded(folder: Path, files: list[Path], plan: list[tuple[Hidden, int]], rounds: int) -> tuple[list[Json], Json]:
    """(a measurement for each of ``plan``, the deadline's). Files of rows: one a miner."""
    engine = MiningEngine(folder / "engine", "127.0.0.1:0", "127.0.0.1:0", write_certificate(folder / "tls"))
    world = _World(folder, engine, files, rounds)
    try:
        await engine.start()
        tell(f"{len(files)} miners start")
        for number, path in enumerate(files):
            world.miners.append(await start_miner(engine, folder / f"miner{number}", load_npz(path)))
            # Two at a time: each needs seconds of processor time before it is online, and its patience has an end.
            if number % 2 or number == len(files) - 1:
                async with _within(ONLINE_S, "miners do not come online; is this machine busy with something else?"):
                    await asyncio.gather(*(miner.online() for miner in world.miners[number - number % 2 :]))
        measured = [await _rounds(world, hidden, count) for hidden, count in plan]
        hidden = plan[0][0]
        few = [count for widths, count in plan if widths == hidden and count <= 4]
        deadline = await _deadline(world, hidden, max(few) if few else plan[0][1])
    finally:
        # Shielded: a second Ctrl-C must not leave a process behind.
        await asyncio.shield(_stop(world))
    return measured, deadline


@contextlib.asynccontextmanager
async def _within(seconds: float, what: str) -> AsyncIterator[None]:
    """Raises UnavailableError when it takes longer, or when a shorter wait inside ran out."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise UnavailableError(f"{what} (waited {seconds:g} s)") from None


async def _stop(world: _World) -> None:
    await asyncio.gather(*(miner.stop() for miner in world.miners), world.engine.stop())


async def _rounds(world: _World, hidden: Hidden, count: int) -> Json:
    # The first round pays for what is loaded once; after the last one the manager may be gone before it is looked at.
    job = world.job(hidden, count, LONGEST_S, world.rounds + 2)
    size = 4 * job.spec.parameters
    tell(f"{size / 1e6:.1f} MB, {count} miners: {world.rounds} rounds")
    marks: list[_Mark] = []

    def on_round(report: RoundReport) -> None:
        if len(marks) > world.rounds:
            return
        pids = world.pids(count)
        cpu = {role: sum(map(process_cpu_seconds, found)) for role, found in pids.items()}
        memory = {role: max(map(peak_memory, found)) for role, found in pids.items()}
        marks.append(_Mark(time.perf_counter(), cpu | {"service": time.process_time()}, memory, report))

    async with _within(LONGEST_S + PATIENCE_S, "a task has no end"):
        await world.engine.mine(job, world.keys(count), on_round)
    if any(len(mark.report.accepted) < count for mark in marks):
        reasons = sorted({reason for mark in marks for reason in mark.report.refused.values()})
        raise UnavailableError(f"not every miner took part in each round: {'; '.join(reasons[:5])}")
    alone = await _alone(world, job, count)
    gaps = [after.at - before.at for before, after in pairwise(marks)]
    cpu = {role: (marks[-1].cpu[role] - marks[0].cpu[role]) / len(gaps) for role in marks[0].cpu}
    last, memory = marks[-1].report, marks[-1].memory
    return {
        "model_bytes": size, "miners": count,
        "round": {
            **spread(gaps), "cpu_seconds": cpu, "loop_seconds": statistics.median(mark.report.seconds for mark in marks[1:]),
        },
        "bytes": {"up": last.bytes_up, "down": last.bytes_down},
        "peak_memory": {"guard": memory["guard"], "manager": memory["manager"], "miner": memory["miners"]},
        "one_process": alone,
        "overhead": {
            "ratio": statistics.median(gaps) / alone["seconds"], "cpu_ratio": sum(cpu.values()) / alone["cpu_seconds"],
        },
    }  # fmt: skip


async def _alone(world: _World, job: MiningJob, count: int) -> Json:
    """The same rounds in one process, see mining_reference.py."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.mining_reference", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=flower_environment(world.folder / "home"), start_new_session=True,
    )  # fmt: skip
    settings = {"job": job_to_json(job), "rows": [str(path) for path in world.files[:count]], "rounds": world.rounds}
    try:
        async with asyncio.timeout(LONGEST_S):
            out, errors = await process.communicate(json.dumps(settings).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise UnavailableError(f"training in one process failed: {errors.decode(errors='replace')[-500:]}")
    found: Json = json.loads(out)
    return found


async def _spare_manager(world: _World) -> None:
    """Wait until the next task's manager has loaded what it needs, as a pool has time for between two tasks; not for ever."""
    before, end = -1.0, time.monotonic() + SPARE_S
    while time.monotonic() < end:
        spare = world.engine._spare
        used = process_cpu_seconds(spare.pid) if spare is not None else -1.0
        if used > 0.5 and used == before:
            return
        before = used
        await asyncio.sleep(0.5)


class _Instants:
    """When the last report came."""

    last = 0.0

    def __call__(self, _: RoundReport) -> None:
        self.last = time.time()


async def _deadline(world: _World, hidden: Hidden, count: int) -> Json:
    """How long before the deadline the result is there, of tasks that only the deadline ends. Negative: after it."""
    tasks = min(DEADLINES, world.rounds)
    tell(f"deadline: {tasks} tasks of {DEADLINE_S:g} s")
    early: list[float] = []
    unused: list[float] = []
    for _ in range(tasks):
        await _spare_manager(world)
        job = world.job(hidden, count, DEADLINE_S, None)
        told = _Instants()
        # Without a round there is no result, which is an outcome too, and it must come in time as well.
        with contextlib.suppress(DeadlineError):
            async with _within(DEADLINE_S + PATIENCE_S, "a task has no end"):
                await world.engine.mine(job, world.keys(count), told)
            unused.append(job.deadline_ms / 1000 - told.last)
        early.append(job.deadline_ms / 1000 - time.time())
    return {
        "early": spread(early), "unused": spread(unused) if unused else None, "late": sum(one < 0 for one in early),
        "empty": tasks - len(unused), "task_seconds": DEADLINE_S, "miners": count,
    }  # fmt: skip


async def stock_rounds(folder: Path, files: list[Path], hidden: Hidden, rounds: int) -> Json:
    """Rounds of the same apps on flower-superlink and a flower-supernode for each of ``files``."""
    deployment = Deployment(folder, files, LONGEST_S)
    try:
        return await asyncio.to_thread(_stock_rounds, deployment, hidden, min(rounds, STOCK_ROUNDS))
    finally:
        # After Ctrl-C the thread goes on: it stops waiting, ends all processes, and only then this process ends.
        deployment.given_up.set()


def _stock_rounds(deployment: Deployment, hidden: Hidden, rounds: int) -> Json:
    folder, files = deployment.folder, deployment.rows
    folder.mkdir()
    practice = folder.parent / "practice.npz"
    job = MiningJob(bytes(32), FEATURES, CLASSES, practice, 0, hidden=hidden)
    tell(f"stock Flower, {len(files)} SuperNodes: {rounds} rounds")
    try:
        deployment.start()
        deployment.run(
            practice=str(practice), out=str(folder / "best.npz"), features=FEATURES, classes=CLASSES,
            hidden=",".join(map(str, hidden)), local_epochs=1, learning_rate=_rate(hidden), quorum=len(files),
            rounds=rounds + 1, round_timeout_s=LONGEST_S / 3, deadline_s=LONGEST_S,
        )  # fmt: skip
        reports = deployment.reports(folder / "best.npz", rounds + 1)
    finally:
        deployment.close()
    seconds = [report["seconds"] for report in reports[1:]]
    return {
        "model_bytes": 4 * job.spec.parameters, "miners": len(files), "round": spread(seconds),
        "peak_memory": deployment.peak,
    }  # fmt: skip
