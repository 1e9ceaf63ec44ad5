"""Real processes under faults and attacks: the task ends in time with a model, and who was honest is paid by what was signed.

One guard, managers, and three honest miner processes for all cases; hostile and late miners join them.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from core.codec import decode_as
from core.errors import AuthError, DeadlineError
from core.ids import AccountId, TaskId
from core.market.contribution_books import Audited, audit
from core.market.contributions import ENTRY, shares_of
from pool.flower import connections, health
from pool.flower.engine import KEPT_RUNS, MiningEngine, MiningJob, MiningResult, RoundReport
from pool.flower.fleet import FleetMiner
from pool.flower.keys import new_node_key
from pool.learning.datasets import Dataset, save_npz
from pool.learning.model_spec import score
from pool.manager.books import Books
from services.data.partition import even
from tests import mining_attacks
from tests.mining_support import CLASSES, FEATURES, LOADED_S, MinerProcess, digits, patient, start_miner, write_certificate
from tests.pool_kit import CHAIN, keys

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow, pytest.mark.timeout(900)]

POOL_KEY, *MINER_KEYS = keys(16, "mining faults")
POOL = AccountId(POOL_KEY.public_key)
HONEST = 3
LATE_S = 30.0
"""Seconds that a busy machine may take to see an instant that has come."""
Round = Callable[[RoundReport], None]


@dataclass
class World:
    engine: MiningEngine
    miners: list[MinerProcess]
    parts: list[Dataset]
    practice: Dataset
    folder: Path
    owners: dict[bytes, AccountId] = field(default_factory=dict)
    jobs: int = 0

    def job(self, seconds: float, **values: object) -> MiningJob:
        self.jobs += 1
        job = MiningJob(
            bytes([self.jobs]) * 32, FEATURES, CLASSES, self.folder / "practice.npz",
            int(1000 * (time.time() + seconds)), hidden=(16,), learning_rate=0.3, local_epochs=6, batch=16, quorum=2,
            round_timeout_s=6.0,
        )  # fmt: skip
        return replace(job, **values)  # type: ignore[arg-type]

    def account(self, key: bytes) -> AccountId:
        """A fresh account for each key that has none."""
        return self.owners.setdefault(key, AccountId(MINER_KEYS[len(set(self.owners.values()))].public_key))

    @property
    def honest(self) -> list[AccountId]:
        return [self.account(miner.key) for miner in self.miners]

    @property
    def members(self) -> dict[bytes, int]:
        return {miner.key: len(part) for miner, part in zip(self.miners, self.parts, strict=False)}

    async def mine(
        self, job: MiningJob, members: dict[bytes, int], on_round: Round = lambda _: None
    ) -> tuple[MiningResult, list[RoundReport], Audited]:
        """A whole task with its book. Checks what holds whatever happens: the deadline, the score, the book, the pay."""
        for key in members:
            self.account(key)
        books = Books(self.folder / "tasks", POOL_KEY, CHAIN, lambda *_: None, job.weight_factor, 0)
        task_id = TaskId(job.job_id)
        book = await books.open(task_id)
        reports: list[RoundReport] = []

        def note(report: RoundReport) -> None:
            reports.append(report)
            book.record(report, self.owners.get)
            on_round(report)

        result = await self.engine.mine(job, members, note)
        assert time.time() <= job.deadline_ms / 1000 + LATE_S, "it ends with the deadline"
        closing = await book.close()
        found = audit([decode_as(ENTRY, e) async for e in books.entries(task_id, 0)], CHAIN, POOL, task_id)
        book.close_file()
        paid = shares_of(closing.closing)
        due: dict[AccountId, int] = {}
        for report in reports:
            for key, counted in report.accepted.items():
                owner = self.owners[bytes.fromhex(key)]
                due[owner] = due.get(owner, 0) + counted
        assert paid == due == {m: c for m, c in found.sums.items() if c}, "pay is what counted in the model"
        again = score(job.spec, result.weights, self.practice.x, self.practice.y)
        assert again.correct == result.best_practice_correct == max(r.practice_correct for r in reports if r.accepted)
        return result, reports, found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("faults")
    train, practice = digits()
    save_npz(folder / "practice.npz", practice)
    parts = [train.take(rows) for rows in even(train.y, HONEST, 1)]
    before = set(psutil.Process().children(recursive=True))
    engine = MiningEngine(folder / "engine", "127.0.0.1:0", "127.0.0.1:0", write_certificate(folder / "tls"))
    miners: list[MinerProcess] = []
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(patient())
        await engine.start()
        for index, part in enumerate(parts):
            miners.append(await start_miner(engine, folder / f"miner{index}", part))
        await asyncio.gather(*(miner.online() for miner in miners))
        yield World(engine, miners, parts, practice, folder)
    finally:
        await asyncio.gather(*(miner.stop() for miner in miners), engine.stop())
        stack.close()
    assert set(psutil.Process().children(recursive=True)) <= before, "a process was left behind"


@contextlib.asynccontextmanager
async def joined(world: World, **attacks: str) -> AsyncIterator[dict[str, bytes]]:
    """More miners in this process, by name: each an attack of mining_attacks, or honest where that is empty. Node keys."""
    started: dict[str, FleetMiner] = {}
    found: dict[str, bytes] = {}
    try:
        for name, attack in attacks.items():
            private, public = new_node_key()
            ticket = await world.engine.register(public)
            rows = world.parts[0]
            miner = FleetMiner(ticket, private, lambda _, rows=rows: (rows.x, rows.y), world.folder / f"{name}-{world.jobs}")  # type: ignore[misc]
            if attack:
                miner._app = getattr(mining_attacks, attack)(ticket, miner._key, rows)
            miner.start()
            started[name], found[name] = miner, public
        await asyncio.gather(*(asyncio.to_thread(miner.wait_online, LOADED_S) for miner in started.values()))
        yield found
    finally:
        await asyncio.gather(*(asyncio.to_thread(miner.stop, 120) for miner in started.values()))
        for public in found.values():
            await world.engine.unregister(public)


# -- what miners send --------------------------------------------------------------------------------------------------


async def test_poisoners_are_named_and_the_model_is_learnt(world: World) -> None:
    attacks = {
        name: name
        for name in (
            "reversed_within_bounds", "enormous", "a_hundred_times", "misshapen", "replaying", "overheard", "stealing",
        )
    }  # fmt: skip
    async with joined(world, **attacks) as hostile:
        members = world.members | dict.fromkeys(hostile.values(), len(world.parts[0]))
        job = world.job(600, max_rounds=5, quorum=4, round_timeout_s=100.0)
        result, reports, found = await world.mine(job, members)
    names = {key.hex(): name for name, key in hostile.items()}
    why = {names[key]: reason for key, reason in reports[-1].refused.items() if key in names}
    ruin = [report.refused.get(hostile["reversed_within_bounds"].hex(), "") for report in reports]
    assert any("harm: the round's step left" in reason for reason in ruin), ruin
    assert "above the ceiling" in why["enormous"]
    assert "times the median" in why["a_hundred_times"]
    assert "bytes of weights" in why["misshapen"]
    assert "not by node key" in why["stealing"]
    assert "not by node key" in why["replaying"]
    assert set(why) - {"reversed_within_bounds"} == set(attacks) - {"overheard", "reversed_within_bounds"}
    assert result.best_practice_correct > 0.8 * len(world.practice)
    guilty = {world.owners[key]: name for name, key in hostile.items()}
    paid = {guilty[account] for account, counted in found.sums.items() if counted and account in guilty}
    # A replay's first ciphertext was a good one, and a small step backwards ruins nothing.
    assert paid <= {"overheard", "replaying", "reversed_within_bounds"}
    assert {found.rounds[account] for account in world.honest} == {len([r for r in reports if r.accepted])}


# -- processes that are killed -----------------------------------------------------------------------------------------


async def test_killed_in_upload_then_back_with_a_fresh_key(world: World) -> None:
    """It owes an answer for ever; nobody waits for it twice. Whoever comes back comes with a fresh key, on the same account."""
    victim = await start_miner(world.engine, world.folder / "victim", world.parts[1], "die_in_upload")
    await victim.online()
    members = world.members | {victim.key: len(world.parts[1])}
    account = world.account(victim.key)
    pending: set[asyncio.Task[None]] = set()
    back: list[bytes] = []
    done = asyncio.Event()

    async def come_back() -> None:
        async with joined(world, back="") as keys_:
            del members[victim.key]
            back.append(keys_["back"])
            world.owners[keys_["back"]] = account
            members[keys_["back"]] = len(world.parts[1])
            await done.wait()

    def on_round(report: RoundReport) -> None:
        if not pending:
            pending.add(asyncio.create_task(come_back()))

    try:
        # A quorum of four: the first round waits for the dead one, and the next one for who comes back.
        job = world.job(400, max_rounds=4, quorum=4)
        result, reports, found = await world.mine(job, members, on_round)
    finally:
        done.set()
        await asyncio.gather(*pending)
        await victim.stop()
    assert not any(victim.key.hex() in report.accepted for report in reports)
    assert all(back[0].hex() in report.accepted for report in reports if report.accepted)
    assert found.sums[account] > 0, "one account, two keys"
    assert victim.key.hex() in reports[0].refused
    assert not any(victim.key.hex() in report.refused for report in reports[1:]), "it is asked once"
    assert max(report.seconds for report in reports) <= job.round_timeout_s + LATE_S
    assert result.rounds >= found.rounds[world.honest[0]] > 2


async def test_manager_and_guard_killed_in_one_task_and_nothing_is_paid_twice(world: World) -> None:
    """Rounds go on after both, and the book has each round once."""
    killed: list[int] = []

    def on_round(report: RoundReport) -> None:
        if report.number == 2 and world.engine._managers:
            os.kill(max(manager.pid for manager in world.engine._managers), 9)
        elif report.number >= 5 and not killed:
            assert world.engine._guard is not None
            killed.append(world.engine._guard.pid)
            os.kill(world.engine._guard.pid, 9)

    job = world.job(400, max_rounds=10)
    result, reports, found = await world.mine(job, world.members, on_round)
    numbers = [report.number for report in reports]
    assert numbers == sorted(set(numbers))
    assert len([report for report in reports if report.accepted]) == 10
    assert found.heads[-1].round == numbers[-1]
    assert result.best_practice_correct > 0.85 * len(world.practice)


async def test_a_guard_that_hangs_is_replaced_within_the_task(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, it is alive, takes connections and answers nothing. Before, the task was over with the rounds that it had."""
    stopped: list[int] = []
    pending: set[asyncio.Task[None]] = set()

    async def until_gone() -> None:
        """The next guard has the time that a start takes on a busy machine."""
        async with asyncio.timeout(200):
            while psutil.pid_exists(stopped[0]):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        monkeypatch.undo()

    def on_round(report: RoundReport) -> None:
        if not stopped and report.number >= 2:
            assert world.engine._guard is not None
            stopped.append(world.engine._guard.pid)
            os.kill(stopped[0], signal.SIGSTOP)
            monkeypatch.setattr(health, "SLICE_S", 1.0)
            monkeypatch.setattr(health, "SILENT_SLICES", 4)
            pending.add(asyncio.create_task(until_gone()))

    _, reports, found = await world.mine(world.job(400, max_rounds=6), world.members, on_round)
    await asyncio.gather(*pending)
    # It is replaced within the task, but where all six rounds were over before this process heard of the second.
    async with asyncio.timeout(200):
        while (guard := world.engine._guard) is None or guard.pid == stopped[0]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    assert not psutil.pid_exists(stopped[0])
    assert len([report for report in reports if report.accepted]) == 6
    assert all(found.sums[account] > 0 for account in world.honest), "the honest are paid"


