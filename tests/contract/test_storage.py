"""One suite over every store, and what only the store on disk promises."""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.errors import (
    ConfigError,
    CorruptError,
    LockedError,
    MalformedError,
    StorageError,
    StorageFullError,
    UnavailableError,
    WrongChainError,
)
from services.storage import KeyValueStore, LevelDb, Memory, StoreMeta
from services.storage.faulty import Faulty

ROOT = Path(__file__).resolve().parent.parent.parent
META = StoreMeta(1, "pofl-test", b"\x11" * 32, b"\x22" * 32)
NEVER = 1 << 60

Make = Callable[[Path], KeyValueStore]
STORES: dict[str, Make] = {
    "leveldb": lambda folder: LevelDb(folder / "db", META),
    "memory": lambda folder: Memory(),
    "faulty": lambda folder: Faulty(Memory(), NEVER),
}


@pytest.fixture(params=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyValueStore]:
    made = STORES[request.param](tmp_path)
    yield made
    made.close()


def test_what_is_stored_is_its_owners_only(tmp_path: Path) -> None:
    LevelDb(tmp_path / "data" / "db", META).close()
    assert (tmp_path / "data" / "db").stat().st_mode & 0o077 == 0


def test_what_was_put_is_got_until_it_is_deleted(store: KeyValueStore) -> None:
    assert store.get(b"a") is None
    store.put_batch({b"a": b"1", b"b": b""})
    assert (store.get(b"a"), store.get(b"b")) == (b"1", b"")
    store.put_batch({b"a": b"2"}, [b"b", b"absent"])
    assert (store.get(b"a"), store.get(b"b")) == (b"2", None)


def test_a_key_both_put_and_deleted_is_put(store: KeyValueStore) -> None:
    store.put_batch({b"a": b"1"}, [b"a"])
    assert store.get(b"a") == b"1"


def test_entries_come_by_key_and_only_those_of_the_prefix(store: KeyValueStore) -> None:
    keys = [b"b\xff\xff", b"b", b"a", b"b\x00", b"c", b"b\xff", b"\x01", b"\xff\xff"]
    store.put_batch({key: key for key in keys})
    assert [key for key, _ in store.iterate(b"b")] == [b"b", b"b\x00", b"b\xff", b"b\xff\xff"]
    assert list(store.iterate()) == [(key, key) for key in sorted(keys)]
    assert list(store.iterate(b"\xff\xff")) == [(b"\xff\xff", b"\xff\xff")]
    assert list(store.iterate(b"absent")) == []


def test_an_iteration_sees_the_store_as_it_was(store: KeyValueStore) -> None:
    store.put_batch({b"a": b"1", b"b": b"1"})
    entries = store.iterate()
    store.put_batch({b"a": b"2", b"c": b"2"}, [b"b"])
    assert list(entries) == [(b"a", b"1"), (b"b", b"1")]


@pytest.mark.parametrize("key", [b"", b"\x00", b"\x00meta", b"k" * 1025])
def test_keys_that_no_store_takes(store: KeyValueStore, key: bytes) -> None:
    with pytest.raises(MalformedError):
        store.get(key)
    with pytest.raises(MalformedError):
        store.put_batch({b"good": b"", key: b""})
    with pytest.raises(MalformedError):
        store.put_batch({b"good": b""}, [key])
    assert store.get(b"good") is None


def test_a_batch_that_cannot_be_written_whole_is_not_written(store: KeyValueStore) -> None:
    with pytest.raises((TypeError, ValueError)):
        store.put_batch({b"a": b"1", b"b": "text"})  # type: ignore[dict-item]
    assert store.get(b"a") is None


def test_after_closing_nothing_works(store: KeyValueStore) -> None:
    store.put_batch({b"a": b"1"})
    store.close()
    store.close()
    for use in (lambda: store.get(b"a"), lambda: store.put_batch({b"a": b"1"}), lambda: list(store.iterate())):
        with pytest.raises(UnavailableError, match="closed"):
            use()


