"""A store that dies at its k-th write, for every k: what is there afterwards is whole, and no vote that was sent is lost."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.chain.state import genesis_state, state_root
from core.errors import CorruptError, StorageError
from core.ids import ModelCommitment
from node.archive import ArchiveReader, ArchiveWriter
from node.folder import DONE, ChainFolder, open_chain_folder
from node.held import WorkPart
from node.maintenance import export_chain, import_chain, prune_chain, rebuild, verify_chain
from node.reindex import reindex
from node.store import ChainStore
from services.storage import KeyValueStore, Memory
from services.storage.faulty import Faulty
from tests.stored_chain import GENESIS, NODE, fill, live, record, steps

ROOT = Path(__file__).resolve().parent.parent.parent
NEVER = 1 << 40
TIP = len(steps())
KEEP = 3


def quiet(done: int, last: int) -> None:
    """Progress that nobody sees."""


def writes(run: Callable[[KeyValueStore], object], memory: Memory) -> int:
    counting = Faulty(memory, NEVER)
    run(counting)
    return NEVER - counting._left


def states(height: int) -> object:
    return genesis_state(GENESIS) if height == 0 else steps()[height - 1].state


def dies(run: Callable[[KeyValueStore], object], memory: Memory, at: int, applied: bool) -> None:
    with pytest.raises(StorageError, match="as it was told to"):
        run(Faulty(memory, at, applied=applied))


LIVE_WRITES = writes(lambda kv: live(kv, [], KEEP), Memory())


def test_the_scenario_has_everything() -> None:
    assert any(step.work is not None for step in steps())
    assert LIVE_WRITES > 2 * TIP + 2
    memory = Memory()
    store = fill(memory, KEEP)
    assert store.pruning.base >= 2 * KEEP


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("at", range(1, LIVE_WRITES + 1))
def test_a_running_node_dies_at_any_write(at: int, applied: bool) -> None:
    memory = Memory()
    sent: list[bytes] = []
    dies(lambda kv: live(kv, sent, KEEP), memory, at, applied)
    store = ChainStore(memory, GENESIS, KEEP)
    assert store.state == states(store.state.height)
    # The record may be newer than what was sent, never older.
    newest = store.consensus
    if sent:
        assert newest in (sent[-1], record(len(sent) + 1))
        assert store.state.height in (len(sent) - 1, len(sent))
    # It goes on, and ends where the others are.
    done = live(memory, sent, KEEP)
    assert done.state == states(TIP)
    assert done.consensus == record(TIP)
    if at % 4 == 0:
        assert verify_chain(memory, GENESIS, quiet).height == TIP


@pytest.mark.parametrize("part", [WorkPart.BLOCK, WorkPart.BODY])
def test_what_is_held_of_a_work_height_survives_until_it_is_decided(part: WorkPart) -> None:
    commitment = ModelCommitment(b"c" * 32)
    work_height = next(step.height for step in steps() if step.work is not None)
    memory = Memory()
    held: list[bytes | None] = []

    def look(height: int) -> None:
        if height == work_height:
            held.append(ChainStore(memory, GENESIS).held.get(part, commitment))

    live(memory, [], 0, look)
    assert held[0]
    # The body is kept a while longer: the requester fetches the one she paid for.
    assert (ChainStore(memory, GENESIS).held.get(part, commitment) is not None) == (part is WorkPart.BODY)


@pytest.mark.parametrize("applied", [False, True])
def test_pruning_dies_at_any_write(applied: bool) -> None:
    def prune(kv: KeyValueStore) -> None:
        prune_chain(ChainStore(kv, GENESIS), GENESIS, 2, quiet)

    full = Memory()
    fill(full)
    for at in range(1, writes(prune, _copy(full)) + 1):
        memory = _copy(full)
        dies(prune, memory, at, applied)
        assert verify_chain(memory, GENESIS, quiet).state_root == state_root(steps()[-1].state)
        prune(memory)
        assert ChainStore(memory, GENESIS).pruning.floor == TIP - 1
        assert verify_chain(memory, GENESIS, quiet).pruned == TIP - 2


@pytest.mark.parametrize("applied", [False, True])
def test_an_import_dies_at_any_write(applied: bool) -> None:
    full = Memory()
    archive = _archive(fill(full))

    def load(kv: KeyValueStore) -> None:
        import_chain(kv, ChainStore(kv, GENESIS), ArchiveReader(io.BytesIO(archive)), quiet)

    for at in range(1, writes(load, Memory()) + 1):
        memory = Memory()
        dies(load, memory, at, applied)
        store = ChainStore(memory, GENESIS)
        assert store.state == states(store.state.height)
        load(memory)
        assert ChainStore(memory, GENESIS).state == states(TIP)
    assert verify_chain(memory, GENESIS, quiet).height == TIP


def test_a_rebuild_that_dies_leaves_the_old_store_as_it_was() -> None:
    old = Memory()
    fill(old, KEEP)
    before = dict(old.iterate())
    total = writes(lambda kv: rebuild(old, kv, GENESIS, quiet), Memory())
    for at in range(1, total + 1):
        with pytest.raises(StorageError):
            rebuild(old, Faulty(Memory(), at), GENESIS, quiet)
    assert dict(old.iterate()) == before


# -- on disk -----------------------------------------------------------------------------------------------------------


def _made(data_dir: Path) -> ChainFolder:
    kv = open_chain_folder(data_dir, GENESIS, NODE)
    fill(kv)
    kv.close()
    return ChainFolder(data_dir)


def _verified(folder: ChainFolder) -> int:
    kv = folder.open()
    try:
        assert kv.get(b"k") == record(TIP)
        return verify_chain(kv, GENESIS, quiet).height
    finally:
        kv.close()


@pytest.mark.parametrize("at", [1, 5, TIP + 1])
def test_a_reindex_that_is_killed_can_be_run_again(tmp_path: Path, at: int) -> None:
    folder = _made(tmp_path)
    code = f"""
