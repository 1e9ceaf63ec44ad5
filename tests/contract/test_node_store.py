"""node.store.ChainStore: one contract on every key-value store, and what is left when a write fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.chain.state import encode_state, state_root
from core.chain.transaction import Transfer
from core.codec import encode
from core.errors import CorruptError, LockedError, NotFoundError, StorageError, WrongChainError
from core.ids import AccountId, Amount, Digest, Height
from node.store import ChainStore, WorkRecord, store_meta
from services.storage import KeyValueStore, LevelDb, Memory
from services.storage.faulty import Faulty
from tests.node_world import Made, Maker, keys, make_genesis

VALIDATORS = keys(4)
USERS = keys(4, "user")
"""The last one never appears in a transaction."""
GENESIS = make_genesis(VALIDATORS, USERS)
NODE = VALIDATORS[0].public_key

Open = Callable[[], KeyValueStore]


@pytest.fixture(params=["memory", "leveldb"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same data again and again, as a process does that was killed."""
    opened: list[KeyValueStore] = []
    memory = Memory()

    def again() -> KeyValueStore:
        if request.param == "memory":
            return memory
        while opened:
            opened.pop().close()
        opened.append(LevelDb(tmp_path / "chain", store_meta(GENESIS, NODE)))
        return opened[-1]

    yield again
    for each in opened:
        each.close()


def made_blocks(count: int) -> list[Made]:
    """Blocks of transfers, so that accounts change, appear and stay."""
    maker = Maker(GENESIS, VALIDATORS)
    fresh = keys(count, "fresh")
    blocks = []
    for number in range(count):
        to = AccountId(fresh[number].public_key)
        blocks.append(maker.next(maker.transaction(USERS[number % 3], Transfer(to, Amount(5 + number)))))
    return blocks


def commit(store: ChainStore, made: Made) -> None:
    store.commit(made.block, made.certificate, made.state, [t.tx_id for t in made.transactions])


def test_an_empty_store_is_at_genesis(reopen: Open) -> None:
    store = ChainStore(reopen(), GENESIS)
    assert store.state.height == 0
    assert store.tip_certificate is None
    assert store.tip_root == state_root(store.state)
    assert store.consensus is None
    with pytest.raises(NotFoundError, match="no block at height 1 here, the last one is 0"):
        store.block(Height(1))


def test_what_was_committed_is_there_after_opening_again(reopen: Open) -> None:
    blocks = made_blocks(5)
    store = ChainStore(reopen(), GENESIS)
    for made in blocks:
        commit(store, made)
    again = ChainStore(reopen(), GENESIS)
    assert again.state == blocks[-1].state
    assert encode_state(again.state) == encode_state(blocks[-1].state)
    assert again.tip_certificate == blocks[-1].certificate
    for made in blocks:
        by_height = again.block(made.state.height)
        assert (by_height.block, by_height.certificate) == (made.block, made.certificate)
        assert by_height.state_root == state_root(made.state)
        assert again.block(made.block.block_hash) == by_height
        assert again.transaction_height(made.transactions[0].tx_id) == made.state.height
    raw = list(again.raw_blocks(Height(2), 100))
    assert [block for block, _ in raw] == [made.block.to_bytes() for made in blocks[1:]]
    assert [certificate for _, certificate in raw] == [encode(made.certificate) for made in blocks[1:]]


def test_it_goes_on_from_where_it_was_opened(reopen: Open) -> None:
    for made in made_blocks(4):
        commit(ChainStore(reopen(), GENESIS), made)
    assert ChainStore(reopen(), GENESIS).state.height == 4


def test_only_the_next_block_is_taken(reopen: Open) -> None:
    blocks = made_blocks(2)
    store = ChainStore(reopen(), GENESIS)
    with pytest.raises(StorageError, match="block 2 cannot follow the stored height 0"):
        commit(store, blocks[1])
    assert store.state.height == 0


def test_own_votes_and_work_records_are_kept(reopen: Open) -> None:
    store = ChainStore(reopen(), GENESIS)
    store.put_consensus(b"votes")
    store.put_other(b"stored", b"yes")
    record = WorkRecord(Digest(b"z" * 32), (), (), store.state.validators)
    store.put_work(Height(3), record)
    again = ChainStore(reopen(), GENESIS)
    assert (again.consensus, again.other(b"stored"), again.other(b"nothing")) == (b"votes", b"yes", None)
    assert (again.work(Height(3)), again.work(Height(4))) == (record, None)


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_a_write_that_fails_leaves_the_last_block_whole(fail_at: int, applied: bool) -> None:
    blocks, memory = made_blocks(4), Memory()
    store = ChainStore(Faulty(memory, fail_at, applied=applied), GENESIS)
    done = fail_at - 1
    for made in blocks[:done]:
        commit(store, made)
    with pytest.raises(StorageError, match="as it was told to"):
        commit(store, blocks[done])
    # As after a power failure: the last batch is there wholly, or not at all.
    again = ChainStore(memory, GENESIS)
    assert again.state.height == done + (1 if applied else 0)
    assert again.state == (blocks[again.state.height - 1].state if again.state.height else Maker(GENESIS, VALIDATORS).state)
    for made in blocks[again.state.height :]:
        commit(again, made)
    assert again.state == blocks[-1].state


def test_a_failed_write_does_not_move_the_state_in_memory() -> None:
    store = ChainStore(Faulty(Memory(), 1), GENESIS)
    before = store.state
    with pytest.raises(StorageError):
        commit(store, made_blocks(1)[0])
    assert store.state is before


def test_a_changed_record_is_found_when_the_store_is_opened() -> None:
    memory = Memory()
    store = ChainStore(memory, GENESIS)
    for made in made_blocks(2):
        commit(store, made)
    key, value = next((k, v) for k, v in memory.iterate(b"saccounts\x00") if v)
    memory.put_batch({key: value[:-1] + bytes([value[-1] ^ 1])})
    with pytest.raises(CorruptError, match=r"root .* Run `pofl chain reindex`, or move"):
        ChainStore(memory, GENESIS)


def test_a_truncated_record_is_found_when_the_store_is_opened() -> None:
    memory = Memory()
    store = ChainStore(memory, GENESIS)
    commit(store, made_blocks(1)[0])
    key, value = next(iter(memory.iterate(b"saccounts\x00")))
    memory.put_batch({key: value[:-1]})
    with pytest.raises(CorruptError, match="cannot be read"):
        ChainStore(memory, GENESIS)


def test_another_chains_folder_and_a_second_process_are_refused(tmp_path: Path) -> None:
    first = LevelDb(tmp_path, store_meta(GENESIS, NODE))
    with pytest.raises(LockedError, match="in use by another process"):
        LevelDb(tmp_path, store_meta(GENESIS, NODE))
    first.close()
    with pytest.raises(WrongChainError, match="set data_dir to another folder"):
        LevelDb(tmp_path, store_meta(make_genesis(VALIDATORS, USERS, 5), NODE))
    with pytest.raises(WrongChainError, match="node key"):
        LevelDb(tmp_path, store_meta(GENESIS, VALIDATORS[1].public_key))
