"""A flipped byte in any file of a node's database is harmless or refused with a sentence, and what it hit is healed."""

from __future__ import annotations

import io
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from core.chain.state import state_root
from core.codec import encode
from core.errors import BlockError, CorruptError, LockedError
from core.ids import Height
from node import offline, rows
from node.archive import ArchiveReader, ArchiveWriter
from node.folder import ChainFolder, open_chain_folder
from node.maintenance import export_chain, import_chain, verify_chain
from node.reindex import reindex
from node.rows import Place, Pruning, Root, at
from node.store import ChainStore, store_meta
from services.storage import KeyValueStore, LevelDb, Memory
from services.storage.tail import damaged_tail
from tests.stored_chain import GENESIS, NODE, fill, record, steps

FLIPS = int(os.environ.get("POFL_TEST_FLIPS", "24"))
SEED = int(os.environ.get("POFL_TEST_SEED", "1"))
TIP = len(steps())
ROOT = state_root(steps()[-1].state)


def quiet(done: int, last: int) -> None:
    """Progress that nobody sees."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's data folder as a kill leaves it: tables, a log with the last blocks, a manifest of several entries."""
    made, taken = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("image")
    for height in range(3, TIP + 1, 4):
        kv = open_chain_folder(made, GENESIS, NODE)
        store = ChainStore(kv, GENESIS)
        for step in steps()[store.state.height : height]:
            store.put_consensus(step.votes)
            store.commit(step.block, step.certificate, step.state, step.transactions, step.work)
        if height + 4 <= TIP:
            kv.close()
    for step in steps()[store.state.height :]:
        store.put_consensus(step.votes)
        store.commit(step.block, step.certificate, step.state, step.transactions, step.work)
    shutil.copytree(made / "chain", taken / "chain")
    kv.close()
    kinds = {p.name.split("-")[0] if "-" in p.name else p.suffix for p in (taken / "chain").iterdir()}
    assert {".ldb", ".log", "MANIFEST"} <= kinds
    return taken


@pytest.fixture(scope="module")
def archive() -> bytes:
    memory, out = Memory(), io.BytesIO()
    store = fill(memory)
    writer = ArchiveWriter(out)
    writer.head(GENESIS, Height(1))
    export_chain(store, writer, Height(1), quiet)
    return out.getvalue()


def content(folder: Path) -> dict[bytes, bytes]:
    kv = open_chain_folder(folder, GENESIS, NODE)
    try:
        return dict(kv.iterate())
    finally:
        kv.close()


def use(data_dir: Path) -> dict[bytes, bytes]:
    """Open, check, read everything. Raises what is wrong."""
    kv = open_chain_folder(data_dir, GENESIS, NODE)
    try:
        assert verify_chain(kv, GENESIS, quiet).height == TIP
        return dict(kv.iterate())
    finally:
        kv.close()


def heal(data_dir: Path, archive: bytes) -> str:
    """By the two ways of the sentence: reindex, else a new folder; the rest comes from elsewhere, here from a file."""
    folder = ChainFolder(data_dir, GENESIS, NODE)
    how = "reindex"
    try:
        found = reindex(folder, None, quiet)
        assert found.votes_kept
    except CorruptError as error:
        try:
            if "--silent-until" not in error.message:
                raise
            found = reindex(folder, Height(TIP + 1), quiet)
            how = "reindex, votes lost"
        except CorruptError:
            shutil.rmtree(data_dir / "chain")
            how = "resync"
    kv = open_chain_folder(data_dir, GENESIS, NODE)
    try:
        store = ChainStore(kv, GENESIS)
        if how == "reindex":
            assert store.consensus == record(TIP)
        elif how == "reindex, votes lost":
            # Older votes than the last ones must not come back as if they were the last ones.
            assert store.consensus is None
            assert store.silent_until == TIP + 1
        import_chain(kv, store, ArchiveReader(io.BytesIO(archive)), quiet)
        assert verify_chain(kv, GENESIS, quiet).state_root == ROOT
    finally:
        kv.close()
    return how


