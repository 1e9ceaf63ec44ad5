"""PoolService over real connections: a member's receipts, its word on them, and a flooder who stops neither."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pofl.mining.v1 import mining_pb2_grpc

from core.crypto.signing import KeyPair
from core.errors import AuthError, LimitError, PoflError, UnavailableError
from core.ids import AccountId, Digest, Milliseconds
from core.market import contributions as c
from core.market.contribution_books import audit
from pool.flower.jobs import JoinTicket, RoundReport
from pool.flower.keys import new_node_key
from pool.manager.board import Board
from pool.manager.books import Books
from pool.manager.config import AdmissionConfig
from pool.manager.members import Members
from pool.manager.receipts import ReceiptDesk
from pool.manager.servicer import POOL, RULES, PoolServicer
from pool.miner.contributions import ContributionDesk
from services.rpc import channel, tls
from services.rpc.convert_mining import FetchRows, Join, TrainOn
from services.rpc.handshake import ChainIdentity, LocalIdentity
from services.rpc.mining_client import PoolClient
from services.rpc.server import RpcServer
from tests.pool_kit import CHAIN, T0, TASK, keys

POOL_KEY, ANN_KEY = keys(2, "pool service")
ACCOUNT, ANN = AccountId(POOL_KEY.public_key), AccountId(ANN_KEY.public_key)
LOCAL = ChainIdentity("pofl-test", b"\x11" * 32, 1)


class Enrolment:
    async def register(self, node_public_key: bytes) -> JoinTicket:
        return JoinTicket("127.0.0.1:7", b"CA", b"h" * 32, node_public_key)

    async def unregister(self, node_public_key: bytes) -> None:
        pass

    async def connected(self) -> list[bytes]:
        return []


class Clock:
    def now_ms(self) -> Milliseconds:
        return Milliseconds(T0)


@dataclass
class World:
    authority: tls.Authority
    folder: Path
    server: RpcServer
    members: Members
    books: Books

    @contextlib.asynccontextmanager
    async def client(self, role: str, name: str, account: bytes | None = None) -> AsyncIterator[PoolClient]:
        files = tls.issue(self.authority, role, name, ["127.0.0.1"], account).write(self.folder / name)
        async with channel.connect(self.server.address, files, expect_role="pool") as on:
            yield PoolClient(on)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    authority = tls.make_authority(tmp_path / "ca")
    files = tls.issue(authority, "pool", "pool-0", ["127.0.0.1"], POOL_KEY.public_key).write(tmp_path / "pool-0")
    identity = LocalIdentity("pool", "pool-0", LOCAL, KeyPair.from_seed(POOL_KEY.seed))
    server = RpcServer("127.0.0.1:0", files, "127.0.0.1:0", role_rules=RULES, identity=identity)
    members = Members(Enrolment(), POOL_KEY, CHAIN, AdmissionConfig(), Clock())
    books = Books(tmp_path / "tasks", POOL_KEY, CHAIN, members.show, 4, 0)
    members.greeting = books.greeting
    receipts = ReceiptDesk(tmp_path / "receipts", None, None, CHAIN)  # type: ignore[arg-type]
    servicer = PoolServicer(CHAIN, members, receipts, Board(), books)
    server.add(mining_pb2_grpc.add_PoolServiceServicer_to_server, servicer, POOL)
    await server.start()
    await server.ready()
    yield World(authority, tmp_path, server, members, books)
    await server.stop(0)


async def take_part(world: World, client: PoolClient, ready: asyncio.Event, desk: ContributionDesk) -> None:
    """Ann, as her miner process has it: join, attend, keep what she is shown, and answer."""
    join = Join(CHAIN, ACCOUNT, ANN, new_node_key()[1], 100, 64, b"")
    signed = await client.join(ANN_KEY, join)
    assert signed.joined.pool == ACCOUNT
    ready.set()
    async for shown in client.attend(ANN_KEY, join):
        if not isinstance(shown, FetchRows | TrainOn):
            await desk.take(ACCOUNT, shown, client)


async def flood(client: PoolClient, seen: Counter[str], stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            await client.contributions()
            await client.members()
            seen["served"] += 1
        except PoflError as error:
            seen[type(error).__name__] += 1
            await asyncio.sleep(0)


@pytest.mark.timeout(600)
async def test_a_flooder_stops_neither_receipts_nor_answers(world: World) -> None:
    stop, ready, seen = asyncio.Event(), asyncio.Event(), Counter[str]()
    desk = ContributionDesk(world.folder / "ann", ANN_KEY, CHAIN)
    async with (
        world.client("user", "flooder") as flooder,
        world.client("miner", "ann", ANN) as ann,
        world.client("user", "reader") as reader,
    ):
        flooding = [asyncio.create_task(flood(flooder, seen, stop)) for _ in range(100)]
        attending = asyncio.create_task(take_part(world, ann, ready, desk))
        try:
            async with asyncio.timeout(300):
                await ready.wait()
                while ANN not in world.members.online:  # noqa: ASYNC110 - it is another task's state
                    await asyncio.sleep(0.01)
                book = await world.books.open(TASK)
                for number in (1, 2, 3):
                    desk.note_sent(ACCOUNT, TASK, number, 100)
                    report = RoundReport(number, 0.1, 1, {"02" * 33: 100}, {}, 1, 2, 0.5, 1, 1)
                    book.record(report, lambda _: ANN)
                    await book.settle()
                await book.close()
                while True:
                    with contextlib.suppress(UnavailableError):
                        found = audit(await reader.contributions(TASK), CHAIN, ACCOUNT, TASK)
                        if found.agreed.get(ANN) == 4:
                            break
                    await asyncio.sleep(0.05)
        finally:
            stop.set()
            attending.cancel()
            await asyncio.gather(*flooding, attending, return_exceptions=True)
    assert found.sums == {ANN: 300}
    assert found.objections == {}
    assert seen[LimitError.__name__] + seen[UnavailableError.__name__] > 0, f"the flooder was never slowed down: {seen}"


async def test_a_word_is_taken_from_its_own_miner_only(world: World) -> None:
    book = await world.books.open(TASK)
    book.record(RoundReport(1, 0.1, 1, {"02" * 33: 100}, {}, 1, 2, 0.5, 1, 1), lambda _: ANN)
    await book.settle()
    sheet = book.last_sheet
    assert sheet is not None
    answer = c.Answer(CHAIN, ACCOUNT, TASK, ANN, c.head_digest(sheet.signed.head), 100, "")
    signed = c.sign_answer(ANN_KEY, answer)
    async with world.client("miner", "eve", b"\x07" * 32) as eve, world.client("user", "uma") as user:
        for client in (eve, user):
            with pytest.raises(AuthError):
                await client.countersign(signed)
    async with world.client("miner", "ann", ANN) as ann:
        await ann.countersign(signed)
        with pytest.raises(AuthError):
            await ann.countersign(c.sign_answer(POOL_KEY, answer))
        (task,) = await ann.mined_tasks()
        assert (task.task_id, task.rounds, task.counted) == (TASK, 1, 100)
    assert Digest(answer.statement) == c.head_digest(sheet.signed.head)
