"""Deadlines, admission, and what a pool finds again after it was killed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from core.chain.block import Block, SignedHeader
from core.codec import encode
from core.crypto.homomorphic import PARAMS, generate_keys, public_key
from core.errors import BudgetError, CheatingError, CorruptError, DeadlineError, NotFoundError, StorageError
from core.ids import AccountId, Signature
from core.params import ChainParams
from core.verification.body import commitment, decrypt_body, make_body
from core.verification.scored_model import ModelFamily
from core.verification.task import key_context
from pool.manager.archive import Claimed, Committed, Contribution, TaskFolder
from pool.manager.board import Board, TaskFeed
from pool.manager.jobs import model_of
from pool.manager.scoring import Scoring
from pool.manager.season import Windows, is_admitted
from pool.manager.supplies import Supplies
from services.rpc.convert_mining import Progress
from services.rpc.verify_client import EvaluationClient
from services.rpc.views import TaskPhase
from tests.models import random_model
from tests.pool_kit import CHAIN, T0, TASK, entry, spec, task
from tests.seeded import SeededRng

POOL = AccountId(b"p" * 32)


def test_training_ends_a_shortest_window_and_a_second_before_commits_close() -> None:
    least = ChainParams().min_window_ms(4)
    windows = Windows.of(task(), least)
    assert windows.training_end_ms == T0 + 24_000 - 4_125 - 1_000
    assert windows.entry_close_ms == T0 + 5_000
    assert windows.claim_close_ms == T0 + 31_000
    with pytest.raises(NotFoundError, match="no windows yet"):
        Windows.of(replace(task(), entry_close_ms=None), least)


def test_the_highest_bonds_are_admitted_ties_to_the_earlier() -> None:
    entries = [entry(1, bond=50), entry(2, bond=70), entry(3, bond=50), entry(4, bond=60)]
    view = task(TaskPhase.TRAINING, entries)
    assert [is_admitted(view, e.pool, 3) for e in entries] == [True, True, False, True]
    assert [is_admitted(view, e.pool, 4) for e in entries] == [True] * 4
    assert not is_admitted(view, POOL, 4)


def test_a_model_is_found_again_as_it_was_committed(tmp_path: Path) -> None:
    family = ModelFamily.of(spec())
    model = random_model(family.dims, family.activation, 1)
    sk = generate_keys(PARAMS, key_context(CHAIN, TASK), SeededRng("key"))
    body, opening = make_body(public_key(sk), model, SeededRng("body"))
    c_w = commitment(CHAIN, TASK, POOL, body)
    shares = (Contribution(AccountId(b"m" * 32), 1 << 40),)
    TaskFolder(tmp_path / "t").commit(Committed(c_w, body, opening, shares))
    found = TaskFolder(tmp_path / "t").committed
    assert found is not None
    assert (found.commitment, found.contributions) == (c_w, shares)
    again = model_of(found)
    assert again.shape == model.shape
    assert np.array_equal(again.encode(), model.encode())
    assert np.array_equal(decrypt_body(sk, found.body, family).encode(), model.encode())


PARENT = b"p" * 32


def test_files_are_there_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = TaskFolder(tmp_path / "t")
    assert (folder.committed, folder.claimed, folder.work(PARENT), folder.batches_used) == (None, None, None, 0)
    block = Block(SignedHeader(b"header", Signature(bytes(64))), b"body")
    folder.offer(PARENT, block)
    folder.use_batch(0)
    vm = entry(1, 5).vm
    assert vm is not None
    claimed = Claimed(entry(1, 5).correct or 0, vm)  # type: ignore[arg-type]
    folder.claim(claimed)
    again = TaskFolder(tmp_path / "t")
    assert (again.work(PARENT), again.batches_used, again.claimed) == (block, 1, claimed)
    assert not list((tmp_path / "t").glob("*.part"))
    work = tmp_path / "t" / f"work-{PARENT.hex()}.bin"
    assert work.stat().st_mode & 0o077 == 0
    work.write_bytes(encode(block)[:-1])
    with pytest.raises(CorruptError, match=r"work-.*\.bin is damaged .* leave the file"):
        again.work(PARENT)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        TaskFolder(tmp_path / "file")


def test_what_was_signed_on_a_parent_is_remembered_after_another_one(tmp_path: Path) -> None:
    """A node lies about the tip, the pool signs there, and is killed; back on the true tip it must find what it signed."""
    folder = TaskFolder(tmp_path / "t")
    first = Block(SignedHeader(b"on the true tip", Signature(bytes(64))), b"body")
    folder.offer(PARENT, first)
    folder.offer(b"l" * 32, Block(SignedHeader(b"on the lie", Signature(bytes(64))), b"body"))
    assert TaskFolder(tmp_path / "t").work(PARENT) == first


class Client:
    """An evaluation's offline part that fails as it is told."""

    def __init__(self, failure: Exception | None) -> None:
        self.failure = failure

    async def prepare(self, timeout: float) -> None:
        assert timeout == 7.0
        if self.failure is not None:
            raise self.failure


