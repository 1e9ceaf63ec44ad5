"""Real nodes under faults: kills, partitions, bad links, wrong clocks, full disks, slow and flooding peers.

Each scenario runs on a network of four node processes behind relays (tests/wires.py), under a load of transfers, while a
witness (tests/witness.py) keeps everything that validators sign. What must hold in all of them: never two blocks at a height,
the same state roots, no validator's vote contradicted, blocks go on while 2/3 of the power are connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from core.errors import PoflError
from tests.chaos_world import OPENED, QUIET, World, world
from tests.namespaces import Namespaces, why_not
from tests.node_network import FAST, Network
from tests.witness import compare, complaints

__all__ = ["SCENARIOS", "chaos"]

Figures = dict[str, Any]
ALL: Final = (0, 1, 2, 3)
UNTOUCHED: Final = 3
CATCH_UP: Final = 180.0
"""Seconds: on a busy machine a start of Python alone takes ten."""
PROGRESS: Final = 180.0
SETTLE: Final = 120.0
LATENESS_MS: Final = 2_000


async def judge(it: World, nodes: Sequence[int] = ALL, but: Sequence[str] = ()) -> Figures:
    """What must hold whatever was done. Raises AssertionError."""
    height, root, problems = await compare(it.network, [it.nodes[i] for i in nodes])
    problems += it.witness.problems + complaints(it.nodes, but)
    assert not problems, "; ".join(problems[:8])
    return {"height": height, "state_root": root[:16], "signed_messages": it.witness.heard}


# Kills


def plan_kills(count: int, seed: int) -> list[tuple[str, tuple[int, ...], float, float]]:
    """What, whom, after how many seconds, down for how many: kills of running nodes, of starting ones, and of two at once."""
    rng = random.Random(f"kills {seed}")
    plan: list[tuple[str, tuple[int, ...], float, float]] = []
    while count > 0:
        kind = "start" if len(plan) == 1 else rng.choices(("run", "start", "two"), (6, 3, 1))[0]
        if kind == "two" and count < 2:
            continue
        victims = tuple(rng.sample(range(UNTOUCHED), 2 if kind == "two" else 1))
        plan.append((kind, victims, rng.random(), rng.uniform(0.0, 1.0)))
        count -= len(victims)
    return plan


async def kills(it: World, count: int, seed: int) -> Figures:
    """SIGKILL ``count`` times, at instants drawn from ``seed``; node 3 is never touched and is what the others must equal."""
    phases: Counter[str] = Counter()
    # A start that is killed is one more kill of the node of the step before.
    span = 3.0
    caught_up: list[float] = []
    for kind, victims, share, down in plan_kills(count, seed):
        if kind == "start":
            # In the middle of what a start does: imports, opening the store, links, fetching blocks.
            victim = victims[0]
            await it.nodes[victim].stop(CATCH_UP)
            await asyncio.sleep(2.0 * down)
            mark = it.nodes[victim].log.stat().st_size
            await it.start(victim)
            await asyncio.sleep(share * span)
            height = await it.height(it.nodes[victim]) if _opened(it, victim, mark) else -1
            await it.kill(victim)
            seen = await it.height(it.nodes[UNTOUCHED])
            phases["not open" if height < 0 else "behind" if height < seen else "just back"] += 1
        else:
            await asyncio.sleep(2.5 * share)
            await it.kill(*victims)
            phases[kind] += len(victims)
            await asyncio.sleep(down)
        began = time.monotonic()
        await it.start(*victims)
        target = await it.height(it.nodes[UNTOUCHED])
        await it.reach(victims, target, CATCH_UP)
        caught_up.append(time.monotonic() - began)
        # Starts take as long as they take here: instants are spread over all of one.
        span = 1.2 * min(caught_up)
    await it.rise(ALL, 2, PROGRESS)
    return {"kills": sum(phases.values()), "when": dict(phases), "slowest_return_s": round(max(caught_up), 1)}


def _opened(it: World, node: int, mark: int) -> bool:
    with it.nodes[node].log.open("rb") as log:
        log.seek(mark)
        return OPENED.encode() in log.read()


async def outage(it: World, pause: float = 2.0) -> Figures:
    """More than a third are gone, and come back; then all are killed at once."""
    await it.kill(0, 1)
    await _stand(it, ((2, 3),), max(1.0, pause))
    await it.start(0, 1)
    third = await it.rise(ALL, 2, CATCH_UP)
    last = max((await it.heights(ALL)).values())
    await it.kill(*ALL)
    await it.start(*ALL)
    everyone = await it.reach(ALL, last + 2, CATCH_UP)
    return {"back_after_a_third_s": round(third, 1), "back_after_all_s": round(everyone, 1)}


# The network


async def _stand(it: World, groups: Sequence[Sequence[int]], seconds: float) -> None:
    """Nodes without a quorum come to a stand: each group's have equal heights that stood for so long. The one block that was
    decided before they were cut off may still come, however late, and one of them may still fetch it from another.
    """
    nodes = [node for group in groups for node in group]
    first = before = await it.answered(nodes, CATCH_UP)
    ends = time.monotonic() + SETTLE + seconds
    while time.monotonic() < ends:
        await asyncio.sleep(seconds)
        heights = await it.answered(nodes, CATCH_UP)
        grown = max(heights.values()) - max(first.values())
        assert grown <= 1, f"{groups} have no quorum and went from {first} to {heights}"
        if all(heights[i] == before[i] == before[group[0]] for group in groups for i in group):
            return
        before = heights
    raise AssertionError(f"{groups} have no quorum and still came to {before} after {SETTLE:g} s")


async def partition(
    it: World, groups: Sequence[Sequence[int]], seconds: float, breaks: bool = False, spaces: Namespaces | None = None
) -> Figures:
    """Cut, wait, heal. A group with a quorum goes on; the others stand still and sign nothing twice."""
    if spaces is None:
        it.wires.cut(groups, breaks)
    else:
        spaces.split(groups[0])
    whole = [group for group in groups if 3 * len(group) >= 2 * len(ALL)]
    before = await it.answered(ALL, CATCH_UP)
    if whole:
        await it.rise(whole[0], 2, PROGRESS)
    await _stand(it, [group for group in groups if group not in whole], max(1.0, seconds))
    during = await it.answered(ALL, CATCH_UP)
    if spaces is None:
        it.wires.heal()
    else:
        spaces.heal()
    healed = await it.reach(ALL, max(during.values()) + 2, CATCH_UP)
    return {"groups": "/".join(str(len(g)) for g in groups), "blocks_meanwhile": max(during.values()) - max(before.values()),
            "healed_s": round(healed, 1)}  # fmt: skip


async def bad_links(it: World, seconds: float, delay: float = 0.08, loss: float = 0.02) -> Figures:
    """Every link late, lossy, and now and then broken."""
    rng = random.Random("bad links")
    it.wires.treat(it.wires.all(), delay, delay / 2, loss)
    before, end = await it.height(it.nodes[0]), time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(seconds / 4)
        rng.choice(list(it.wires.all())).reset()
    await it.reach(ALL, before + 2, PROGRESS)
    blocks = await it.height(it.nodes[0]) - before
    it.wires.treat(it.wires.all())
    return {"delay_ms": round(1000 * delay), "loss": loss, "blocks": blocks, "seconds": seconds}


async def slow_peer(it: World, seconds: float) -> Figures:
    """A node that does not move at all with its connections up, and then one behind 4 KB a second."""
    others = ALL[1:]
    memory = [it.memory(i) for i in others]
    it.signal(0, signal.SIGSTOP)
    try:
        stopped = await it.rise(others, 2, PROGRESS)
        await asyncio.sleep(seconds)
    finally:
        it.signal(0, signal.SIGCONT)
    back = await it.reach(ALL, await it.height(it.nodes[1]), CATCH_UP)
    it.wires.treat(it.wires.of(0), rate=4_096)
    slow = await it.rise(others, 2, PROGRESS)
    grown = max(it.memory(i) - m for i, m in zip(others, memory, strict=True))
    it.wires.treat(it.wires.of(0))
    await it.reach(ALL, await it.height(it.nodes[1]), CATCH_UP)
    assert grown < 96 << 20, f"a slow peer costs the others {grown >> 20} MiB"
    return {"two_blocks_while_stopped_s": round(stopped, 1), "back_s": round(back, 1),
            "two_blocks_while_slow_s": round(slow, 1), "memory_grown_mib": grown >> 20}  # fmt: skip


def move_in(spaces: Namespaces) -> Callable[[Network], None]:
    """For `world`: every node into its namespace, its peers on the switch in place of relays."""

    def prepare(network: Network) -> None:
        ports = [node.address.rpartition(":")[2] for node in network.nodes]
        for i, node in enumerate(network.nodes):
            peers = ",".join(f"{spaces.peer_host(j)}:{port}" for j, port in enumerate(ports) if j != i)
            node.before = spaces.run_in(i)
            node.options = (*QUIET, "--set", f"peers.nodes={peers}", "--set", f"listen=0.0.0.0:{ports[i]}")
            node.address = f"{spaces.watch_host(i)}:{ports[i]}"

    return prepare


# Clocks and disks


async def wrong_clocks(it: World, most_ms: int) -> Figures:
    """Blocks go on, and their time stays between honest clocks, which differ by ``most_ms`` at most from the right one."""
    await it.rise(ALL, 3, PROGRESS)
    tip = await it.client(it.nodes[3]).tip()
    late = time.time_ns() // 1_000_000 - tip.next_time_ms
    assert late >= -most_ms - LATENESS_MS, f"block {tip.height + 1} will be {-late} ms ahead of the right time"
    return {"block_time_behind_ms": late}


async def an_hour_ahead(it: World) -> Figures:
    """Node 0 comes back with a clock that is an hour ahead: block time does not follow it."""
    await it.kill(0)
    it.nodes[0].program = ("-m", "tests.shifted_node", "3600000")
    await it.start(0)
    await it.rise(ALL, 3, CATCH_UP)
    found = await wrong_clocks(it, 0)
    await it.kill(0)
    it.nodes[0].program = ("-m", "node")
    await it.start(0)
    await it.rise(ALL, 1, CATCH_UP)
    return found


def why_no_disk() -> str:
    """Why a small disk cannot be made here; "" if it can."""
    if os.geteuid() != 0:
        return "mounting a small file system takes root"
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False)
        if tried.returncode:
            return f"no file system can be mounted here: {tried.stderr.decode(errors='replace').strip()}"
        subprocess.run(["umount", folder], check=True)
    return ""


@contextlib.contextmanager
def small_disk(network: Network, node: int, size: str = "48m") -> Any:
    """The node's data folder is a file system of its own."""
    folder = network.nodes[node].config.parent / "data"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def full_disk(it: World, folder: Path) -> Figures:
    """Node 0's disk fills while it runs. It stops with a sentence, and goes on where it was when there is room again."""
    ballast, node = folder / "ballast", it.nodes[0]
    stopped = asyncio.create_task(node.ended(PROGRESS))
    while not stopped.done():
        _fill(ballast)
        await asyncio.wait((stopped,), timeout=0.2)
    code, said = stopped.result(), node.log.read_text(errors="replace")
    assert code == 3, f"exit code {code}"
    sentence = next((line for line in said.splitlines() if line.startswith("error:") and "no space left" in line), "")
    assert sentence, f"no sentence about the disk: {said[-400:]}"
    await it.rise(ALL[1:], 2, PROGRESS)
    _fill(ballast)
    await node.start()
    again = await node.ended(CATCH_UP)
    assert again == 3, f"a start on a full disk ends with exit code {again}"
    ballast.unlink()
    await node.start()
    back = await it.rise(ALL, 1, CATCH_UP)
    return {"exit_code": code, "sentence": sentence, "back_s": round(back, 1)}


