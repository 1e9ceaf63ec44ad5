"""A pool's and a miner's books on disk, member to pool: kills, gaps, lies, and books that anybody may read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pofl.mining.v1 import mining_pb2 as pb

from core.codec import decode_as
from core.errors import CorruptError, LimitError, NotFoundError, StorageError, UnavailableError
from core.ids import AccountId, TaskId
from core.market import contributions as c
from core.market.contribution_books import PoolBook, RoundFacts, audit
from pool.flower.jobs import RoundReport
from pool.manager import books as module
from pool.manager import servicer
from pool.manager.books import JOURNAL, Books
from pool.manager.key_owners import KeyOwners
from pool.miner import contributions as desk_module
from pool.miner.contributions import ContributionDesk
from services.rpc.convert_mining import Assignment
from services.storage.journal import Journal, read_journal
from tests.pool_kit import CHAIN, TASK, keys

POOL_KEY, ANN_KEY, BOB_KEY = keys(3, "pool books")
POOL, ANN, BOB = (AccountId(k.public_key) for k in (POOL_KEY, ANN_KEY, BOB_KEY))
FLOWER = {b"\x02" + b"a" * 32: ANN, b"\x02" + b"b" * 32: BOB}
A, B = (key.hex() for key in FLOWER)
OTHER = TaskId(b"o" * 32)


def report(number: int, accepted: dict[str, int], refused: dict[str, str] | None = None, again: bool = False) -> RoundReport:
    return RoundReport(number, 0.5, 2, accepted, refused or {}, 60 + number, 100, 0.5, 10, 20, {}, again)


class World:
    """A pool's books and one miner's, joined without a network. ``deaf``: what the pool shows does not arrive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown: list[tuple[AccountId, Assignment]] = []
        self.deaf = False
        self.tasks: list[asyncio.Task[None]] = []
        self.start_pool()
        self.start_miner()

    def start_pool(self) -> None:
        self.books = Books(self.folder / "tasks", POOL_KEY, CHAIN, self.tell, 4, 0)

    def start_miner(self) -> None:
        self.desk = ContributionDesk(self.folder / "miner", ANN_KEY, CHAIN)

    def tell(self, miner: AccountId, shown: Assignment) -> None:
        self.shown.append((miner, shown))
        if miner == ANN and not self.deaf:
            assert isinstance(shown, c.RoundReceipt | c.SignedClosing)
            self.tasks.append(asyncio.create_task(self.desk.take(POOL, shown, self)))

    async def countersign(self, answer: c.SignedAnswer) -> None:
        await self.books.answer(answer)

    async def contributions(self, task_id: TaskId | None = None, after: int = 0) -> tuple[c.Entry, ...]:
        return tuple([decode_as(c.ENTRY, entry) async for entry in self.books.entries(task_id, after)])

    async def quiet(self) -> None:
        book = await self.books.open(TASK)
        await book.settle()
        while self.tasks:
            await self.tasks.pop()
        await book.settle()

    async def round(self, number: int, mine: int | None = 100, again: bool = False) -> None:
        if mine is not None:
            self.desk.note_sent(POOL, TASK, number, mine)
        book = await self.books.open(TASK)
        book.record(report(number, {A: 100, B: 50}, again=again), FLOWER.get)
        await self.quiet()

    def held(self) -> list[c.Entry]:
        return [decode_as(c.ENTRY, record) for record in read_journal(self.folder / "miner" / POOL.hex() / f"{TASK.hex()}.log")]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(desk_module, "FETCH_SECONDS", 3600.0)
    found = World(tmp_path)
    yield found
    await asyncio.gather(*found.tasks, return_exceptions=True)


async def test_both_keep_what_both_signed(world: World) -> None:
    await world.round(1)
    await world.round(2)
    closing = await (await world.books.open(TASK)).close()
    await world.quiet()
    found = audit(await world.contributions(), CHAIN, POOL, TASK)
    assert found.sums == {ANN: 200, BOB: 100}
    assert (found.agreed, found.objections) == ({ANN: 3}, {})
    held = world.held()
    assert closing in held
    assert sum(e.line.counted for e in held if isinstance(e, c.RoundReceipt)) == 200
    assert len([e for e in held if isinstance(e, c.SignedAnswer)]) == 3
    (task,) = await world.books.tasks()
    assert (task.task_id, task.rounds, task.counted, task.is_closed) == (TASK, 2, 300, True)
    assert (task.best_correct, task.rows) == (62, 100)


