"""`pofl pool ...` on a pool's book, a miner's book and a chain that paid: honestly, and otherwise."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.chain.block import Payout
from core.codec import encode_as
from core.errors import CheatingError, ConfigError, NotFoundError
from core.ids import AccountId, Amount, Digest, Height, TaskId
from core.market import contributions as c
from core.market.contribution_books import MinerBook, PoolBook, RoundFacts
from services.cli import pool_books
from services.rpc.convert_mining import Member, MinedTask
from services.rpc.views import TaskPhase
from services.storage.journal import Journal
from tests.pool_kit import CHAIN, TASK, keys, task

POOL_KEY, ANN_KEY, BOB_KEY = keys(3, "cli pools")
POOL, ANN, BOB = (AccountId(k.public_key) for k in (POOL_KEY, ANN_KEY, BOB_KEY))
Show = Callable[..., Any]


@dataclass
class World:
    """What a pool shows, and what the chain says."""

    entries: list[c.Entry]
    held: list[c.Entry]
    payouts: list[Payout]
    won: bool = True
    asked: list[TaskId] = field(default_factory=list)

    async def members(self) -> tuple[Member, ...]:
        return (Member(ANN, 100, 200, True), Member(BOB, 60, 60, False))

    async def mined_tasks(self) -> tuple[MinedTask, ...]:
        closed, given_up = MinedTask(TASK, 2, 260, True, 81, 100), MinedTask(TaskId(b"o" * 32), 1, 2, False, 3, 100)
        return (MinedTask(TaskId(b"n" * 32), 0, 0, False, 0, 0), closed, given_up)

    async def contributions(self, task_id: TaskId, after: int = 0) -> tuple[c.Entry, ...]:
        self.asked.append(task_id)
        return tuple(self.entries)

    async def task(self, task_id: TaskId) -> Any:
        assert task_id == TASK
        return replace(task(TaskPhase.WON), winner=POOL if self.won else BOB, ended_height=Height(9))

    async def block(self, height: int) -> Any:
        assert height == 9
        return SimpleNamespace(payouts=tuple(self.payouts))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    pool, ann = PoolBook(POOL_KEY, CHAIN, TASK), MinerBook(ANN_KEY, CHAIN, POOL, TASK)
    entries: list[c.Entry] = []
    held: list[c.Entry] = []
    for number, claims, refused in ((1, {ANN: 100, BOB: 60}, {}), (2, {ANN: 100}, {BOB: "no answer in time"})):
        sheet = pool.add_round(RoundFacts(number, 80 + number, 100, 500, 9_000, 8_000), claims, refused)
        receipt = c.receipt_of(sheet, ANN)
        assert receipt is not None
        entries += [sheet, ann.receive(receipt)]
        held.append(receipt)
    closing = pool.close()
    answer = ann.receive_closing(closing)
    entries += [closing, answer]
    held += [closing, answer]
    found = World(entries, held, list(c.share_out(Amount(850_000), pool.shares, POOL)))

    async def genesis_id() -> Digest:
        return CHAIN

    connection = SimpleNamespace(chain=found, genesis_id=genesis_id, name_of=lambda a: {ANN: "ann", BOB: "bob"}.get(a, "pool"))

    @contextlib.asynccontextmanager
    async def network(*_: object) -> AsyncIterator[Any]:
        yield connection

    monkeypatch.setattr(pool_books, "network", network)
    monkeypatch.setattr(pool_books, "_pool", lambda *_: found)
    return found


async def run(command: Any, *args: object, **kwargs: object) -> None:
    await command.__wrapped__(*args, **kwargs)


async def test_tables_and_json(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (pool_books.members, pool_books.tasks, pool_books.rounds, pool_books.contributions):
        await run(command)
        table = capsys.readouterr().out
        await run(command, as_json=True)
        assert json.loads(capsys.readouterr().out)
        if command is pool_books.rounds:
            assert "bob: no answer in time" in table
            assert "82/100" in table
        if command is pool_books.contributions:
            assert "agreed to the closing" in table
            assert "76.9 %" in table
            assert "block 9 pays what the pool signed, to the last unit" in table
    await run(pool_books.contributions, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    by_miner = {m["miner"]: m for m in shown["members"]}
    assert by_miner[ANN.hex()] == {
        "miner": ANN.hex(), "examples": 200, "rounds": 2, "agreed": 3, "objection": "", "paid": 850_000 * 200 // 260,
    }  # fmt: skip
    assert by_miner[BOB.hex()]["agreed"] == 0


async def test_the_newest_task_with_a_round_is_shown(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    await run(pool_books.contributions)
    assert world.asked == [TASK], "a task that has no round yet has nothing to show"
    world.entries = []
    with pytest.raises(NotFoundError, match=r"no round of task .* name another with --task"):
        await run(pool_books.rounds, b"n".hex())
    capsys.readouterr()
    await run(pool_books.tasks)
    shown = capsys.readouterr().out
    assert [word for word in ("training", "closed", "given up") if word in shown] == ["training", "closed", "given up"]


async def test_a_pool_that_pays_other_than_it_signed_ends_with_an_error(world: World, tmp_path: Path) -> None:
    world.payouts = [Payout(POOL, Amount(850_000))]
    with pytest.raises(CheatingError, match="is owed"):
        await run(pool_books.contributions)
    keep(world, tmp_path)
    with pytest.raises(CheatingError, match="is owed"):
        await run(pool_books.contributions, None, tmp_path)
    world.entries = world.entries[:4]
    with pytest.raises(CheatingError, match="no signed closing"):
        await run(pool_books.contributions)
    world.entries = world.entries[2:]
    with pytest.raises(CheatingError, match="begins with head 2"):
        await run(pool_books.rounds)


def keep(world: World, folder: Path) -> Path:
    path = folder / "contributions" / POOL.hex() / f"{TASK.hex()}.log"
    journal = Journal(path)
    journal.append(encode_as(c.ENTRY, entry) for entry in world.held)
    journal.close()
    return path


async def test_a_miner_checks_its_pay_without_the_pool(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="data_dir of a miner"):
        await run(pool_books.contributions, None, tmp_path)
    path = keep(world, tmp_path)
    await run(pool_books.contributions, None, tmp_path)
    shown = capsys.readouterr().out
    assert "2 receipts of ann" in shown
    assert "200 examples of 260" in shown
    assert f"paid in block 9: {850_000 * 200 // 260}" in shown
    await run(pool_books.contributions, TASK.hex()[:8], tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out)["examples"] == 200
    assert world.asked == []
    world.won = False
    await run(pool_books.contributions, None, tmp_path)
    assert "nothing is paid" in capsys.readouterr().out
    path.unlink()
    world.held = [e for e in world.held if not isinstance(e, c.RoundReceipt)]
    keep(world, tmp_path)
    with pytest.raises(NotFoundError, match="no receipts"):
        await run(pool_books.contributions, None, tmp_path)


async def test_what_a_miner_holds_must_not_contradict_itself(world: World, tmp_path: Path) -> None:
    receipt = world.held[0]
    assert isinstance(receipt, c.RoundReceipt)
    short = c.sign_closing(POOL_KEY, replace(world.held[2].closing, shares=(c.Share(ANN, 1),)))  # type: ignore[union-attr]
    forked = PoolBook(POOL_KEY, CHAIN, TASK).add_round(RoundFacts(1, 0, 1, 1, 1, 1), {ANN: 1}, {})
    other = c.receipt_of(forked, ANN)
    assert other is not None
    for number, (extra, said) in enumerate(((short, "two closings"), (other, "two heads"))):
        held = world.held
        world.held = [*held, extra]
        keep(world, tmp_path / str(number))
        with pytest.raises(CheatingError, match=said):
            await run(pool_books.contributions, None, tmp_path / str(number))
        world.held = held
    world.held = [*world.held[:2], short]
    keep(world, tmp_path)
    with pytest.raises(CheatingError, match="the closing counts 1"):
        await run(pool_books.contributions, None, tmp_path)


async def test_a_task_is_named_by_its_first_digits(world: World) -> None:
    await run(pool_books.rounds, TASK.hex()[:8])
    assert world.asked == [TASK]
    with pytest.raises(NotFoundError, match="0 of them begin with ffff"):
        await run(pool_books.rounds, "ffff")
