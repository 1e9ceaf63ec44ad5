"""Peers, pools and requesters who lie to the parts of a node beside its driver: sync, work heights, test sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from core.chain.block import Block, Certificate
from core.chain.consensus import Consensus
from core.chain.messages import BlockAvailable, Event
from core.chain.state import State
from core.errors import BlockError
from core.ids import BlockHash, Height, NodeId
from node import sync as sync_module
from node.held import Held
from node.keeping import Keeping
from node.sync import Sync
from node.task_sets import TaskSets
from node.work import WorkHeights
from services.rpc.blob_store import BlobStore
from services.rpc.channel import Connection
from services.rpc.convert_peer import Progress
from services.runtime.cpu import CpuPool
from services.storage import Memory
from tests.chainkit import Chain, key

LIAR, HONEST = NodeId(b"l" * 32), NodeId(b"h" * 32)


class Wire:
    def __init__(self, target: str) -> None:
        self.channel, self.target = target, target


class Target:
    def __init__(self) -> None:
        self.height = Height(0)
        self.is_there = asyncio.Event()

    async def take_final(self, block: Block, certificate: Certificate) -> None:
        self.height = certificate.height
        if self.height == 20:
            self.is_there.set()


async def test_a_peer_that_lies_about_its_height_does_not_keep_us_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sync_module, "GRACE_SECONDS", 0.0)

    async def fetch(channel: str, first: Height, count: int, timeout: float, *, peer: str) -> AsyncIterator[Any]:
        asked.append(channel)
        # All the time it says how far it is.
        sync.progress(LIAR, Progress(Height(10**9), 0, BlockHash(bytes(32))))
        if channel == "honest":
            yield None, Certificate(first, 0, BlockHash(bytes(32)), ())
        else:
            await asyncio.sleep(0.001)

    monkeypatch.setattr(sync_module, "fetch_blocks", fetch)
    target = Target()
    wires = {LIAR: Wire("liar"), HONEST: Wire("honest")}
    sync = Sync(target, lambda node: cast(Connection, wires[node]))
    running = asyncio.create_task(sync.run())
    sync.progress(HONEST, Progress(Height(21), 0, BlockHash(bytes(32))))
    sync.progress(LIAR, Progress(Height(10**9), 0, BlockHash(bytes(32))))
    try:
        async with asyncio.timeout(2):
            await target.is_there.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert asked.count("liar") <= 2


class FakeDriver:
    def __init__(self, chain: Chain) -> None:
        self.state = chain.state
        self.machine = Consensus(chain.state, chain.certificate(), key("v0"))
        self.told: list[Event] = []

    def tell(self, event: Event, height: Height | None = None) -> None:
        self.told.append(event)


async def test_a_pool_that_signs_many_work_blocks_is_heard_twice() -> None:
    chain = Chain()
    chain.to_work_height(pool0=900)
    driver: Any = FakeDriver(chain)
    nothing: Any = None
    work = WorkHeights(driver, nothing, nothing, nothing, lambda: (), nothing, Keeping(Held(Memory())))
    first, second, third = (chain.work_block("pool0") for _ in range(3))
    assert await work.offer(first)
    assert await work.offer(first)
    assert await work.offer(second)
    for again in (third, second):
        with pytest.raises(BlockError, match="third work block"):
            await work.offer(again)
    assert driver.told == [BlockAvailable(first), BlockAvailable(second)]
    commitment = first.header.decoded().vm
    assert commitment is not None
    assert work.block(Height(chain.state.height + 1), commitment.model_commitment) == first


async def test_blobs_of_a_task_that_nobody_entered_go_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain()
    nothing: Any = None
    cpu = CpuPool(1, queue=1)
    blobs = BlobStore(tmp_path, 1 << 20)
    sets = TaskSets(NodeId(key("v0").public_key), blobs, nothing, nothing, cpu, lambda: (), nothing)

    async def idle(_: object) -> None: ...

    gone: list[bytes] = []
    monkeypatch.setattr(sets, "_work_on", idle)
    monkeypatch.setattr(blobs, "delete", gone.append)
    sets.follow(chain.state)
    task = chain.publish()
    sets.follow(chain.state)
    assert gone == []
    chain.block()
    windows = chain.state.windows(task)
    assert windows is not None
    ended: State = chain.until(windows.entry_close_ms)
    assert not ended.live
    assert not ended.settling
    sets.follow(ended)
    spec = ended.tasks[task].published.spec
    assert set(gone) == {spec.public_key_blob, *spec.test_blobs}
    await sets.stop()
