"""What a node holds of a work height, through a kill: with the pool gone, nobody else could give it again (docs/adr/0071)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest
from grpc import aio

from core.chain.consensus import Consensus
from core.chain.messages import BlockAvailable
from core.chain.state import Entry
from core.errors import CorruptError, StorageFullError
from core.ids import Height, ModelCommitment
from core.verification.body import Blame
from core.verification.body import commitment as commitment_of
from core.verification.receipt import AnswerKind, sign_answer
from node import work as work_module
from node.held import Held, WorkPart
from node.keeping import Keeping
from node.transcripts import TranscriptStore
from node.work import WorkHeights
from services.storage import KeyValueStore, Memory
from tests.chainkit import Chain, key
from tests.unit.test_node_answers import HER, answer

CHAIN = Chain()
TASK = CHAIN.to_work_height(pool0=900, pool1=950)
STATE = CHAIN.state
HEIGHT = Height(STATE.height + 1)
TOP, LOWER = STATE.ranking(TASK)


def model(entry: Entry) -> ModelCommitment:
    assert entry.claim is not None
    return entry.claim.vm.model_commitment


class FakeDriver:
    def __init__(self) -> None:
        self.state, self.is_validator, self.told = STATE, False, list[Any]()
        self.machine = Consensus(STATE, CHAIN.certificate(), key("v0"))

    def tell(self, event: Any, height: Any = None) -> None:
        assert height == HEIGHT
        self.told.append(event)


class Nobody:
    """The pool is gone, and there is no peer."""

    def __init__(self) -> None:
        self.asked = 0

    async def get(self, target: str, role: str) -> aio.Channel:
        self.asked += 1
        raise StorageFullError("no way there")


def life(kv: KeyValueStore, held: Held | None = None) -> tuple[WorkHeights, FakeDriver, Nobody]:
    """A node's part for work heights, over what its former lives left on disk."""
    driver, channels, nothing = FakeDriver(), Nobody(), cast(Any, None)
    kept = Keeping(held or Held(kv))
    work = WorkHeights(cast(Any, driver), nothing, nothing, cast(Any, channels), lambda: (), TranscriptStore(Memory()), kept)
    work.enter(STATE)
    return work, driver, channels


async def ready(work: WorkHeights) -> None:
    async with asyncio.timeout(60):
        await work._place.restored.wait()


BLOCK = CHAIN.work_block("pool1")


async def test_a_work_block_is_there_after_a_kill_and_the_machine_learns_of_it() -> None:
    kv = Memory()
    work, _, _ = life(kv)
    await work.offer(BLOCK)
    # No stop: it was killed.
    again, driver, _ = life(kv)
    await ready(again)
    assert again.block(HEIGHT, model(TOP)) == BLOCK
    assert driver.told == [BlockAvailable(BLOCK)]
    assert again.block(HEIGHT, model(LOWER)) is None
    # The pool that comes back with it is no liar, and with another one it is.
    await again.offer(BLOCK)
    assert driver.told == [BlockAvailable(BLOCK)]
    other = CHAIN.work_block("pool1", after_ms=7)
    await again.offer(other)
    assert driver.told == [BlockAvailable(BLOCK), BlockAvailable(other)]


async def test_the_block_is_on_disk_before_the_machine_may_vote_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kv, seen = Memory(), list[bytes | None]()
    work, driver, _ = life(kv)
    monkeypatch.setattr(driver, "tell", lambda *_: seen.append(Held(kv).get(WorkPart.BLOCK, model(TOP))))
    await work.offer(BLOCK)
    assert seen == [BLOCK.to_bytes()]


async def test_a_body_that_was_fetched_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kv, body = Memory(), b"a body" * 1000
    entry = TOP

    async def peers(self: WorkHeights, entry: Entry) -> Any:
        yield "pool", None

    async def fetch(channel: Any, commitment: ModelCommitment, timeout: float, *, peer: str) -> bytes:
        return body

    with monkeypatch.context() as here:
        here.setattr(work_module, "commitment_of", lambda *_: model(entry))
        here.setattr(work_module, "fetch_vm", fetch)
        here.setattr(WorkHeights, "_sources", peers)
        first, _, _ = life(kv)
        assert await first._get_body(first._place, entry) == body
    again, _, channels = life(kv)
    async with asyncio.timeout(60):
        assert await again._get_body(again._place, entry) == body
    assert channels.asked == 0
    assert await again.body(model(entry)) == body
    assert again.body_bytes(model(entry)) == len(body)