async def test_a_task_that_runs_to_its_deadline_keeps_it(world: World) -> None:
    """Nothing else ends it. That the result is not early either is measured by `pofl bench mining`."""
    for seconds in (12, 40, 120):
        started = time.monotonic()
        # On a machine that is busy enough no round is over in time.
        with contextlib.suppress(DeadlineError):
            _, reports, _ = await world.mine(world.job(seconds, quorum=1), world.members)
            break
    assert time.monotonic() - started > seconds - 2, "time that is left is used"
    assert reports


async def test_old_runs_do_not_pile_up(world: World) -> None:
    runs = world.folder / "engine" / "runs"
    for number in range(KEPT_RUNS + 3):
        (runs / f"{number:064x}").mkdir()
    await world.mine(world.job(200, max_rounds=1), world.members)
    assert len(list(runs.iterdir())) == KEPT_RUNS


# -- strangers and clocks ----------------------------------------------------------------------------------------------


class Flood:
    """Connections from another host of the loopback network, which no member is."""

    def __init__(self, port: int, ca: Path, host: str = "127.0.0.2") -> None:
        self._port, self._host = port, host
        self._context = ssl.create_default_context(cafile=str(ca))
        self._silent: list[socket.socket] = []
        self.refused = 0

    def _connect(self) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", self._port), 60, (self._host, 0))
        return self._context.wrap_socket(raw, server_hostname="localhost")

    def open(self, count: int) -> None:
        """Connections that never ask for anything."""
        for _ in range(count):
            try:
                self._silent.append(self._connect())
            except OSError:
                self.refused += 1

    def held(self) -> int:
        """Of the silent ones, how many the guard keeps: TLS is done before it refuses."""
        found = 0
        for one in self._silent:
            one.settimeout(0.01)
            try:
                found += bool(one.recv(1))
            except TimeoutError:
                found += 1
            except OSError:
                pass
        return found

    def ask(self, count: int) -> Iterator[bytes]:
        """First lines of the answers to requests that no member would make."""
        head = "HTTP/1.1\r\nhost: localhost\r\n"
        bodies = (
            f"POST /v1/fleet/push-object {head}content-length: 99999999\r\n\r\n".encode(),
            f"POST /v1/fleet/pull-messages {head}content-length: 5\r\n\r\nhello".encode(),
            f"POST /v1/fleet/push-messages {head}content-length: 200000\r\n\r\n".encode() + bytes(200_000),
            f"POST /v1/runtime/get-nodes {head}content-length: 0\r\n\r\n".encode(),
            b"\x00\xff" * 500 + b"\r\n\r\n",
        )
        for number in range(count):
            try:
                with self._connect() as one:
                    one.sendall(bodies[number % len(bodies)])
                    yield one.recv(4096).partition(b"\r\n")[0]
            except OSError:
                self.refused += 1

    def close(self) -> None:
        for one in self._silent:
            one.close()


