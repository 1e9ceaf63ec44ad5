"""What the processes of a testnet say of themselves, asked over gRPC as any user would."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from grpc import aio

from core.errors import DeadlineError, PoflError, UnavailableError
from core.ids import short
from services.rpc.chain_client import ChainClient
from services.rpc.channel import connect
from services.rpc.market_client import MarketClient
from services.rpc.mining_client import MinerClient, PoolClient
from services.rpc.task_client import PlatformClient, RequesterClient
from services.rpc.views import TaskPhase
from services.testnet.layout import Layout, Member

__all__ = ["Clients", "Observer", "connected", "watch_node", "watch_others", "watch_pool", "watch_requester"]

POLL: Final = 0.5
"""Seconds between two questions to the same process."""


class Observer(Protocol):
    """Who watches: the live view or the plain lines."""

    def state(self, name: str, role: str, text: str) -> None:
        """What a process is doing now."""

    def say(self, line: str) -> None:
        """Something happened that is worth a line."""


@dataclass(frozen=True, slots=True)
class Clients:
    """A client for every process of a testnet that people may talk to."""

    nodes: dict[str, ChainClient]
    chain: ChainClient
    requester: RequesterClient
    platform: PlatformClient
    provider: MarketClient
    pools: dict[str, PoolClient]
    miners: dict[str, MinerClient]


@asynccontextmanager
async def connected(layout: Layout) -> AsyncIterator[Clients]:
    """Channels with the user's certificate to all of them; nothing is sent yet."""
    async with AsyncExitStack() as stack:

        def channel(member: Member) -> aio.Channel:
            made = connect(member.listen, layout.user_tls, expect_role=member.role, expect_name=member.name)
            stack.push_async_callback(made.close, None)
            return made

        channels = {m.name: channel(m) for m in layout.of("node")}
        requester, platform, provider = (layout.of(role)[0] for role in ("requester", "platform", "provider"))
        yield Clients(
            {name: ChainClient([(name, made)]) for name, made in channels.items()},
            ChainClient(list(channels.items())),
            RequesterClient(channel(requester), requester.name),
            PlatformClient(channel(platform), platform.name),
            MarketClient(channel(provider), provider.name),
            {m.name: PoolClient(channel(m), m.name) for m in layout.of("pool")},
            {m.name: MinerClient(channel(m), m.name) for m in layout.of("miner")},
        )


async def watch_node(member: Member, node: ChainClient, observer: Observer) -> None:
    while True:
        try:
            tip = await node.tip()
            text = f"height {tip.height} · {tip.peers} peers · {tip.mempool} waiting"
            observer.state(member.name, "node", text + (" · audits" if tip.work_height else ""))
        except (UnavailableError, DeadlineError):
            observer.state(member.name, "node", "starting")
        await asyncio.sleep(POLL)


async def watch_pool(name: str, pool: PoolClient, observer: Observer) -> None:
    last = ""
    while True:
        try:
            async for progress in pool.watch_progress():
                text = progress.phase
                if progress.phase == "training" and progress.round is not None and progress.round.number:
                    r = progress.round
                    text += f" · round {r.number} · practice {r.practice_correct}/{r.practice_total} · {r.seconds:.1f} s"
                    if r.accepted < r.participants:
                        text += f" · {r.participants - r.accepted} refused"
                if progress.detail:
                    text += f" · {progress.detail}"
                observer.state(name, "pool", text)
                if progress.phase != last:
                    last = progress.phase
                    observer.say(f"{name}: {text}")
        except PoflError:
            observer.state(name, "pool", "starting")
        await asyncio.sleep(POLL)


async def watch_others(layout: Layout, clients: Clients, observer: Observer) -> None:
    """Miners, platform and provider: asked now and then, for they have little to say."""

    async def miner(name: str) -> str:
        status = await clients.miners[name].status()
        bought = f" + {status.bought_rows} bought" if status.bought_rows else ""
        rounds = f" · {status.rounds} rounds" if status.rounds else ""
        return f"{status.phase} · {status.own_rows}{bought} rows{rounds}"

    async def platform(_: str) -> str:
        task = await clients.platform.current_task()
        return "no current task" if task is None else f"current task {task.spec.name}, reward {task.reward}"

    async def provider(_: str) -> str:
        return ", ".join(f"{d.rows} rows of {d.name} on sale" for d in await clients.provider.list_data_sets())

    questions = {"miner": miner, "platform": platform, "provider": provider}
    while True:
        for member in layout.members:
            question = questions.get(member.role)
            if question is not None:
                with contextlib.suppress(PoflError):  # still starting: the table says so already
                    observer.state(member.name, member.role, await question(member.name))
        await asyncio.sleep(2 * POLL)


async def watch_requester(name: str, clients: Clients, layout: Layout, observer: Observer) -> None:
    async def activity() -> None:
        while True:
            try:
                async for step in clients.requester.watch_activity():
                    peer = layout.name_of(step.peer)
                    observer.state(name, "requester", f"{step.kind} with {peer} · {step.step} · {step.milliseconds} ms")
            except PoflError:
                observer.state(name, "requester", "starting")
            await asyncio.sleep(POLL)

    async def tasks() -> None:
        known: dict[bytes, TaskPhase] = {}
        async for update in clients.chain.watch_tasks():
            for task in update.tasks:
                if known.get(task.task_id) is not task.phase:
                    known[task.task_id] = task.phase
                    observer.say(f"task {short(task.task_id)} {task.spec.name}: {task.phase.name.lower()}")

    await asyncio.gather(activity(), tasks())
