"""A pool and its miners as real processes, against a real node, requester and provider, on scikit-learn's digits.

Two tasks: one is played undisturbed; in the other the pool is killed right after its commit, and goes on from its files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio

from core.chain.block import BlockKind
from core.chain.ledger import work_payout_total
from core.errors import AuthError, PoflError
from core.ids import AccountId, Height, ModelCommitment
from core.params import ChainParams
from pool.flower.keys import new_node_key
from services.rpc.chain_client import ChainClient
from services.rpc.channel import connect
from services.rpc.convert_mining import Join, Progress
from services.rpc.mining_client import MinerClient, PoolClient
from services.rpc.peer_client import fetch_vm
from services.rpc.role import read_key
from services.rpc.views import BlockView, TaskPhase, TaskView
from services.testnet.layout import Layout, Shape, make_layout
from services.testnet.supervisor import Supervisor
from tests.led_node import Led

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow, pytest.mark.timeout(900)]

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
PATH = f"{ROOT / 'tests' / 'led'}:{ROOT}:{ROOT / 'proto'}"
LONG = 200.0
"""Seconds, for what takes ten on a machine that does nothing else."""
PARAMS = ChainParams(
    entry_ms=14_000, commit_ms=32_000, claim_ms=400_000, settle_ms=20_000, session_ms=10_000, audit_ms=100_000, body_ms=100_000,
    open_ms=100_000, propose_ms=6_000, idle_ms=1_000,
).outlasting_stalls()  # fmt: skip
"""From the commit on `World.lead` ends each window as soon as the pool has done in it what is its own. The training, which
begins with the entry, lasts as long as it was told to: until a shortest window, which is long by ``propose_ms``, before the
close of commits."""


@dataclass
class World:
    layout: Layout
    supervisor: Supervisor
    chain: ChainClient
    pool: PoolClient
    miners: tuple[MinerClient, ...]
    was_killed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def account(self) -> AccountId:
        return self.layout.member("pool0").account

    async def task(self, number: int) -> TaskView | None:
        tasks = await self.chain.tasks()
        return tasks[number - 1] if len(tasks) >= number else None

    @property
    def clock(self) -> Path:
        return self.layout.folder / "clock"

    async def lead(self) -> None:
        """Not while the pool trains: how long that takes is set when it begins. The second task's commits are open until the
        pool is killed."""
        clock = Led(self.clock)
        while True:
            with contextlib.suppress(PoflError):
                for number, task in enumerate(await self.chain.tasks(), 1):
                    entries, close_ms = task.entries, None
                    if task.phase is TaskPhase.TRAINING and any(e.model_commitment is not None for e in entries):
                        close_ms = task.commit_close_ms if number == 1 or self.was_killed.is_set() else None
                    elif task.phase is TaskPhase.EVALUATION and any(e.correct is not None for e in entries):
                        close_ms = task.claim_close_ms
                    clock.lead_to(close_ms or 0)
            await asyncio.sleep(0.2)

    async def ended(self, number: int) -> tuple[TaskView, BlockView]:
        """Task number 1 or 2 and the block that ended it."""

        async def look() -> TaskView | None:
            task = await self.task(number)
            return task if task is not None and task.phase.is_ended else None

        task = await self.until(look, LONG)
        assert task.ended_height is not None
        return task, await self.chain.block(Height(task.ended_height))

    async def until(self, look: Callable[[], Awaitable[T | None]], timeout: float) -> T:
        """The first answer that is not None. Fails with the log of a process that ended by itself."""
        async with asyncio.timeout(timeout):
            while True:
                with contextlib.suppress(PoflError):
                    found = await look()
                    if found is not None:
                        return found
                self.supervisor.check()
                await asyncio.sleep(0.2)

    async def start(self, name: str) -> None:
        env = {"PYTHONPATH": PATH, "TEST_LED_CLOCK": str(self.clock)}
        await self.supervisor.start(replace(self.layout.process(self.layout.member(name)), env=env))

    def log(self, name: str) -> str:
        return (self.layout.folder / "logs" / f"{name}.log").read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("pool")
    layout = make_layout(folder / "net", Shape(nodes=1, pools=1, miners=2, tasks=2), PARAMS)
    channels = {
        member.name: connect(member.listen, layout.user_tls, expect_role=member.role)
        for member in layout.members
        if member.role in ("node", "pool", "miner")
    }
    miners = [m for m in layout.members if m.role == "miner"]
    async with Supervisor() as supervisor:
        found = World(
            layout, supervisor, ChainClient([("node0", channels["node0"])]), PoolClient(channels["pool0"]),
            tuple(MinerClient(channels[m.name], m.name) for m in miners),
        )  # fmt: skip
        try:
            Led(found.clock)
            for member in layout.members:
                if member.role in ("node", "pool", "miner", "provider"):
                    await found.start(member.name)

            async def all_online() -> bool | None:
                return sum(m.is_online for m in await found.pool.members()) == len(miners) or None

            await found.until(all_online, LONG)
            await found.start("requester0")
            leading = asyncio.create_task(found.lead())
            yield found
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)
        finally:
            for channel in channels.values():
                await channel.close(None)


async def test_a_task_from_entry_to_the_won_block(world: World) -> None:
    seen: list[Progress] = []

    async def watch() -> None:
        async for progress in world.pool.watch_progress():
            seen.append(progress)
            if progress.phase == "won":
                return

    watching = asyncio.create_task(watch())
    try:
        task, view = await world.ended(1)
        # The pool reads the block after we do, so its last word comes a little later than the node's.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(watching), LONG)
    finally:
        watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    assert task.phase is TaskPhase.WON, world.log("pool0")
    assert task.winner == view.header.author_id == world.account
    assert view.header.kind is BlockKind.WORK
    # The model learnt something, and its count is of the secret test set.
    assert view.header.accuracy is not None
    assert view.header.accuracy.correct > 0.5 * view.header.accuracy.total == 0.5 * 400
    # 85 % of the reward, to those who trained.
    members = await world.pool.members()
    assert sum(p.amount for p in view.payouts) == work_payout_total(task.reward, PARAMS)
    paid = {p.account: p.amount for p in view.payouts}
    assert {m.miner for m in members} <= set(paid)
    assert paid.get(world.account, 0) < len(members)
    assert all(m.contribution > 0 for m in members)
    words = list(dict.fromkeys(progress.phase for progress in seen))
    order = ["entered", "training", "committed", "evaluating", "claimed", "offering", "won"]
    assert [word for word in words if word in order] == order
    rounds = [p.round.number for p in seen if p.round is not None]
    assert rounds == sorted(rounds)
    for client in world.miners:
        status = await client.status()
        assert status.pool == world.account
        assert status.rounds > 0


async def test_users_may_look_but_not_join_or_fetch_models(world: World) -> None:
    key = read_key(world.layout.user_key)
    join = Join(world.layout.genesis.chain_id, world.account, AccountId(key.public_key), new_node_key()[1], 10, 64, b"")
    with pytest.raises(AuthError, match="may not call"):
        await world.pool.join(key, join)
    channel = connect(world.layout.member("pool0").listen, world.layout.user_tls, expect_role="pool")
    try:
        with pytest.raises(AuthError, match="may not call"):
            await fetch_vm(channel, ModelCommitment(bytes(32)), LONG)
    finally:
        await channel.close(None)


async def test_a_pool_killed_after_its_commit_still_claims_and_wins(world: World) -> None:
    async def committed() -> bool | None:
        task = await world.task(2)
        if task is None:
            return None
        assert not task.phase.is_ended, world.log("pool0")
        return any(e.model_commitment is not None for e in task.entries) or None

    await world.until(committed, LONG)
    child = next(c for c in world.supervisor.children if c.spec.name == "pool0")
    os.kill(child.process.pid, signal.SIGKILL)
    await child.process.wait()
    child.log.close()
    assert world.supervisor.failed is not None
    await world.supervisor.failed
    world.supervisor.failed = asyncio.get_running_loop().create_future()
    await world.start("pool0")
    world.was_killed.set()
    task, view = await world.ended(2)
    assert task.phase is TaskPhase.WON, world.log("pool0")
    assert task.winner == world.account
    # What the miners did before the kill is paid after it.
    assert {m.account for m in world.layout.of("miner")} <= {p.account for p in view.payouts}

    async def back() -> bool | None:
        return sum(m.is_online for m in await world.pool.members()) == len(world.miners) or None

    await world.until(back, LONG)