async def test_a_killed_pool_stands_by_what_it_signed(world: World) -> None:
    await world.round(1)
    world.start_pool()
    await world.round(1, mine=None, again=True)
    await world.round(2)
    world.start_pool()
    await world.round(3, mine=None, again=True)
    book = await world.books.open(TASK)
    closing = await book.close()
    await world.quiet()
    assert audit(await world.contributions(), CHAIN, POOL, TASK).sums == {ANN: 300, BOB: 150}
    world.start_pool()
    assert (await (await world.books.open(TASK)).close()) == closing
    shown = world.books.greeting(ANN)
    assert shown[-1] == closing
    assert isinstance(shown[0], c.RoundReceipt)
    assert world.books.greeting(POOL) == ()


async def test_a_round_is_on_the_disk_before_anybody_sees_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.round(1)
    seen = len(world.shown)

    def full(self: Journal, records: Sequence[bytes]) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(Journal, "append", full)
    book = await world.books.open(TASK)
    book.record(report(2, {A: 100}), FLOWER.get)
    with pytest.raises(StorageError):
        await book.settle()
    assert len(world.shown) == seen
    with pytest.raises(StorageError):
        await book.close()


async def test_a_miner_that_was_away_fetches_what_it_missed_and_agrees(world: World) -> None:
    await world.round(1)
    world.deaf = True
    await world.round(2)
    await world.round(3)
    world.start_miner()
    world.deaf = False
    await (await world.books.open(TASK)).close()
    await world.quiet()
    found = audit(await world.contributions(), CHAIN, POOL, TASK)
    assert found.agreed == {ANN: 4}
    assert sum(e.line.counted for e in world.held() if isinstance(e, c.RoundReceipt)) == 300


async def test_an_objection_outlives_a_restart_of_either_side(world: World) -> None:
    await world.round(1, mine=400)
    world.start_miner()
    world.start_pool()
    await (await world.books.open(TASK)).close()
    await world.quiet()
    found = audit(await world.contributions(), CHAIN, POOL, TASK)
    assert "this miner sent 400" in found.objections[ANN]
    assert ANN not in found.agreed


async def test_a_pool_with_two_faces_leaves_proof_with_the_miner(world: World) -> None:
    await world.round(1)
    other = PoolBook(POOL_KEY, CHAIN, TASK).add_round(RoundFacts(1, 0, 1, 1, 1, 1), {ANN: 1, BOB: 99}, {})
    receipt = c.receipt_of(other, ANN)
    assert receipt is not None
    for _ in range(2):
        await world.desk.take(POOL, receipt, world)
    (proof,) = (
        decode_as(c.ENTRY, r) for r in read_journal(world.folder / "miner" / POOL.hex() / f"proof-{TASK.hex()[:8]}.log")
    )
    first = next(e for e in world.held() if isinstance(e, c.RoundReceipt))
    c.contradiction(first.signed, proof.signed)
    assert audit(await world.contributions(), CHAIN, POOL, TASK).agreed == {ANN: 1}, "no word was given on the other face"


async def test_keys_of_nobody_are_not_paid_and_refusals_have_reasons(world: World) -> None:
    book = await world.books.open(TASK)
    book.record(report(1, {A: 10, "02" * 33: 10}, {B: "norm 7 above the ceiling"}), FLOWER.get)
    await world.quiet()
    sheet = book.last_sheet
    assert sheet is not None
    assert [(line.miner, line.counted, line.reason) for line in sheet.lines] == sorted(
        [(ANN, 10, ""), (BOB, 0, "norm 7 above the ceiling")]
    )


