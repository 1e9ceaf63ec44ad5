"""The light client of docs/light-client.md, printed there and run here; and streams that are resumed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from pofl.chain.v1 import chain_pb2 as pb
from pofl.chain.v1 import chain_pb2_grpc as rpc

from core.chain.light import trust_genesis
from core.chain.state import Account
from core.chain.transaction import Commit, EnterTask, Transfer
from core.errors import BlockError, LimitError, NotFoundError, UnavailableError
from core.ids import Amount, Height, TxId
from node import history as history_module
from node import queries, servicer
from node.history import TaskHistory
from services.rpc.chain_client import ChainClient
from tests.chainkit import account, make_claim, make_commitment, some
from tests.light_world import World

DOCS = Path(__file__).resolve().parents[2] / "docs" / "light-client.md"


@pytest.fixture
def world() -> World:
    return World()


def to_claims(world: World) -> None:
    chain = world.chain
    task = chain.publish()
    chain.enter(task, "pool0", "pool1")
    chain.block(*(chain.tx(p, Commit(task, make_commitment(chain.state, task, p, p))) for p in ("pool0", "pool1")))
    windows = chain.state.windows(task)
    assert windows is not None
    chain.until(windows.commit_close_ms)
    for pool, correct in (("pool0", 900), ("pool1", 950)):
        chain.block(chain.tx(pool, make_claim(chain.state, task, pool, pool, correct)))
        chain.block()


async def test_the_client_of_the_documentation(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found is not None
    code = found[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    pay = world.chain.tx("other", Transfer(account("pool0"), Amount(77)))
    world.chain.block(pay)
    for _ in range(3):
        world.chain.block()
    world.follow()
    (tmp_path / "genesis.json").write_text(world.chain.genesis.to_json())
    space: dict[str, Any] = {"__name__": "light"}
    exec(compile(code, str(DOCS), "exec"), space)
    async with world.served() as (address, _):
        await space["main"](str(tmp_path / "genesis.json"), address, account("pool0").hex(), pay.tx_id.hex())
        printed = capsys.readouterr().out
        assert "is final in block 1: Transfer" in printed
        assert f"before block 4, {world.chain.state.tip.block_hash.hex()[:8]}: balance 10000077" in printed
        await space["main"](str(tmp_path / "genesis.json"), address, some("nobody").hex(), pay.tx_id.hex())
        assert "balance 0" in capsys.readouterr().out


async def test_a_node_that_lies_about_an_account_is_found(world: World) -> None:
    world.chain.block()
    world.chain.block()
    world.follow()
    before = world.light._before
    assert before is not None
    richer = before.accounts.put(account("pool0"), Account(Amount(10**12), 0))
    world.light._before = replace(before, accounts=richer)
    async with world.served() as (address, channel):
        client = ChainClient([(address, channel)])
        trusted = trust_genesis(world.chain.genesis)
        with pytest.raises(Exception, match="does not lead to the state root"):
            await client.prove(Account, "accounts", account("pool0"), trusted)
        far = await client.follow(trusted, Height(2))
        assert far.height == 2
        with pytest.raises(NotFoundError, match="is in no finalised block"):
            await client.prove_transaction(TxId(some("x")), trusted)
        with pytest.raises(BlockError, match="before the trusted height"):
            await client.prove(Account, "accounts", account("pool0"), replace(far, height=Height(9)))


async def test_right_after_a_start_there_are_no_proofs_yet(world: World) -> None:
    world.chain.block()
    world.follow()
    world.light._before = None
    with pytest.raises(UnavailableError, match="from the next block on"):
        world.light.record("accounts", account("pool0"))


async def test_claims_are_told_once_each_across_reconnects(world: World) -> None:
    to_claims(world)
    world.follow()
    seen: list[tuple[int, int]] = []
    async with world.served() as (_, channel):
        stub: Any = rpc.ChainServiceStub(channel)
        first = stub.WatchClaims(pb.WatchClaimsRequest(from_height=1), timeout=60)
        answer = await first.read()
        seen.append((answer.height, answer.claims[0].correct))
        first.cancel()
    async with world.served() as (_, channel):
        stub = rpc.ChainServiceStub(channel)
        again = stub.WatchClaims(pb.WatchClaimsRequest(from_height=seen[-1][0] + 1), timeout=60)
        answer = await again.read()
        seen.append((answer.height, answer.claims[0].correct))
        again.cancel()
    assert [correct for _, correct in seen] == [900, 950]


async def until_so(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 - what is waited for is a list that fills
            await asyncio.sleep(0.01)


async def test_a_client_sees_no_seam(world: World, held_port: int) -> None:
    """The node goes away and comes back at the same address while blocks are made: no block, claim or update twice or never."""
    to_claims(world)
    blocks: list[Any] = []
    claims: list[Any] = []
    updates: list[Any] = []
    channel: grpc.aio.Channel | None = None
    collectors: list[asyncio.Task[None]] = []

    async def collect(stream: AsyncIterator[Any], into: list[Any]) -> None:
        async for item in stream:
            into.append(item)  # noqa: PERF401 - the test looks at what has come so far

    total = len(world.chain.blocks)
    for part in range(3):
        async with world.served(held_port) as (address, _):
            if channel is None:
                options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
                channel = grpc.aio.insecure_channel(address, options=options)
                client = ChainClient([(address, channel)])
                collectors += [
                    asyncio.create_task(collect(client.watch_blocks(Height(1)), blocks)),
                    asyncio.create_task(collect(client.watch_claims(Height(1)), claims)),
                    asyncio.create_task(collect(client.watch_tasks(), updates)),
                ]
                await until_so(lambda: bool(updates))
            until = total * (part + 1) // 3
            for block in world.chain.blocks[world.store.state.height : until]:
                world.commit(block)
                await asyncio.sleep(0)
            await until_so(lambda: len(blocks) >= until)  # noqa: B023 - awaited within the turn
    async with world.served(held_port):
        await until_so(lambda: updates[-1].height >= world.driver.history.now.height and len(claims) == 2)
    for task in collectors:
        task.cancel()
    await asyncio.gather(*collectors, return_exceptions=True)
    assert channel is not None
    await channel.close(None)
    assert [b.header.height for b in blocks] == list(range(1, total + 1))
    assert [c.claims[0].correct for c in claims] == [900, 950]
    kept = world.driver.history.since(Height(1))
    assert [u.height for u in updates] == [0, *(u.height for u in kept)]


async def test_updates_that_are_no_longer_kept_are_refused_with_advice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "KEPT", 2)
    world.driver.history = TaskHistory(world.store.state)
    to_claims(world)
    world.follow()
    async with world.served() as (_, channel):
        stub: Any = rpc.ChainServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="watch from 0") as caught:
            await stub.WatchTasks(pb.WatchTasksRequest(from_height=2), timeout=60).read()
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        now = await stub.WatchTasks(pb.WatchTasksRequest(), timeout=60).read()
        assert now.height == world.store.state.height
        assert len(now.tasks) == 1


async def test_a_reader_that_does_not_read_is_dropped_and_told_where_to_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "STALL_SECONDS", 0.3)

    class Stuck:
        async def write(self, message: Any) -> None:
            await asyncio.sleep(60)

    world.chain.block()
    world.chain.block()
    world.follow()
    stream = world.servicer.WatchBlocks(pb.WatchBlocksRequest(from_height=2), Stuck())  # type: ignore[arg-type]
    with pytest.raises(LimitError, match="resume from height 2"):
        await anext(aiter(stream))


async def _drained(call: Any) -> None:
    while True:
        if not isinstance(await call.read(), pb.WatchBlocksResponse):
            return


async def test_a_stalled_reader_finds_the_reason_when_it_reads_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer, "STALL_SECONDS", 0.3)
    chain = world.chain
    chain.block(*(chain.tx(f"pool{i % 6}", Transfer(account("x"), Amount(i + 1))) for i in range(300)))
    world.follow()

    async def endless(first: Height) -> AsyncIterator[Height]:
        while True:
            yield Height(1)

    monkeypatch.setattr(world.servicer._api, "watch_blocks", endless)
    send, dropped = servicer._send, asyncio.Event()

    async def noted(*args: Any) -> None:
        try:
            await send(*args)
        except LimitError:
            dropped.set()
            raise

    monkeypatch.setattr(servicer, "_send", noted)
    async with world.served() as (_, channel):
        call = rpc.ChainServiceStub(channel).WatchBlocks(pb.WatchBlocksRequest(from_height=1), timeout=60)
        await call.read()
        await asyncio.wait_for(dropped.wait(), 60)
        with pytest.raises(grpc.aio.AioRpcError, match="resume from height 1") as caught:
            await _drained(call)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_entering_is_no_claim(world: World) -> None:
    task = world.chain.publish()
    world.chain.block()
    world.chain.block(world.chain.tx("pool0", EnterTask(task, Amount(100_000), "a:1")))
    assert queries.claims_view(world.chain.blocks[-1]).claims == ()
