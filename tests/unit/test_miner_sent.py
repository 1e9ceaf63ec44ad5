"""What a miner sent outlives it: its word on a round is the same after a kill, whatever the pool makes of that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pool.miner.sent as module
from core.errors import LimitError, StorageError
from core.ids import AccountId, TaskId
from core.market import contributions as c
from core.market.contribution_books import PoolBook, RoundFacts
from pool.flower.manager import count_start
from pool.miner.contributions import ContributionDesk
from pool.miner.sent import SentRounds
from services.storage.journal import Journal
from tests.pool_kit import CHAIN, TASK
from tests.unit.test_contributions import ANN, BOB, KEY_OF, POOL, POOL_KEY

CHILD = """
import os, signal, sys
from pathlib import Path
from pool.miner.sent import SentRounds
pool, task = bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
sent = SentRounds(Path(sys.argv[1]))
sent.note(pool, task, 1, 100)
sent.note(pool, task, 2, 100)
os.kill(os.getpid(), signal.SIGKILL)
"""


class Pool:
    """A pool with its book, as a miner's desk sees it."""

    def __init__(self) -> None:
        self.book = PoolBook(POOL_KEY, CHAIN, TASK)
        self.answers: list[c.Answer] = []

    def round(self, number: int, claims: dict[AccountId, int]) -> c.RoundSheet:
        return self.book.add_round(RoundFacts(number, 1, 2, 3, 4, 5), claims, {})

    async def countersign(self, answer: c.SignedAnswer) -> None:
        self.answers.append(answer.answer)

    async def contributions(self, task_id: TaskId | None = None, after: int = 0) -> tuple[c.Entry, ...]:
        return tuple(self.book.sheets[after:])


def killed(folder: Path) -> ContributionDesk:
    """The desk of a miner whose former process noted two rounds and was killed before anything came back."""
    command = [sys.executable, "-c", CHILD, str(folder), POOL.hex(), TASK.hex()]
    assert subprocess.run(command, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == -signal.SIGKILL
    return ContributionDesk(folder, KEY_OF[ANN], CHAIN)


@pytest.mark.parametrize(
    ("second", "objection"),
    [
        ({ANN: 100, BOB: 50}, ""),
        ({ANN: 30, BOB: 50}, "30 examples claimed, this miner sent 100"),
        ({BOB: 50}, "round 2: this miner answered, and has no line"),
    ],
)
async def test_a_killed_miner_holds_the_pool_to_what_it_sent(
    tmp_path: Path, second: dict[AccountId, int], objection: str
) -> None:
    desk, pool = killed(tmp_path), Pool()
    pool.round(1, {ANN: 100, BOB: 50})
    pool.round(2, second)
    await desk.take(POOL, pool.book.close(), pool)
    (answer,) = pool.answers
    assert objection in answer.objection
    assert bool(answer.objection) == bool(objection)


async def test_an_objection_stands_after_every_start(tmp_path: Path) -> None:
    desk, pool = killed(tmp_path), Pool()
    low = c.receipt_of(pool.round(1, {ANN: 7, BOB: 50}), ANN)
    assert low is not None
    for _ in range(2):
        await desk.take(POOL, low, pool)
        desk = ContributionDesk(tmp_path, KEY_OF[ANN], CHAIN)
    await desk.take(POOL, pool.book.close(), pool)
    assert len(pool.answers) == 3
    assert all("7 examples claimed, this miner sent 100" in answer.objection for answer in pool.answers)


def test_a_full_disk_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = ContributionDesk(tmp_path, KEY_OF[ANN], CHAIN)

    def full(self: Journal, records: object) -> None:
        raise StorageError(f"no space left for {self.path}")

    monkeypatch.setattr(Journal, "append", full)
    with pytest.raises(StorageError, match="cannot write down") as caught:
        desk.note_sent(POOL, TASK, 1, 100)
    assert str(tmp_path) not in str(caught.value), "the reason goes to the pool"


def test_notes_are_of_one_pool_and_one_task(tmp_path: Path) -> None:
    sent, other = SentRounds(tmp_path), TaskId(b"o" * 32)
    sent.note(POOL, TASK, 1, 10)
    sent.note(POOL, TASK, 1, 12)
    assert dict(SentRounds(tmp_path).rounds(POOL, TASK)) == {1: 12}
    assert dict(sent.rounds(POOL, other)) == dict(sent.rounds(BOB, TASK)) == {}
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".sent"], "a question makes no file"


def test_a_pool_that_makes_up_tasks_does_not_make_its_miner_forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_FILES", 4)
    monkeypatch.setattr(module, "MOST_FILES", 8)
    sent = SentRounds(tmp_path)
    sent.note(POOL, TASK, 1, 100)
    made_up = [TaskId(bytes([number]) * 32) for number in range(1, 12)]
    for task in made_up[:7]:
        sent.note(POOL, task, 1, 100)
    with pytest.raises(LimitError, match="books of 8 tasks within a day"):
        sent.note(POOL, made_up[7], 1, 100)
    assert dict(SentRounds(tmp_path).rounds(POOL, TASK)) == {1: 100}
    for path in (tmp_path / POOL.hex()).iterdir():
        os.utime(path, (time.time() - 100_000,) * 2)
    sent.note(POOL, made_up[-1], 1, 100)
    assert len(list((tmp_path / POOL.hex()).iterdir())) == 4


def test_managers_of_one_job_are_counted(tmp_path: Path) -> None:
    """So that none counts a round anew under a number in which miners answered a killed one."""
    assert [count_start(tmp_path / "starts") for _ in range(3)] == [0, 1, 2]