def test_flipped_bytes(image: Path, archive: bytes, tmp_path: Path) -> None:
    print(f"POFL_TEST_SEED={SEED} POFL_TEST_FLIPS={FLIPS}")
    rng = random.Random(SEED)
    shutil.copytree(image, tmp_path / "whole")
    whole = content(tmp_path / "whole")
    files = sorted(
        p.name
        for p in (image / "chain").iterdir()
        if p.stat().st_size and (p.suffix in (".ldb", ".log") or p.name.startswith(("MANIFEST", "CURRENT")))
    )
    outcomes: Counter[tuple[str, str]] = Counter()
    for number in range(FLIPS):
        data_dir = tmp_path / str(number)
        shutil.copytree(image, data_dir)
        path = data_dir / "chain" / files[number % len(files)]
        data = bytearray(path.read_bytes())
        place, change = rng.randrange(len(data)), rng.randrange(1, 256)
        data[place] ^= change
        path.write_bytes(data)
        where = f"seed {SEED}, flip {number}: {path.name} byte {place} ^ {change}"
        kind = path.name.split("-")[0] if "-" in path.name else path.suffix or path.name
        try:
            assert use(data_dir) == whole, where
            outcomes[kind, "harmless"] += 1
        except CorruptError as error:
            sentence = error.message
        else:
            sentence = ""
        if sentence:
            assert "`pofl chain reindex`" in sentence, f"{where}: {sentence}"
            outcomes[kind, heal(data_dir, archive)] += 1
        shutil.rmtree(data_dir)
    for key, count in sorted(outcomes.items()):
        print(*key, count)


def test_a_wrong_length_at_the_end_of_a_log_is_not_taken_for_a_kill(image: Path, tmp_path: Path) -> None:
    """LevelDB drops what follows without a word, deletes the log, and the node has voted on blocks it no longer knows."""
    shutil.copytree(image, tmp_path / "data")
    log = next((tmp_path / "data" / "chain").glob("*.log"))
    data = bytearray(log.read_bytes())
    places, place = [], len(data) // 32768 * 32768
    while place + 7 <= len(data):
        places.append(place)
        place += 7 + int.from_bytes(data[place + 4 : place + 6], "little")
    for start in places[-3:]:
        changed = bytearray(data)
        changed[start + 5] ^= 0x80
        log.write_bytes(changed)
        assert damaged_tail(log) == start
        with pytest.raises(CorruptError, match=f"the record at byte {start} has a wrong length.*reindex"):
            open_chain_folder(tmp_path / "data", GENESIS, NODE)
    # A tail that was cut off is none: the last record was never finished.
    log.write_bytes(data[:-5])
    assert damaged_tail(log) is None
    kv = open_chain_folder(tmp_path / "data", GENESIS, NODE)
    assert ChainStore(kv, GENESIS).state.height == TIP - 1
    kv.close()


@pytest.mark.parametrize("text", [b"", b"MANIFEST-000099\n", b"MANIFEST-", b"../../x\n", b"\xff\x00\n", b"x" * 100])
def test_a_lost_current_does_not_begin_a_new_chain(image: Path, tmp_path: Path, text: bytes) -> None:
    shutil.copytree(image, tmp_path / "data")
    current = tmp_path / "data" / "chain" / "CURRENT"
    if text:
        current.write_bytes(text)
    else:
        current.unlink()
    with pytest.raises(CorruptError, match=r"is damaged .*CURRENT.*reindex"):
        open_chain_folder(tmp_path / "data", GENESIS, NODE)
    with pytest.raises(CorruptError, match=r"what this validator voted cannot be read .*--silent-until; nothing was changed"):
        reindex(ChainFolder(tmp_path / "data"), None, quiet)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["chain"]
    reindex(ChainFolder(tmp_path / "data"), Height(TIP + 1), quiet)
    assert content(tmp_path / "data")[rows.SCALARS]