import os
from pathlib import Path
from node.folder import ChainFolder
from node.reindex import reindex
from services.storage import LevelDb
write, left = LevelDb.put_batch, [{at}]
def put_batch(self, *given, **named):
    write(self, *given, **named)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), 9)
LevelDb.put_batch = put_batch
reindex(ChainFolder(Path({str(tmp_path)!r})), None, lambda done, last: None)
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=240, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert _verified(folder) == TIP
    assert reindex(folder, None, quiet).height == TIP
    assert _verified(folder) == TIP
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chain"]


def test_killed_between_the_two_renames_nobody_begins_a_new_chain(tmp_path: Path) -> None:
    folder = _made(tmp_path)
    folder.path.rename(folder.replaced)
    with pytest.raises(CorruptError, match="cut short: run `pofl chain reindex` again"):
        open_chain_folder(tmp_path, GENESIS, NODE)
    assert not folder.path.exists()
    # The rebuilt store was not complete: the old one comes back and is rebuilt.
    assert reindex(folder, None, quiet).height == TIP
    assert _verified(folder) == TIP
    # It was complete: it takes its place.
    kv = folder.open()
    kv.put_batch({DONE: b"1"})
    kv.close()
    folder.path.rename(folder.rebuilt)
    folder.replaced.mkdir()
    with pytest.raises(CorruptError, match="cut short"):
        folder.open()
    assert folder.resume_swap()
    assert _verified(folder) == TIP


def _copy(memory: Memory) -> Memory:
    made = Memory()
    made.put_batch(dict(memory.iterate()))
    return made


def _archive(store: ChainStore) -> bytes:
    out = io.BytesIO()
    writer = ArchiveWriter(out)
    writer.head(GENESIS, steps()[0].height)
    export_chain(store, writer, steps()[0].height, quiet)
    return out.getvalue()
