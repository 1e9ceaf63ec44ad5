"""Real nodes under faults, each in its short form; `pofl bench chaos` runs the long ones. Every test prints its seed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import chaos
from bench.chaos_flood import CUT_OFF, flood
from tests import namespaces
from tests.chaos_world import world
from tests.namespaces import Namespaces
from tests.wires import Wires

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
Print = Callable[[object], None]


@pytest.fixture
def report(seed: int, tmp_path: Path) -> Iterator[Print]:
    """Prints what was found; when something is wrong, the ends of the nodes' logs too."""
    print(f"seed {seed}: again with POFL_TEST_SEED={seed}")
    yield lambda found: print(found)
    for log in sorted(tmp_path.glob("*/log")):
        print(f"--- {log.parent.name}\n{log.read_text(errors='replace')[-3000:]}")


def skip_if(reason: str) -> None:
    """When the test runs: what is looked at is the machine's, and other tests use it too."""
    if reason:
        pytest.skip(reason)


async def test_kills_at_random_instants_and_of_more_than_a_third(seed: int, tmp_path: Path, report: Print) -> None:
    assert any(kind == "start" for kind, *_ in chaos.plan_kills(3, seed))
    async with world(tmp_path, seed) as it:
        report(await chaos.kills(it, 3, seed))
        report(await chaos.outage(it, 1.0))
        report(await chaos.judge(it))


async def test_partitions_bad_links_and_slow_peers(seed: int, tmp_path: Path, report: Print) -> None:
    async with world(tmp_path, seed) as it:
        report(await chaos.partition(it, ((0, 1), (2, 3)), 1.5))
        report(await chaos.partition(it, ((2,), (0, 1, 3)), 0.5, breaks=True))
        report(await chaos.bad_links(it, 2.0))
        report(await chaos.slow_peer(it, 0.5))
        report(await chaos.judge(it))


async def test_a_partition_in_network_namespaces(seed: int, tmp_path: Path, report: Print) -> None:
    skip_if(namespaces.why_not())
    with Namespaces(4) as spaces:
        async with world(tmp_path, seed, prepare=chaos.move_in(spaces)) as it:
            report(await chaos.partition(it, ((1, 2), (0, 3)), 1.0, spaces=spaces))
            report(await chaos.judge(it))


async def test_clocks_that_differ_by_seconds_and_a_peer_that_floods(seed: int, tmp_path: Path, report: Print) -> None:
    async with world(tmp_path, seed, shifts=(3_000, -3_000, 1_000, 0)) as it:
        report(await chaos.wrong_clocks(it, 3_000))
        report(await flood(it, 3.0, seed))
        report(await chaos.judge(it, but=[CUT_OFF]))


async def test_a_full_disk_stops_a_node_that_goes_on_when_there_is_room(seed: int, tmp_path: Path, report: Print) -> None:
    skip_if(chaos.why_no_disk())
    with contextlib.ExitStack() as stack:
        disks: list[Path] = []
        async with world(tmp_path, seed, prepare=lambda n: disks.append(stack.enter_context(chaos.small_disk(n, 0)))) as it:
            report(await chaos.full_disk(it, disks[0]))
            report(await chaos.judge(it))


def test_a_plan_of_kills_is_its_seed() -> None:
    for seed in range(20):
        plan = chaos.plan_kills(50, seed)
        assert plan == chaos.plan_kills(50, seed)
        assert sum(len(victims) for _, victims, *_ in plan) == 50
        assert any(kind == "start" for kind, *_ in plan)
        assert all(chaos.UNTOUCHED not in victims for _, victims, *_ in plan)


async def test_the_relays_carry_cut_delay_and_break(seed: int) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    wires = Wires({0: "127.0.0.1:1", 1: f"127.0.0.1:{server.sockets[0].getsockname()[1]}"}, seed)
    await wires.start()
    loop = asyncio.get_running_loop()
    host, _, port = wires.address(0, 1).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        sent = bytes(range(256)) * 1024
        wires.treat(wires.all(), delay=0.02, jitter=0.02, loss=0.01)
        writer.write(sent)
        assert await asyncio.wait_for(reader.readexactly(len(sent)), 60) == sent
        wires.treat(wires.all(), delay=0.1)
        began = loop.time()
        writer.write(b"late")
        assert await asyncio.wait_for(reader.readexactly(4), 60) == b"late"
        assert loop.time() - began >= 0.2
        wires.treat(wires.all())
        wires.cut(((0,), (1,)))
        writer.write(b"held")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(4), 0.3)
        wires.heal()
        assert await asyncio.wait_for(reader.readexactly(4), 60) == b"held"
        wires.cut(((0,), (1,)), breaks=True)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 60)
    finally:
        writer.close()
        await wires.close()
        server.close()