def test_a_folder_whose_making_was_cut_short_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "chain"
    folder.mkdir()
    (folder / "MANIFEST-000001").write_bytes(b"half")
    (folder / "LOCK").touch()
    LevelDb(folder, store_meta(GENESIS, NODE)).close()


def test_a_folder_in_use_is_not_reindexed(tmp_path: Path) -> None:
    kv = open_chain_folder(tmp_path, GENESIS, NODE)
    with pytest.raises(LockedError, match="in use by another process: stop that process"):
        reindex(ChainFolder(tmp_path), None, quiet)
    kv.close()


# -- rows that contradict one another: no checksum finds these ---------------------------------------------------------


def _swap(memory: Memory, first: bytes, second: bytes) -> None:
    one, two = memory.get(first), memory.get(second)
    assert one is not None
    assert two is not None
    memory.put_batch({first: two, second: one})


def _drop(prefix: bytes) -> Callable[[Memory], None]:
    def change(memory: Memory) -> None:
        memory.put_batch({}, [list(memory.iterate(prefix))[4][0]])

    return change


CONTRADICTIONS: dict[str, Callable[[Memory], None]] = {
    "height 5 is damaged: its block is missing": _drop(b"b"),
    "height 5 is damaged: its certificate is missing": _drop(b"c"),
    "height 5 is damaged: its state root is missing": _drop(b"r"),
    "the index of blocks does not lead to it": _drop(b"h"),
    "the index does not lead to its transaction": _drop(b"t"),
    "height 4 is damaged: stored are block": lambda m: m.put_batch(
        {b"r" + at(4): encode(Root(steps()[3].block.block_hash, state_root(steps()[2].state)))}
    ),
    "rows of kind 'h' are stored, the blocks need": lambda m: m.put_batch({b"h" + bytes(32): encode(Place(Height(2)))}),
    "rows of kind 't' are stored": lambda m: m.put_batch({b"t" + bytes(32): encode(Place(Height(2)))}),
    "the votes are of height 99, the blocks before it are not here": lambda m: m.put_batch({b"k": record(99)}),
    "there is a work record of height 77": lambda m: m.put_batch({b"w" + at(77): next(v for _, v in m.iterate(b"w"))}),
    f"height {TIP} is damaged: its state root is missing": lambda m: m.put_batch({}, [b"r" + at(TIP)]),
    "a record of this node cannot be read": lambda m: m.put_batch({b"k": b"?"}),
    "there are blocks, but the state after them is missing": lambda m: m.put_batch({}, [b"S"]),
    "the record of pruning cannot be read": lambda m: m.put_batch({b"P": b"?"}),
    "height 1 is damaged: its header is missing": lambda m: m.put_batch({b"P": encode(Pruning(Height(3), Height(4)))}),
}


@pytest.mark.parametrize("sentence", CONTRADICTIONS)
def test_verify_names_the_height_and_what_to_do(sentence: str) -> None:
    memory = Memory()
    fill(memory)
    CONTRADICTIONS[sentence](memory)
    with pytest.raises(CorruptError) as caught:
        verify_chain(memory, GENESIS, quiet)
    assert sentence in caught.value.message
    assert "pofl chain reindex" in caught.value.message


def test_blocks_of_other_keys_are_a_failed_check_and_no_damage() -> None:
    memory = Memory()
    fill(memory)
    _swap(memory, b"c" + at(4), b"c" + at(5))
    with pytest.raises(BlockError, match=r"block 4: a certificate of height 5 .* This is no damage of the disk"):
        verify_chain(memory, GENESIS, quiet)


