"""node.sync and node.catch_up: a node that is behind, and peers that lie, stall, have pruned, or know other validators."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from core.chain import rules
from core.chain.block import Block, Certificate, SignedHeader
from core.chain.headers import check_headers
from core.chain.state import State, genesis_state, state_root
from core.chain.verify import is_within_reach
from core.errors import BlockError, NotFoundError, PrunedError, StorageError, WrongChainError
from core.ids import BlockHash, Height, NodeId, Signature
from node import sync as sync_module
from node.catch_up import CatchUp, catch_up
from node.light import LightService
from node.store import ChainStore
from node.sync import Sync
from services.rpc.channel import Connection
from services.rpc.convert_peer import Progress
from services.storage import Memory
from services.storage.faulty import Faulty
from tests.chainkit import make_certificate
from tests.node_world import tampered
from tests.unit.test_chain_validators import joining, leaving, started

Pair = tuple[Block, Certificate]
COUNT = 40


@functools.cache
def pairs() -> tuple[Pair, ...]:
    """Blocks of a chain whose validators change twice."""
    chain = started()
    for height in range(2, COUNT):
        if height == 10:
            chain.block(chain.tx("pool0", joining(chain, "pool0", *chain.voters)))
        elif height == 25:
            chain.block(chain.tx("v0", leaving(chain, "v1", *chain.voters)))
        else:
            chain.block()
    chain.block()
    last = make_certificate(chain.state, chain.clock + 1000, chain.voters)
    found = [block.decoded_body().parent_certificate for block in chain.blocks[1:]]
    return tuple(zip(chain.blocks, [c for c in (*found, last) if c is not None], strict=True))


def genesis() -> Any:
    return started().genesis


def states() -> list[State]:
    found = [genesis_state(genesis())]
    for block, _ in pairs():
        found.append(rules.apply_block(found[-1], block))
    return found


class Target:
    """As the driver takes blocks, with what was on the disk."""

    def __init__(self) -> None:
        self.store = ChainStore(Memory(), genesis())
        self.is_there = asyncio.Event()

    @property
    def state(self) -> State:
        return self.store.state

    @property
    def height(self) -> Height:
        return self.state.height

    async def take_final(self, blocks: Sequence[Pair]) -> None:
        wanted = [pair for pair in blocks if pair[1].height > self.height]
        _, failure = catch_up(self.store, None, wanted)
        if self.height == COUNT:
            self.is_there.set()
        if failure is not None:
            raise failure


class Peer:
    """One that serves the chain honestly."""

    def __init__(self, name: str) -> None:
        self.node = NodeId(name.encode().ljust(32, b"."))
        self.channel = self.target = self
        self.asked: list[tuple[str, int, int]] = []

    def headers(self, first: int, count: int) -> tuple[tuple[SignedHeader, ...], Certificate]:
        chosen = pairs()[first - 1 :][:count]
        if not chosen:
            raise NotFoundError(f"no block at height {first} here")
        return tuple(block.header for block, _ in chosen), chosen[-1][1]

    async def blocks(self, first: int, count: int) -> AsyncIterator[Pair]:
        for pair in pairs()[first - 1 :][:count]:
            await asyncio.sleep(0)
            yield pair


class Pruned(Peer):
    async def blocks(self, first: int, count: int) -> AsyncIterator[Pair]:
        for pair in pairs()[first - 1 :][:count]:
            if count:
                raise PrunedError(f"block {first} was pruned here", peer="old")
            yield pair


class Stalled(Peer):
    async def blocks(self, first: int, count: int) -> AsyncIterator[Pair]:
        yield pairs()[first - 1]
        await asyncio.sleep(60)


class Swaps(Peer):
    """The right headers, with another body than theirs, or another signature of their author."""

    async def blocks(self, first: int, count: int) -> AsyncIterator[Pair]:
        for block, certificate in pairs()[first - 1 :][:count]:
            wrong = replace(block.header, signature=Signature(bytes(64)))
            yield (replace(block, body=pairs()[0][0].body) if first % 2 else replace(block, header=wrong)), certificate


class Forges(Peer):
    """Headers that nobody made final."""

    def headers(self, first: int, count: int) -> tuple[tuple[SignedHeader, ...], Certificate]:
        headers, certificate = super().headers(first, count)
        return headers, tampered(certificate)

    async def blocks(self, first: int, count: int) -> AsyncIterator[Pair]:
        for block, certificate in pairs()[first - 1 :][:count]:
            yield block, tampered(certificate)


class Trickles(Peer):
    """One header at a time, of the height that it says it has."""

    def headers(self, first: int, count: int) -> tuple[tuple[SignedHeader, ...], Certificate]:
        return super().headers(first, 1)


class Nothing(Peer):
    def headers(self, first: int, count: int) -> tuple[tuple[SignedHeader, ...], Certificate]:
        raise NotFoundError(f"no block at height {first} here", peer="liar")

    async def blocks(self, first: int, count: int) -> AsyncIterator[Pair]:
        for pair in pairs()[:0]:
            yield pair


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("GRACE_SECONDS", 0.0), ("TIMEOUT_SECONDS", 20.0), ("NEAR", 2), ("PART", 4), ("AHEAD", 3)):
        monkeypatch.setattr(sync_module, name, value)

    async def fetch_headers(channel: Peer, first: int, count: int, timeout: float, *, peer: object) -> Any:
        channel.asked.append(("headers", first, count))
        return channel.headers(first, count)

    async def fetch_blocks(
        channel: Peer, first: int, count: int, timeout: float, *, peer: object
    ) -> AsyncIterator[tuple[Block, Certificate]]:
        channel.asked.append(("blocks", first, count))
        async for pair in channel.blocks(first, count):
            yield pair

    monkeypatch.setattr(sync_module, "fetch_headers", fetch_headers)
    monkeypatch.setattr(sync_module, "fetch_blocks", fetch_blocks)


async def synced(target: Target, *peers: Peer) -> None:
    """Runs until the target has all blocks. All peers say that they have them; the first is asked first."""
    known = {peer.node: peer for peer in peers}
    sync = Sync(target, lambda node: cast(Connection, known[node]))
    running = asyncio.create_task(sync.run())
    try:
        for peer in peers:
            sync.progress(peer.node, Progress(Height(COUNT + 1), 0, BlockHash(bytes(32))))
        async with asyncio.timeout(60):
            while not target.is_there.is_set():
                await asyncio.sleep(0.02)
                # As a node says all the time where it is; one that lied does not call again.
                for peer in peers:
                    if type(peer) is Peer:
                        sync.progress(peer.node, Progress(Height(COUNT + 1), 0, BlockHash(bytes(32))))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_far_behind_headers_come_first_and_blocks_from_all() -> None:
    target, one, two = Target(), Peer("one"), Peer("two")
    await synced(target, one, two)
    assert state_root(target.state) == state_root(states()[-1])
    assert one.asked[0] == ("headers", 1, 512)
    assert all(any(what == "blocks" for what, _, _ in peer.asked) for peer in (one, two))
    assert target.store.certificate(Height(COUNT)) == pairs()[-1][1]
    # What it has now is what others have.
    assert [b for b, _ in target.store.raw_blocks(Height(1), COUNT)] == [block.to_bytes() for block, _ in pairs()]


@pytest.mark.parametrize("bad", [Pruned, Stalled, Swaps, Forges, Trickles, Nothing])
async def test_a_bad_peer_is_passed_over_without_harm(bad: type[Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    if bad is Stalled:
        monkeypatch.setattr(sync_module, "TIMEOUT_SECONDS", 1.0)
    pairs()
    target, liar, honest = Target(), bad("bad"), Peer("honest")
    await synced(target, liar, honest)
    assert state_root(target.state) == state_root(states()[-1])
    # It was asked a few times, not for everything.
    assert 1 <= len(liar.asked) <= 4


async def test_a_peer_that_says_again_and_again_that_it_is_further_is_left_alone() -> None:
    target, liar, honest = Target(), Nothing("bad"), Peer("honest")
    known = {peer.node: peer for peer in (liar, honest)}
    sync = Sync(target, lambda node: cast(Connection, known[node]))
    honest_blocks = honest.blocks

    async def blocks(first: int, count: int) -> AsyncIterator[Pair]:
        sync.progress(liar.node, Progress(Height(10**9), 0, BlockHash(bytes(32))))
        async for pair in honest_blocks(first, count):
            yield pair

    honest.blocks = blocks  # type: ignore[method-assign]
    running = asyncio.create_task(sync.run())
    sync.progress(honest.node, Progress(Height(COUNT + 1), 0, BlockHash(bytes(32))))
    sync.progress(liar.node, Progress(Height(10**9), 0, BlockHash(bytes(32))))
    try:
        async with asyncio.timeout(60):
            await target.is_there.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len(liar.asked) <= 2


async def test_a_few_blocks_need_no_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "NEAR", COUNT)
    target, peer = Target(), Peer("one")
    await synced(target, peer)
    assert [what for what, _, _ in peer.asked] == ["blocks"]


def test_headers_are_believed_as_far_as_validators_that_are_known_signed() -> None:
    made, before = pairs(), genesis_state(genesis())
    headers = [block.header for block, _ in made]
    assert check_headers(before, headers[:12], made[11][1]) == tuple(block.block_hash for block, _ in made[:12])
    for headers_, certificate, words in (
        (headers[:8], tampered(made[7][1]), "does not verify"),
        (headers[:12], made[12][1], "not that of the last"),
        (headers[1:12], made[11][1], "wanted is 1"),
        (headers[:5] + headers[6:12], made[11][1], "wanted is 6"),
        ([], made[11][1], "not that of the last"),
        (headers[:12], replace(made[11][1], signatures=made[11][1].signatures[:2]), "2/3 are needed"),
    ):
        with pytest.raises(BlockError, match=words):
            check_headers(before, headers_, certificate)
    with pytest.raises(WrongChainError):
        check_headers(replace(before, chain_id=cast(Any, b"x" * 32)), headers[:1], made[0][1])


def test_strangers_signatures_do_not_count() -> None:
    made, before = pairs(), genesis_state(genesis())
    certificate = made[-1][1]
    known = {v.node_id for v in before.validators}
    assert is_within_reach(certificate, before.validators)
    kept = tuple(s for s in certificate.signatures if s.validator not in known or s.validator == min(known))
    assert not is_within_reach(replace(certificate, signatures=kept), before.validators)
    with pytest.raises(BlockError, match="2/3 are needed"):
        check_headers(before, [block.header for block, _ in made], replace(certificate, signatures=kept))


def test_many_blocks_are_one_write_and_what_is_wrong_ends_them() -> None:
    writes: list[int] = []

    class Counted(Memory):
        def put_batch(self, puts: Any, deletes: Any = (), sync: bool = True) -> None:
            writes.append(len(puts))
            super().put_batch(puts, deletes, sync)

    kv = Counted()
    store = ChainStore(kv, genesis())
    light = LightService(kv, store)
    blocks = [*pairs()[:20], (pairs()[20][0], tampered(pairs()[20][1])), pairs()[21]]
    found, failure = catch_up(store, light, blocks)
    assert (len(found), store.state.height, len(writes)) == (20, 20, 1)
    assert isinstance(failure, BlockError)
    again = ChainStore(kv, genesis())
    assert again.tip_root == state_root(states()[20])
    assert light.block(Height(11)).header == pairs()[10][0].header


@pytest.mark.parametrize("applied", [False, True])
def test_a_kill_in_the_write_leaves_all_of_it_or_nothing(applied: bool) -> None:
    kv = Memory()
    store = ChainStore(Faulty(kv, 2, applied=applied), genesis())
    new = CatchUp(store, None)
    for part in (pairs()[:10], pairs()[10:30]):
        for pair in part:
            new.add(*pair)
        with contextlib.suppress(StorageError):
            new.write()
    assert ChainStore(kv, genesis()).tip_root == state_root(states()[30 if applied else 10])


def test_pruning_finds_its_states_inside_a_write() -> None:
    kv = Memory()
    store = ChainStore(kv, genesis(), keep=8)
    catch_up(store, None, pairs())
    assert store.pruning.base == COUNT - 8
    assert store.base_state().height == COUNT - 8
