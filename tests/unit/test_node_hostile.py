"""Peers, pools and requesters who lie to the parts of a node beside its driver: sync, work heights, test sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.chain.consensus import Consensus
from core.chain.messages import BlockAvailable, Event
from core.chain.state import State
from core.errors import BlockError
from core.ids import Height, NodeId
from node.held import Held
from node.keeping import Keeping
from node.task_sets import TaskSets
from node.work import WorkHeights
from services.rpc.blob_store import BlobStore
from services.runtime.cpu import CpuPool
from services.storage import Memory
from tests.chainkit import Chain, key


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