async def test_anybody_may_read_but_not_all_at_once(world: World) -> None:
    with pytest.raises(NotFoundError, match="no task yet"):
        await world.contributions()
    for number in (1, 2, 3):
        await world.round(number)
    assert [e.signed.head.number for e in await world.contributions(TASK, 1) if isinstance(e, c.RoundSheet)] == [2, 3]
    assert len(await world.contributions(TASK, 99)) == 0
    with pytest.raises(NotFoundError, match="no book of that task"):
        await world.contributions(OTHER)
    readers = [world.books.entries(TASK, 0, str(number)) for number in range(module.READERS + 1)]
    for reader in readers[:-1]:
        await anext(reader)
    with pytest.raises(UnavailableError, match="try again"):
        await anext(readers[-1])
    await readers[0].aclose()
    with pytest.raises(UnavailableError, match="you read"):
        await anext(world.books.entries(TASK, 0, "1"))
    assert await anext(world.books.entries(TASK, 0, "0"))


class SlowReader:
    """A caller of ListContributions. ``reads``: how many entries it takes before it stops."""

    def __init__(self, reads: int) -> None:
        self.reads, self.got = reads, list[bytes]()

    async def write(self, response: pb.ListContributionsResponse) -> None:
        if len(self.got) >= self.reads:
            await asyncio.Event().wait()
        self.got.append(response.entry)


async def test_who_does_not_read_loses_its_place_to_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        await world.round(number)
    monkeypatch.setattr(servicer, "READ_SECONDS", 0.2)
    names = iter(range(100))
    monkeypatch.setattr("pool.manager.servicer.auth.caller", lambda _: next(names))
    unused: Any = None
    service = servicer.PoolServicer(CHAIN, unused, unused, unused, world.books)

    async def read(reader: SlowReader) -> None:
        context: Any = reader
        assert [_ async for _ in service.ListContributions(pb.ListContributionsRequest(task_id=TASK), context)] == []

    idle = [SlowReader(number % 3) for number in range(module.READERS)]
    waiting = asyncio.gather(*map(read, idle), return_exceptions=True)
    await asyncio.sleep(0)  # each has its place in its first step
    with pytest.raises(UnavailableError, match="many others do"):
        await read(SlowReader(99))
    ended = await waiting
    assert all(isinstance(end, LimitError) and "was not read within 0.2 s" in end.message for end in ended)
    monkeypatch.setattr(servicer, "READ_SECONDS", 60)
    quick = SlowReader(99)
    await read(quick)
    assert len(quick.got) == len(await world.contributions(TASK))


async def test_only_the_last_books_take_answers(world: World) -> None:
    await world.round(1)
    answer = next(e for e in world.held() if isinstance(e, c.SignedAnswer))
    for number in range(module.KEPT_OPEN):
        await world.books.open(TaskId(bytes([number]) * 32))
    with pytest.raises(NotFoundError, match="any more"):
        await world.countersign(answer)


async def test_a_damaged_or_foreign_book_is_named(world: World) -> None:
    await world.round(1)
    path = world.folder / "tasks" / TASK.hex() / JOURNAL
    foreign = world.folder / "tasks" / OTHER.hex() / JOURNAL
    foreign.parent.mkdir()
    foreign.write_bytes(path.read_bytes())
    with pytest.raises(CorruptError, match=JOURNAL):
        await world.books.open(OTHER)


def test_owners_of_flower_keys_outlive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "flower-keys.log"
    for key, account in FLOWER.items():
        KeyOwners(path).remember(key, account)
    assert KeyOwners(path).owners == FLOWER
    monkeypatch.setattr("pool.manager.key_owners.MAX_KEYS", 1)
    for number in range(5):
        KeyOwners(path).remember(bytes([number]) * 33, BOB)
    assert KeyOwners(path).owners == {bytes([4]) * 33: BOB}
    assert len(read_journal(path)) < 7
    path.write_bytes(b"damaged, as a whole")
    assert KeyOwners(path).owners == {}


def test_the_list_of_key_owners_is_shortened_while_the_pool_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pool.manager.key_owners.MAX_KEYS", 4)
    path = tmp_path / "owners.log"
    known = KeyOwners(path)
    for number in range(100):
        known.remember(bytes([number]) * 33, BOB)
        assert len(read_journal(path)) <= 16
    assert list(KeyOwners(path).owners) == [bytes([number]) * 33 for number in range(96, 100)]