def _fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(bytes(65_536)) == 65_536:
            pass
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(bytes(512)) == 512:
            pass


# All of them


@contextlib.asynccontextmanager
async def _plain(folder: Path, seed: int, **options: Any) -> AsyncIterator[World]:
    async with world(folder, seed, **options) as made:
        yield made


async def _kills(folder: Path, seed: int, count: int) -> Figures:
    async with _plain(folder, seed, params=replace(FAST, idle_ms=1_000)) as it:
        found = await kills(it, count, seed)
        return found | await judge(it)


async def _outage(folder: Path, seed: int, count: int) -> Figures:
    async with _plain(folder, seed) as it:
        found = await outage(it, 5.0)
        return found | await judge(it)


async def _network(folder: Path, seed: int, count: int) -> Figures:
    rng = random.Random(f"partitions {seed}")
    async with _plain(folder, seed) as it:
        found: Figures = {}
        for number in range(4):
            order, size = rng.sample(ALL, 4), rng.choice((1, 2)) if number > 1 else 2 - number
            cut = (sorted(order[:size]), sorted(order[size:]))
            found[f"partition {number + 1}"] = await partition(it, cut, rng.uniform(2.0, 12.0), breaks=number % 2 == 1)
        found["bad links"] = await bad_links(it, 20.0)
        found["slow peer"] = await slow_peer(it, 10.0)
        return found | await judge(it)