def test_a_table_that_does_not_follow_from_the_blocks_is_found() -> None:
    """Rows and the stored root changed together: nothing that is stored contradicts it, only executing the blocks does."""
    memory, other = Memory(), Memory()
    fill(memory)
    store = fill(other)
    assert store.state.accounts
    # The tables of an earlier height, with that height's root under the last one.
    earlier = Memory()
    made = ChainStore(earlier, GENESIS)
    for step in steps()[:-1]:
        made.commit(step.block, step.certificate, step.state, step.transactions, step.work)
    for key, _ in list(memory.iterate(b"s")):
        memory.put_batch({}, [key])
    memory.put_batch(dict(earlier.iterate(b"s")) | {b"S": earlier.get(b"S") or b""})
    ChainStore(memory, GENESIS)
    with pytest.raises(CorruptError, match=f"height {TIP} is damaged: the stored tables have root"):
        verify_chain(memory, GENESIS, quiet)


def _kinds(kv: KeyValueStore) -> set[bytes]:
    return {key[:1] for key, _ in kv.iterate()}


def test_a_reindexed_store_is_the_store_that_a_node_would_have_made(tmp_path: Path) -> None:
    kv = open_chain_folder(tmp_path, GENESIS, NODE)
    fill(kv)
    before = dict(kv.iterate())
    # What another part of the node keeps there is not lost.
    kv.put_batch({b"zsomething": b"else"}, [k for k in before if k[:1] in (b"h", b"t", b"s", b"S", b"r")])
    kv.close()
    assert reindex(ChainFolder(tmp_path, GENESIS, NODE), None, quiet).height == TIP
    after = content(tmp_path)
    assert {k: v for k, v in after.items() if k not in (b"orebuilt", b"zsomething") and k[:1] not in (b"l", b"v")} == before
    assert after[b"zsomething"] == b"else"
    # What light clients are served is there for every block.
    assert sum(k[:1] == b"l" for k in after) == TIP


def test_blocks_after_the_damage_are_left_out_and_the_node_is_silent_where_it_voted(tmp_path: Path) -> None:
    kv = open_chain_folder(tmp_path, GENESIS, NODE)
    fill(kv)
    kv.put_batch({b"b" + at(6): b"?", b"k": record(TIP + 1)})
    kv.close()
    found = reindex(ChainFolder(tmp_path), None, quiet)
    assert (found.height, found.votes_kept) == (5, True)
    assert "height 6 is damaged: its block cannot be read" in found.wrong
    kv = open_chain_folder(tmp_path, GENESIS, NODE)
    store = ChainStore(kv, GENESIS)
    assert store.silent_until == TIP + 1
    assert store.consensus == record(TIP + 1)
    kv.close()


def test_verify_and_reindex_agree_about_votes_that_are_ahead_of_the_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kv = open_chain_folder(tmp_path, GENESIS, NODE)
    fill(kv)
    kv.put_batch({b"b" + at(6): b"?", b"k": record(TIP + 1)})
    kv.close()
    assert offline.main(["reindex", "--data-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "height 5: indexes and state are built again. What follows is damaged (height 6 is damaged: its block"
    )
    assert said.endswith(
        "start the node, it fetches the rest from its peers. Do not move the folder away: its votes would be lost\n"
    )
    assert "pofl chain reindex" not in said
    for _ in range(2):
        assert offline.main(["verify", "--data-dir", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert said.startswith("height 5: 5 blocks were executed again")
        assert f"The votes are of height {TIP + 1}: start the node, it fetches the blocks up to there from its peers" in said
        assert offline.main(["reindex", "--data-dir", str(tmp_path)]) == 0
        assert capsys.readouterr().out == "height 5: indexes and state are built again\n"


def test_a_folder_without_any_table_is_told_by_its_own_name(tmp_path: Path) -> None:
    kv = open_chain_folder(tmp_path, GENESIS, NODE)
    fill(kv)
    kv.close()
    for _ in range(2):  # opened again, what the log holds becomes a table
        open_chain_folder(tmp_path, GENESIS, NODE).close()
    for table in (tmp_path / "chain").glob("*.ldb"):
        table.unlink()
    with pytest.raises(
        CorruptError, match=rf"of {tmp_path}/chain not even whose it is can be read: move the folder away and start"
    ):
        reindex(ChainFolder(tmp_path), Height(99), quiet)
