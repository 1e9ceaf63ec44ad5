"""requester.store: what is secret, what is used once, and what a restart finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.chain.transaction import PublishTask
from core.errors import BudgetError, CorruptError, StorageError
from core.ids import AccountId, Amount, Correct, Height, Milliseconds, ModelCommitment, TaskId
from requester.store import RequesterStore, SessionCoins, TaskRecord, TaskSecret, TaskSecrets, WonModel
from services.storage import Memory
from services.storage.faulty import Faulty
from tests.seeded import SeededRng
from tests.verification import small_world

TASK = TaskId(b"\x01" * 32)
OTHER = TaskId(b"\x02" * 32)
CALLER = b"\x03" * 32


def record(task: TaskId = TASK, number: int = 1) -> TaskRecord:
    payload = PublishTask(small_world().task.spec, Amount(5), Amount(5), Amount(1), b"\x04" * 32, Milliseconds(9))
    return TaskRecord(task, number, True, payload, ("careful",))


def test_tasks_come_back_in_order() -> None:
    kv = Memory()
    store = RequesterStore(kv)
    store.save_task(record(OTHER, 2))
    store.save_task(record(TASK, 1))
    store.save_task(replace(record(TASK, 1), height=Height(7)))
    assert [(r.number, r.height) for r in RequesterStore(kv).tasks()] == [(1, 7), (2, None)]
    store.delete_task(OTHER)
    assert [r.task_id for r in store.tasks()] == [TASK]


def test_a_mark_has_one_owner_for_ever() -> None:
    kv = Memory()
    store = RequesterStore(kv)
    store.mark(b"run", b"first")
    store.mark(b"run", b"first")  # a replay finds its own
    for again in (store, RequesterStore(kv)):
        with pytest.raises(BudgetError, match="another session had it"):
            again.mark(b"run", b"second")


def test_a_mark_that_could_not_be_written_is_not_granted() -> None:
    kv = Memory()
    with pytest.raises(StorageError):
        RequesterStore(Faulty(kv, 1)).mark(b"run", b"first")
    RequesterStore(kv).mark(b"run", b"second")


def test_sessions_keep_their_coins_and_what_they_received() -> None:
    kv = Memory()
    store = RequesterStore(kv)
    made = store.session(1, TASK, CALLER, b"s" * 32, SeededRng(1))
    # Nothing was answered yet: a caller who opens and goes leaves nothing behind.
    assert store.session(1, TASK, CALLER, b"s" * 32, SeededRng(2)).seed != made.seed
    for index in range(300):
        store.add_received(made, index, index.to_bytes(32, "big"))
    after = RequesterStore(kv)
    assert after.session(1, TASK, CALLER, b"s" * 32, SeededRng(3)) == made
    assert after.received(made) == [index.to_bytes(32, "big") for index in range(300)]
    other = after.session(1, TASK, b"\x05" * 32, b"s" * 32, SeededRng(4))
    assert after.received(other) == []  # another caller's session of the same name is another session
    store.forget_sessions(OTHER)
    assert len(store.received(made)) == 300
    store.forget_sessions(TASK)
    assert store.received(made) == []


def test_coins_belong_to_seed_and_message() -> None:
    def drawn(seed: bytes, *indices: int) -> list[bytes]:
        coins = SessionCoins(seed)
        found = []
        for index in indices:
            coins.at(index)
            found += [coins.bytes(32), coins.bytes(32)]
        return found

    assert drawn(b"a", 0, 1, 2) == drawn(b"a", 0, 1, 2)
    assert drawn(b"a", 5, 2)[2:] == drawn(b"a", 0, 1, 2)[4:]  # whatever failed in between
    assert len(set(drawn(b"a", 0, 1, 2) + drawn(b"b", 0, 1, 2))) == 12


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    world = small_world()
    secrets = TaskSecrets(tmp_path / "secrets")
    secrets.save(TASK, TaskSecret(world.sk, world.plain))
    secrets.save(TASK, TaskSecret(world.sk, world.plain))
    (path,) = (tmp_path / "secrets").iterdir()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    loaded = TaskSecrets(tmp_path / "secrets").load(TASK)
    assert np.array_equal(loaded.key.s, world.sk.s)
    assert np.array_equal(loaded.test_set.features, world.plain.features)
    assert np.array_equal(loaded.test_set.labels, world.plain.labels)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptError, match="restore it"):
        secrets.load(TASK)
    secrets.delete(TASK)
    with pytest.raises(CorruptError):
        secrets.load(TASK)


def test_losing_models_are_not_kept() -> None:
    store = RequesterStore(Memory())
    win, lose = ModelCommitment(b"w" * 32), ModelCommitment(b"l" * 32)
    store.save_decrypted(TASK, win, b"winner")
    store.save_decrypted(TASK, lose, b"loser")
    store.save_decrypted(OTHER, lose, b"elsewhere")
    won = WonModel(TASK, AccountId(CALLER), win, Correct(3), 4, Height(9), b"winner")
    store.save_won(won)
    assert store.won(TASK) == won
    assert store.won(OTHER) is None
    assert store.decrypted(TASK, lose) is None
    assert store.decrypted(OTHER, lose) == b"elsewhere"