async def test_a_batch_is_used_up_before_it_begins(tmp_path: Path) -> None:
    folder = TaskFolder(tmp_path)
    opened: list[int] = []
    failures: list[Exception | None] = [CheatingError("first"), None]

    def open_(session: bytes, batch: int) -> EvaluationClient:
        assert folder.batches_used == batch + 1
        assert len(session) == 32
        opened.append(batch)
        return Client(failures[batch])  # type: ignore[return-value]

    rng = SeededRng("sessions")
    await Scoring(folder, open_, rng.bytes).prepare(lambda: 7.0)
    assert opened == [0, 1]
    with pytest.raises(BudgetError, match="all 2 batches"):
        await Scoring(folder, open_, rng.bytes).prepare(lambda: 7.0)
    # Killed after the first began: the spare one is next. A deadline is no reason to use it up.
    folder.use_batch(0)
    failures[1] = DeadlineError("late")
    with pytest.raises(DeadlineError):
        await Scoring(folder, open_, rng.bytes).prepare(lambda: 7.0)
    assert opened == [0, 1, 1]


async def test_a_feed_never_goes_back() -> None:
    feed = TaskFeed(task(TaskPhase.ENTRY))
    feed.update(task(TaskPhase.EVALUATION))
    feed.update(task(TaskPhase.TRAINING))
    assert (await feed.until(lambda v: v.phase >= TaskPhase.TRAINING)).phase is TaskPhase.EVALUATION


async def test_a_watcher_sees_the_present_and_every_change() -> None:
    board = Board()
    watching = board.watch()
    assert (await anext(watching)).phase == "idle"
    for number in range(300):
        board.show(Progress("training", detail=str(number)))
    # A slow one misses the oldest, not the newest.
    seen = [(await anext(watching)).detail for _ in range(256)]
    assert seen == [str(number) for number in range(44, 300)]
    await watching.aclose()  # type: ignore[attr-defined]


async def test_a_requester_who_stalls_one_pool_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes hold the test set; a requester who sends a rival a byte a minute must not use up its time."""
    asked: list[str] = []

    async def fetch(channel: object, digest: bytes, limit: int, store: object, deadline: float, *, peer: str = "") -> None:
        asked.append(peer)
        if peer == "requester:1":
            await asyncio.sleep(deadline)
            raise DeadlineError("the blob stopped")

    monkeypatch.setattr("pool.manager.supplies.blobs.fetch", fetch)
    pool = SimpleNamespace(nodes=[("node", None)], chain_id=CHAIN, blobs=None)
    view = replace(task(), spec=replace(task().spec, endpoint="requester:1"))
    supplies = Supplies(pool, view, TaskFolder(tmp_path / "t"), None)  # type: ignore[arg-type]
    monkeypatch.setattr("pool.manager.supplies.TRY_SECONDS", 0.05)
    async with asyncio.timeout(60):
        for number in range(20):
            await supplies._fetch(bytes([number]) * 32, 10, 3600.0)
    assert asked.count("requester:1") == 1