async def _namespaces(folder: Path, seed: int, count: int) -> Figures:
    why = why_not()
    if why:
        return {"skipped": why}
    rng = random.Random(f"namespaces {seed}")
    with Namespaces(4) as spaces:
        async with _plain(folder, seed, prepare=move_in(spaces)) as it:
            found: Figures = {}
            for number, size in enumerate((2, 1, 2)):
                order = rng.sample(ALL, 4)
                cut = (sorted(order[:size]), sorted(order[size:]))
                found[f"partition {number + 1}"] = await partition(it, cut, rng.uniform(2.0, 15.0), spaces=spaces)
            return found | await judge(it)


async def _clocks(folder: Path, seed: int, count: int) -> Figures:
    async with _plain(folder, seed, shifts=(4_000, -4_000, 1_500, 0)) as it:
        found = {"seconds apart": await wrong_clocks(it, 4_000)}
        judged = await judge(it)
    async with _plain(folder / "hour", seed) as it:
        found["an hour ahead"] = await an_hour_ahead(it)
        return found | judged | await judge(it)


async def _disk(folder: Path, seed: int, count: int) -> Figures:
    why = why_no_disk()
    if why:
        return {"skipped": why}
    with contextlib.ExitStack() as stack:
        disks: list[Path] = []
        async with _plain(folder, seed, prepare=lambda n: disks.append(stack.enter_context(small_disk(n, 0)))) as it:
            found = [await full_disk(it, disks[0]) for _ in range(3)]
            return {"times": len(found), **found[0]} | await judge(it)