async def test_a_flooder_on_the_fleets_port_stops_nothing(world: World) -> None:
    rules = {"max_rounds": 4, "round_timeout_s": 100.0, "quorum": HONEST}
    quiet, quiet_reports, _ = await world.mine(world.job(400, **rules), world.members)
    port = int(world.engine.superlink_address.rpartition(":")[2])
    flood = Flood(port, world.folder / "tls" / "ca.pem")
    # The first one has no place left to ask from.
    prober = Flood(port, world.folder / "tls" / "ca.pem", "127.0.0.3")
    guard = world.engine._guard
    answers: set[bytes] = set()
    try:
        # More than one host may hold: the rest is refused, and the members' own connections are of another host.
        await asyncio.to_thread(flood.open, connections.MOST_A_HOST + 20)
        asking = asyncio.create_task(asyncio.to_thread(lambda: answers.update(prober.ask(60))))
        _, reports, found = await world.mine(world.job(400, **rules), world.members)
        await asking
        await asyncio.to_thread(flood.open, 20)
        async with asyncio.timeout(60):
            # A guard that has had no turn has not refused the last of them yet.
            while await asyncio.to_thread(flood.held) > connections.MOST_A_HOST:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.2)
    finally:
        flood.close()
    assert world.engine._guard is guard, "it was not started anew"
    assert not any(b" 200 " in answer for answer in answers), answers
    assert {b"HTTP/1.1 413", b"HTTP/1.1 404"} <= {answer[:12] for answer in answers}
    counted = [len(report.accepted) for report in (*quiet_reports, *reports)]
    assert counted == [HONEST] * len(counted)
    assert set(found.sums) == set(world.honest)
    assert quiet.rounds == 4


@pytest.mark.parametrize(("seconds", "said"), [(60, "60 s ahead of"), (-4000, "4000 s behind")])
async def test_a_wrong_clock_is_named_to_its_owner(
    world: World, monkeypatch: pytest.MonkeyPatch, seconds: int, said: str
) -> None:
    def now() -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)

    monkeypatch.setattr("flwr.supernode.node_auth_http_interceptor.now", now)
    monkeypatch.setattr("pool.flower.fleet._wall_clock", now)
    private, public = new_node_key()
    miner = FleetMiner(await world.engine.register(public), private, lambda _: None, world.folder / f"clock{seconds}")
    miner.start()
    try:
        with pytest.raises(AuthError, match=r"this machine's clock is .* the pool's.*set the clock") as caught:
            await asyncio.to_thread(miner.wait_online, LOADED_S)
        near = {said.replace(str(abs(seconds)), str(abs(seconds) + off)) for off in range(-45, 46)}
        assert any(text in caught.value.message for text in near), caught.value.message
    finally:
        miner.stop()
        await world.engine.unregister(public)
