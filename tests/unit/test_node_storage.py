"""What a node does with too little room, or without its votes: pruned peers, held parts of claims, spare blobs, silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from core.chain.block import MAX_VM_BODY
from core.chain.state import State
from core.errors import ConfigError, LimitError, PrunedError
from core.ids import Height, Milliseconds, ModelCommitment
from node.blob_room import spare_blobs
from node.config import NodeConfig
from node.driver import Driver
from node.held import Held, WorkPart
from node.pending import Pending
from node.store import ChainStore
from services.rpc.blob_store import BlobStore
from services.runtime import config
from services.storage import Memory
from tests.chainkit import Chain, key
from tests.stored_chain import GENESIS, Step, commit, fill, steps

TIP = len(steps())


def test_a_pruned_block_is_refused_with_what_is_kept_and_its_header_is_still_there() -> None:
    store = fill(Memory(), 3)
    floor = store.pruning.floor
    assert 1 < floor <= TIP - 3 + 1
    with pytest.raises(PrunedError, match=f"block 1 was pruned here, the oldest that is kept is {floor}: ask another node"):
        store.block(Height(1))
    with pytest.raises(PrunedError):
        store.raw_blocks(Height(floor - 1), 10)
    assert len(list(store.raw_blocks(floor, 100))) == TIP - floor + 1
    assert store.header(Height(1)) == steps()[0].block.header
    assert store.header(Height(TIP)) == steps()[-1].block.header


def test_pruning_that_begins_late_catches_up() -> None:
    memory = Memory()
    store = ChainStore(memory, GENESIS)
    for step in steps()[:5]:
        commit(store, step)
    store = ChainStore(memory, GENESIS, 2)
    for step in steps()[5:]:
        commit(store, step)
    assert (store.pruning.base, store.pruning.floor) == (TIP - 2, TIP - 1)
    # One whole state for the blocks that are kept, one for the next time.
    assert len({k[:9] for k, _ in memory.iterate(b"B")}) == 2


def test_held_parts_are_bounded_and_the_oldest_go_first() -> None:
    memory = Memory()
    held = Held(memory, quota=1000)
    names = [ModelCommitment(bytes([i]) * 32) for i in range(4)]
    for name in names[:3]:
        assert held.put(Height(7), WorkPart.BODY, name, bytes(400))
    assert not held.put(Height(7), WorkPart.BODY, names[2], bytes(400))
    again = Held(memory, quota=1000)
    assert again.used == 800
    assert again.commitments(Height(7), WorkPart.BODY) == (names[1], names[2])
    assert again.get(WorkPart.BODY, names[0]) is None
    assert again.get(WorkPart.BODY, names[1]) == bytes(400)
    with pytest.raises(LimitError, match="a body of 16777217 bytes, at most 16777216"):
        again.put(Height(7), WorkPart.BODY, names[3], bytes(MAX_VM_BODY + 1))


def test_one_height_cannot_hold_more_claims_than_there_can_be() -> None:
    held = Held(Memory())
    for number in range(80):
        held.put(Height(1), WorkPart.OPENING, ModelCommitment(number.to_bytes(32, "big")), b"x")
    assert len(held.commitments(Height(1), WorkPart.OPENING)) == 64


def ended_chain() -> State:
    chain = Chain(GENESIS)
    chain.to_work_height(pool0=900)
    chain.apply(chain.work_block("pool0"))
    return chain.block()


def test_blobs_of_live_tasks_are_never_spare_and_the_oldest_ended_go_first() -> None:
    state = ended_chain()
    first = next(iter(state.tasks.values()))
    other = b"n" * 32
    spec = replace(first.published.spec, test_blobs=tuple(cast(Any, bytes([i]) * 32) for i in (7, 8)))
    later = replace(
        first, task_id=cast(Any, b"l" * 32), ended_height=Height((first.ended_height or 0) + 1),
        height=Height(first.height + 1), published=replace(first.published, spec=spec),
    )  # fmt: skip
    here = [bytes([8]) * 32, first.published.spec.test_blobs[0], other]
    both = replace(state, tasks=state.tasks.put(later.task_id, later))
    assert spare_blobs(both, here) == [other, first.published.spec.test_blobs[0], bytes([8]) * 32]
    live = replace(both, live=(later.task_id,))
    assert bytes([8]) * 32 not in spare_blobs(live, here)


def test_a_full_blob_store_drops_what_is_spare_and_refuses_when_nothing_is(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 1000)
    old, needed = store.put(b"o" * 400), store.put(b"n" * 400)
    with pytest.raises(LimitError, match="does not fit"):
        store.put(b"x" * 400)
    store.spare = lambda: [old]
    added = store.put(b"x" * 400)
    assert (store.size(old), store.size(needed), store.size(added)) == (None, 400, 400)
    with pytest.raises(LimitError):
        store.put(b"y" * 400)


class Clock:
    def now_ms(self) -> Milliseconds:
        return Milliseconds(0)


@pytest.mark.parametrize(("until", "silent"), [(0, False), (TIP, False), (TIP + 1, True), (TIP + 9, True)])
async def test_a_validator_without_its_votes_does_not_vote_until_it_may(until: int, silent: bool) -> None:
    store = fill(Memory())
    store.be_silent(Height(until))
    driver = Driver(store, key("v0"), Pending(Clock(), 10), Clock())
    assert (driver.machine.me != key("v0").public_key) == silent
    assert driver.is_validator


async def test_it_votes_again_afterwards_and_a_shorter_silence_does_not_shorten_it() -> None:
    memory, made = Memory(), steps()
    store = ChainStore(memory, GENESIS)
    store.be_silent(Height(2))
    store.be_silent(Height(1))
    assert ChainStore(memory, GENESIS).silent_until == 2

    def votes(step: Step) -> bool:
        commit(store, step)
        return Driver(store, key("v0"), Pending(Clock(), 10), Clock()).machine.me == key("v0").public_key

    assert [votes(step) for step in made[:3]] == [False, True, True]


def test_a_node_keeps_all_or_enough_for_those_that_were_away(tmp_path: Path) -> None:
    text = 'name = "n"\nlisten = "127.0.0.1:0"\ndata_dir = "d"\nkey = "k"\nkeep_blocks = {}\n[chain]\ngenesis = "g"\n'
    text += "[tls]\ninsecure_loopback = true\n"
    for count in (0, 256, 10_000):
        (tmp_path / "c").write_text(text.format(count))
        assert config.load(NodeConfig, tmp_path / "c", {}).keep_blocks == count
    (tmp_path / "c").write_text(text.format(255))
    with pytest.raises(ConfigError, match=r"keep_blocks is 255: it must be 0 \(all\) or at least 256"):
        config.load(NodeConfig, tmp_path / "c", {})