async def _flood(folder: Path, seed: int, count: int) -> Figures:
    from bench.chaos_flood import CUT_OFF, flood

    async with _plain(folder, seed) as it:
        found = await flood(it, 15.0, seed)
        return found | await judge(it, but=[CUT_OFF])


SCENARIOS: Final[dict[str, Callable[[Path, int, int], Awaitable[Figures]]]] = {
    "kills": _kills, "outage": _outage, "network": _network, "namespaces": _namespaces, "clocks": _clocks, "disk": _disk,
    "flood": _flood,
}  # fmt: skip


async def chaos(count: int, seed: int, only: Sequence[str], folder: Path | None, say: Callable[[str], None]) -> Figures:
    """Every scenario of ``only``, or all. Logs and data stay in ``folder``; without one they go unless something is wrong."""
    home = Path(tempfile.mkdtemp(prefix="pofl-chaos-")) if folder is None else folder
    found: dict[str, Figures] = {}
    problems: list[str] = []
    for name in only or SCENARIOS:
        say(f"{name}, seed {seed}")
        began = time.monotonic()
        try:
            figures = await SCENARIOS[name](home / name, seed, count)
        except (AssertionError, PoflError, OSError, TimeoutError) as error:
            problems.append(f"{name} with seed {seed}: {type(error).__name__}: {error}")
            figures = {}
        found[name] = {**figures, "seconds": round(time.monotonic() - began, 1)}
    if folder is None and not problems:
        shutil.rmtree(home)
    return {"seed": seed, "kills": count, "problems": problems, "scenarios": found,
            "logs": str(home) if problems or folder is not None else ""}  # fmt: skip