@pytest.mark.parametrize("applied", [False, True])
def test_the_faulty_store_fails_at_its_write_and_ever_after(applied: bool) -> None:
    inner = Memory()
    store = Faulty(inner, 2, applied=applied, error=StorageFullError)
    store.put_batch({b"a": b"1"})
    with pytest.raises(StorageFullError):
        store.put_batch({b"b": b"2"})
    with pytest.raises(StorageFullError):
        store.get(b"a")
    assert (inner.get(b"a"), inner.get(b"b")) == (b"1", b"2" if applied else None)


def test_the_disk_keeps_what_was_put(tmp_path: Path) -> None:
    first = LevelDb(tmp_path, META)
    first.put_batch({b"a": b"1"})
    first.close()
    second = LevelDb(tmp_path, META)
    assert list(second.iterate()) == [(b"a", b"1")]
    second.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chain_id": "pofl-else"}, "belongs to chain id pofl-test, this process has pofl-else"),
        ({"genesis_hash": b"\x33" * 32}, f"belongs to genesis hash {'11' * 32}, this process has {'33' * 32}"),
        ({"node": b"\x44" * 32}, "belongs to node key"),
        ({"schema": 2}, "belongs to schema 1, this process has 2"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    LevelDb(tmp_path, META).close()
    with pytest.raises(WrongChainError, match=message):
        LevelDb(tmp_path, dataclasses.replace(META, **change))  # type: ignore[arg-type]
    LevelDb(tmp_path, META).close()


def test_a_second_process_is_told_what_to_do(tmp_path: Path) -> None:
    store = LevelDb(tmp_path / "db", META)
    code = f"""
from tests.contract.test_storage import *
try:
    LevelDb(Path({str(tmp_path / "db")!r}), META)
except LockedError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    assert "is in use by another process: stop that process, or set data_dir elsewhere" in done.stdout
    with pytest.raises(LockedError):
        LevelDb(tmp_path / "db", META)
    store.close()


def test_a_killed_process_leaves_whole_batches(tmp_path: Path) -> None:
    code = f"""
import os
from tests.contract.test_storage import *
store = LevelDb(Path({str(tmp_path / "db")!r}), META)
for i in range(20):
    store.put_batch({{b"x": bytes([i]) * 1000, b"y": bytes([i]) * 1000}})
store.put_batch({{b"tail": b"t" * 5000}}, sync=False)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=240, check=False)
    assert done.returncode == -9
    # As if the power went too: the last record is only half on the disk.
    log = max((tmp_path / "db").glob("*.log"))
    log.write_bytes(log.read_bytes()[:-2000])
    store = LevelDb(tmp_path / "db", META)
    assert store.get(b"x") == store.get(b"y") == b"\x13" * 1000
    assert store.get(b"tail") is None
    store.close()


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    store = LevelDb(tmp_path, META)
    store.put_batch({bytes([i + 1]): bytes([i]) * 1000 for i in range(50)})
    store.close()
    # Opening moves the log into a table.
    LevelDb(tmp_path, META).close()
    table = max(tmp_path.glob("*.ldb"))
    data = bytearray(table.read_bytes())
    data[len(data) // 3] ^= 1
    table.write_bytes(data)

    def read_all() -> None:
        damaged = LevelDb(tmp_path, META)
        try:
            list(damaged.iterate())
        finally:
            damaged.close()

    with pytest.raises(CorruptError, match="is damaged"):
        read_all()


def test_after_a_write_that_failed_half_way_none_is_taken_until_the_store_is_opened_again(tmp_path: Path) -> None:
    """As on a full disk. LevelDB goes on behind the half record when there is room again, and says that it is synced; at the
    next opening all of that was gone: votes that had been sent."""
    store = LevelDb(tmp_path / "db", META)
    store.put_batch({b"before": b"1"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            store.put_batch({b"big": bytes(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(StorageError, match="File too large"):
        store.put_batch({b"vote": b"2"})
    assert store.get(b"before") == b"1"
    store.close()
    again = LevelDb(tmp_path / "db", META)
    assert dict(again.iterate()) == {b"before": b"1"}
    again.put_batch({b"vote": b"2"})
    again.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the data folder"):
        LevelDb(tmp_path / "file" / "db", META)