async def test_a_body_that_is_wrong_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kv = Memory()

    async def peers(self: WorkHeights, entry: Entry) -> Any:
        yield "liar", None

    async def fetch(channel: Any, commitment: ModelCommitment, timeout: float, *, peer: str) -> bytes:
        return b"another one's body"

    assert commitment_of(STATE.chain_id, TASK, TOP.pool, b"another one's body") != model(TOP)
    monkeypatch.setattr(work_module, "fetch_vm", fetch)
    monkeypatch.setattr(WorkHeights, "_sources", peers)
    work, _, _ = life(kv)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await work._get_body(work._place, TOP)
    assert Held(kv).used == 0


async def test_an_opening_is_there_after_a_kill_for_whoever_shows_her_word(monkeypatch: pytest.MonkeyPatch) -> None:
    kv = Memory()
    malformed = sign_answer(HER, answer(0, AnswerKind.MALFORMED))

    async def peers(self: WorkHeights, entry: Entry) -> Any:
        yield "pool", None

    async def fetch(channel: Any, commitment: ModelCommitment, signed: Any, timeout: float, *, peer: str) -> bytes:
        return b"an opening"

    loaded: Any = type("Loaded", (), {"public_key": None, "task": type("Task", (), {"family": None})})
    with monkeypatch.context() as here:
        here.setattr(work_module, "judge_opening", lambda *_: Blame.REQUESTER)
        here.setattr(work_module, "fetch_opening", fetch)
        here.setattr(WorkHeights, "_sources", peers)
        first, _, _ = life(kv)
        assert await first._get_opening(first._place, TOP, malformed, b"", loaded) == b"an opening"
    again, _, channels = life(kv)
    async with asyncio.timeout(60):
        assert await again._get_opening(again._place, TOP, malformed, b"", loaded) == b"an opening"
    assert channels.asked == 0
    assert again.opening(model(TOP), malformed) == b"an opening"


async def test_after_its_height_only_bodies_stay() -> None:
    kv = Memory()
    held = Held(kv)
    for part in WorkPart:
        assert held.put(HEIGHT, part, model(TOP), BLOCK.to_bytes())
    kv.put_batch({}, held.decided(HEIGHT))
    again, driver, _ = life(kv, held)
    await ready(again)
    assert driver.told == []
    assert await again.body(model(TOP)) == BLOCK.to_bytes()
    # A put that comes late, from a thread that nobody waits for any more, would never be deleted.
    assert not held.put(HEIGHT, WorkPart.BLOCK, model(TOP), b"late")
    assert held.get(WorkPart.BLOCK, model(TOP)) is None


class Broken(Memory):
    """A disk that is full, or gives back an error."""

    full = damaged = False

    def put_batch(self, *args: Any, **kwargs: Any) -> None:
        if self.full:
            raise StorageFullError("no space left")
        super().put_batch(*args, **kwargs)

    def get(self, key: bytes) -> bytes | None:
        if self.damaged:
            raise CorruptError("a checksum does not hold")
        return super().get(key)


async def test_a_full_disk_or_a_damaged_part_costs_no_claim() -> None:
    kv = Broken()
    work, driver, _ = life(kv)
    await ready(work)
    kv.full = True
    await work.offer(BLOCK)
    assert driver.told == [BlockAvailable(BLOCK)]
    kv.full, kv.damaged = False, True
    again, driver, _ = life(kv)
    await ready(again)
    await again.offer(BLOCK)
    assert driver.told == [BlockAvailable(BLOCK)]


async def test_what_does_not_apply_any_more_is_not_believed() -> None:
    kv = Memory()
    Held(kv).put(HEIGHT, WorkPart.BLOCK, model(TOP), b"no block")
    Held(kv).put(HEIGHT, WorkPart.BLOCK, model(LOWER), CHAIN.blocks[-1].to_bytes())
    work, driver, _ = life(kv)
    await ready(work)
    assert driver.told == []


async def test_a_put_is_finished_when_its_height_is_left_and_before_the_store_closes() -> None:
    kv = Memory()
    held = Held(kv)
    kept = Keeping(held)
    put = asyncio.create_task(kept.put(HEIGHT, WorkPart.BODY, model(TOP), b"x" * 100))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    put.cancel()
    await kept.settled()
    assert held.used == 100


async def test_many_threads_may_put_at_once() -> None:
    kv = Memory()
    held = Held(kv)
    names: Sequence[ModelCommitment] = [ModelCommitment(bytes([i]) * 32) for i in range(40)]
    kept = Keeping(held)
    await asyncio.gather(*(kept.put(HEIGHT, WorkPart.BODY, name, name) for name in names))
    again = Held(kv)
    assert set(again.commitments(HEIGHT, WorkPart.BODY)) == set(names)
    assert all(again.get(WorkPart.BODY, name) == name for name in names)
