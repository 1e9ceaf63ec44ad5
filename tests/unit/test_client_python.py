"""clients/python over a chain that the test makes: both clients, streams that resume, proofs, and the servers' errors."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pofl_client
import pytest
from pofl.chain.v1 import chain_pb2 as pb
from pofl_client import AsyncNode, Key, Node, Tls, _async, local_network, values
from pofl_client.errors import BY_NAME
from pofl_client.tls import look

from core.chain.transaction import Transfer
from core.codec import encode
from core.ids import Amount
from services.rpc import errors as server_errors
from services.rpc import tls
from services.rpc.auth import ANYONE
from services.rpc.server import RpcServer
from tests.chainkit import account, key
from tests.light_world import World
from tools import client_sync

OTHER = key("other")
KEY = Key.from_seed(OTHER.seed)


@pytest.fixture
def world() -> World:
    return World()


@asynccontextmanager
async def node_of(world: World, blocks: int = 3) -> AsyncIterator[tuple[AsyncNode, int]]:
    """A client, and the server's port."""
    for _ in range(blocks):
        world.chain.block()
    world.follow()
    async with world.served() as (address, _), AsyncNode(address, timeout=60) as node:
        yield node, int(address.rpartition(":")[2])


def test_the_blocking_client_is_what_the_other_gives() -> None:
    assert client_sync.TARGET.read_text() == client_sync.made(client_sync.SOURCE.read_text()), "run `make client`"


def test_every_error_of_the_servers_has_a_class_here() -> None:
    assert set(BY_NAME) == {kind.__name__ for kind in server_errors.STATUS}
    assert all(issubclass(kind, pofl_client.PoflError) for kind in BY_NAME.values())


async def test_reads_and_what_is_not_there(world: World) -> None:
    async with node_of(world) as (node, _):
        tip = await node.tip()
        assert (tip.height, tip.block_hash) == (3, world.chain.state.tip.block_hash)
        genesis = await node.genesis()
        assert genesis.chain_id == world.chain.genesis.chain_id
        block = await node.block(tip.block_hash.hex())
        assert (await node.block(3)).block_hash == block.block_hash == pofl_client.block_hash(block.header_bytes)
        assert (await node.account(account("other"))).balance == world.chain.state.account(account("other")).balance
        task = world.chain.publish()
        world.follow()
        assert [each.task_id for each in await node.tasks()] == [task]
        assert (await node.task(task.hex())).spec.name == "digits"
        assert len(await node.validators()) == 4
        assert list(await node.providers()) == list(await node.trades()) == []
        with pytest.raises(pofl_client.NotFoundError, match="77") as missing:
            await node.block(77)
        assert (missing.value.name, missing.value.code) == ("NotFoundError", "NOT_FOUND")
        assert missing.value.peer.startswith("127.0.0.1:")
        with pytest.raises(pofl_client.ConfigError, match="32 bytes"):
            await node.task("abcd")
        with pytest.raises(pofl_client.ConfigError, match="not hexadecimal"):
            await node.task("xyz")
        assert (await node.stub.GetTip(pb.GetTipRequest(), timeout=60)).height == world.chain.state.height


async def test_the_blocking_client_reads_sends_and_watches(world: World) -> None:
    def script(address: str) -> None:
        with Node(address, timeout=60) as node:
            before = node.account(account("pool0")).balance
            sent = node.transfer(KEY, account("pool0"), 55)
            height = node.wait_transaction(sent, 60)
            assert node.account(account("pool0")).balance == before + 55
            block = node.check_transaction(sent.tx_id, node.block(height).block_hash)
            assert [each.kind for each in block.transactions] == ["Transfer"]
            heights = [each.header.height for _, each in zip(range(height), node.watch_blocks(1), strict=False)]
            assert heights == list(range(1, height + 1))
            assert next(node.watch_tasks()).height == height
            # Nothing comes, and it ends in order.
            assert list(node.watch_blocks(height + 1, duration=0.3)) == []
            with pytest.raises(pofl_client.NotFoundError):
                node.block(height + 1)
            with pytest.raises(pofl_client.DeadlineError, match=r"is unknown( \(.*\))? after"):
                node.wait_task(bytes(32), 0.3)
        with pytest.raises(pofl_client.ConfigError, match="closed"):
            node.tip()

    world.chain.block()
    world.follow()
    async with world.served() as (address, _):
        await asyncio.to_thread(script, address)


async def test_transactions_are_what_the_chain_signs(world: World) -> None:
    async with node_of(world, 1) as (node, _):
        ours = world.chain.tx("other", Transfer(account("pool1"), Amount(9)), fee=3)
        tx = ours.decoded()
        made = pofl_client.transfer(KEY, tx.chain_id, tx.nonce, 3, account("pool1"), 9)
        assert (made.data, made.tx_id) == (encode(ours), ours.tx_id)
        assert await node.submit(made) == ours.tx_id == pofl_client.tx_id(made.data)
        with pytest.raises(pofl_client.MalformedError) as refused:
            await node.submit(bytes(8))
        assert refused.value.code == "INVALID_ARGUMENT"
        results = await node.submit_all([made, made.data])
        assert [each.refusal for each in results] == ["", ""]
        assert values.least_fee((await node.genesis()).genesis_json, 1500) == world.chain.genesis.params.least_fee(1500)


async def test_a_proof_holds_for_one_transaction_of_one_block(world: World) -> None:
    pays = [world.chain.tx("other", Transfer(account("pool0"), Amount(n + 1)), nonce=n) for n in range(5)]
    world.chain.block(*pays)
    async with node_of(world) as (node, _):
        trusted = (await node.block(1)).block_hash
        for pay in pays:
            assert (await node.check_transaction(pay.tx_id, trusted)).header.height == 1
        with pytest.raises(pofl_client.ChainError, match="trusted is"):
            await node.check_transaction(pays[0].tx_id, (await node.block(2)).block_hash)
        proof = (await node.stub.GetProof(pb.GetProofRequest(tx_id=pays[2].tx_id), timeout=60)).proof
        header = (await node.block(1)).header_bytes
        assert values.check_included(proof, header, pays[2].tx_id, trusted) == encode(pays[2])
        with pytest.raises(pofl_client.ChainError, match="asked was for"):
            values.check_included(proof, header, pays[3].tx_id, trusted)
        for place in range(len(proof)):
            spoiled = proof[:place] + bytes([proof[place] ^ 1]) + proof[place + 1 :]
            with pytest.raises(pofl_client.PoflError):
                values.check_included(spoiled, header, pays[2].tx_id, trusted)
        for cut in (b"", proof[:-1], proof + b"\0"):
            with pytest.raises(pofl_client.PoflError):
                values.check_included(cut, header, pays[2].tx_id, trusted)


async def test_streams_go_on_where_they_broke_off(world: World, held_port: int) -> None:
    world.chain.block()
    world.chain.publish()
    world.follow()
    height = world.store.state.height
    blocks: list[int] = []
    tasks: list[int] = []

    async def read_blocks(node: AsyncNode) -> None:
        async for block in node.watch_blocks(1):
            blocks.append(block.header.height)  # noqa: PERF401 - it never ends

    async def read_tasks(node: AsyncNode) -> None:
        async for update in node.watch_tasks():
            tasks.append(update.height)  # noqa: PERF401 - it never ends

    async def until(last: int) -> None:
        async with asyncio.timeout(60):
            while blocks[-1:] != [last] or tasks[-1:] != [last]:  # noqa: ASYNC110 - two lists
                await asyncio.sleep(0.02)

    def more() -> int:
        world.chain.publish(name=f"task at {world.chain.state.height}")
        world.follow()
        return world.store.state.height

    node = AsyncNode(f"127.0.0.1:{held_port}")
    try:
        async with world.served(held_port):
            readers = [asyncio.create_task(each) for each in (read_blocks(node), read_tasks(node))]
            await until(height)
            await until(more())
        # Nobody is there for a while, and the chain goes on without being watched.
        more()
        await asyncio.sleep(0.2)
        async with world.served(held_port):
            await until(more())
            for each in readers:
                each.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
    finally:
        await node.close()
    assert blocks == list(range(1, world.store.state.height + 1))
    assert tasks == list(range(height, world.store.state.height + 1))


async def test_patience_ends_and_pruned_blocks_are_told(world: World, held_port: int) -> None:
    async with node_of(world) as (node, _):
        stream = node.watch_blocks(1, patience=0.3)
        assert (await anext(stream)).header.height == 1
        assert [claims async for claims in node.watch_claims(1, duration=0.2)] == []
    with pytest.raises(pofl_client.ConfigError, match="closed"):
        async for _ in stream:
            pass
    async with world.served() as (address, _):
        late = AsyncNode(address)
        waiting = late.watch_blocks(4, patience=0.3)
        reading = asyncio.create_task(anext(waiting))
        await asyncio.sleep(0.2)
    with pytest.raises(pofl_client.UnavailableError):
        await reading
    await late.close()
    with pytest.raises(pofl_client.UnavailableError, match="nothing listens"):
        await AsyncNode(f"127.0.0.1:{held_port}").tip()


async def test_another_node_is_asked_when_one_is_gone(world: World, held_port: int) -> None:
    world.chain.block()
    world.follow()
    async with world.served() as (address, _), AsyncNode([f"127.0.0.1:{held_port}", address], timeout=60) as node:
        assert (await node.tip()).height == 1
        assert (await anext(node.watch_blocks(1))).header.height == 1


def test_one_attempt_to_connect_has_seconds() -> None:
    """gRPC takes this option for it. With 0.2 s nobody far away was reached at the first attempts."""
    assert dict(AsyncNode("127.0.0.1:1")._options())["grpc.min_reconnect_backoff_ms"] >= 2_000


async def test_a_node_that_shows_another_block_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node_of(world) as (node, _):
        monkeypatch.setattr(values, "block_hash", lambda header: bytes(32))
        with pytest.raises(pofl_client.MalformedError, match="not the hash of its header"):
            await node.block(1)


# TLS


@pytest.fixture
def authority(tmp_path: Path) -> tls.Authority:
    return tls.make_authority(tmp_path / "ca")


def issued(authority: tls.Authority, folder: Path, role: str = "user") -> Path:
    tls.issue(authority, role, "me", ["127.0.0.1"]).write(folder / role)
    return folder / role


async def test_what_is_wrong_with_a_connection_is_said(authority: tls.Authority, tmp_path: Path) -> None:
    user, node = issued(authority, tmp_path), issued(authority, tmp_path, "node")
    stranger = issued(tls.make_authority(tmp_path / "elsewhere"), tmp_path / "foreign")
    mixed = Tls(user / "ca.pem", stranger / "tls.pem", stranger / "tls.key")
    files = tls.TlsFiles(node / "ca.pem", node / "tls.pem", node / "tls.key")
    server = RpcServer("127.0.0.1:0", files, "127.0.0.1:0", role_rules={"pofl.chain.v1.ChainService": [ANYONE]})
    await server.start()
    try:
        for folder, role, error, words in (
            (stranger, "node", pofl_client.AuthError, "not of the network of"),
            (user, "requester", pofl_client.AuthError, "not for requester.pofl.internal"),
            (mixed, "node", pofl_client.AuthError, "refuses our certificate|closed the connection"),
        ):
            with pytest.raises(error, match=words):
                await asyncio.to_thread(look, server.address, Tls.of(folder), f"{role}.pofl.internal", 60)
        await asyncio.to_thread(look, server.address, Tls.of(user), "node.pofl.internal", 60)
        with pytest.raises(pofl_client.ConfigError, match="admin address"):
            await asyncio.to_thread(look, server.admin_address, Tls.of(user), "node.pofl.internal", 60)
        async with AsyncNode(server.address, user, timeout=60) as client:
            # The service is allowed and not served: gRPC's own answer becomes one of ours.
            with pytest.raises(pofl_client.ProtocolError, match="UNIMPLEMENTED"):
                await client.tip()
    finally:
        await server.stop(0)


@contextmanager
def listener(serve: ssl.SSLContext | None) -> Iterator[str]:
    """Accepts one connection, and says nothing on it without a context."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        done = threading.Event()

        def accept() -> None:
            connection, _ = server.accept()
            with connection:
                if serve is None:
                    done.wait(60)
                    return
                try:
                    serve.wrap_socket(connection, server_side=True).close()
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            done.set()
            thread.join()


def test_nothing_below_tls_13_and_nobody_who_is_silent(authority: tls.Authority, tmp_path: Path) -> None:
    user, node = Tls.of(issued(authority, tmp_path)), issued(authority, tmp_path, "node")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(node / "tls.pem", node / "tls.key")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with listener(old) as address, pytest.raises(pofl_client.AuthError, match=r"TLS 1\.3"):
        look(address, user, "node.pofl.internal", 60)
    with listener(None) as address, pytest.raises(pofl_client.DeadlineError, match=r"within 0\.2 s"):
        look(address, user, "node.pofl.internal", 0.2)


def test_what_is_wrong_here_is_said_with_the_files_name(authority: tls.Authority, tmp_path: Path) -> None:
    user = issued(authority, tmp_path)
    for target, files, words in (
        ("nowhere", user, "not HOST:PORT"),
        ("node.example:7000", None, "another machine: give tls"),
        ("127.0.0.1:1", tmp_path / "missing", "no folder"),
        ([], user, "no address"),
    ):
        with pytest.raises(pofl_client.ConfigError, match=words):
            Node(target, files)
    for name, text, words in (("tls.key", "nothing", "private key"), ("ca.pem", "nothing", r"ca\.pem is not a PEM")):
        (user / name).write_text(text)
        with pytest.raises(pofl_client.ConfigError, match=words):
            Node("127.0.0.1:1", user).tip()
    (user / "tls.key").unlink()
    with pytest.raises(pofl_client.ConfigError, match=r"cannot read .*tls.key"):
        Node("127.0.0.1:1", user).tip()


def test_a_local_network_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: tls.Authority) -> None:
    with pytest.raises(pofl_client.ConfigError, match="is no testnet"):
        local_network(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POFL_NET", raising=False)
    with pytest.raises(pofl_client.ConfigError, match="no testnet here"):
        local_network()
    net = tmp_path / "testnet-data" / "net"
    (net / "user").mkdir(parents=True)
    issued(authority, tmp_path).rename(net / "user" / "tls")
    (net / "testnet.json").write_text('{"members": [{"role": "node", "listen": "127.0.0.1:1"}]}')
    found = local_network()
    assert found.addresses == {"node": ["127.0.0.1:1"]}
    with pytest.raises(pofl_client.UnavailableError, match=r"127.0.0.1:1"):
        found.node().tip()
    with pytest.raises(pofl_client.ConfigError, match="has no requester"):
        found.requester()


async def test_a_task_is_waited_for_and_its_claims_are_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node_of(world) as (node, _):
        task = world.chain.to_work_height(pool0=900, pool1=950)
        world.follow()
        waiting = asyncio.create_task(node.wait_task(task, 60))
        stream = node.watch_claims(1)
        claims = [await anext(stream)]
        await stream.aclose()
        assert sorted(claim.correct for update in claims for claim in update.claims) == [900, 950]
        with monkeypatch.context() as patch:
            # Every look at this clock finds it 20 s later: one question is asked, and it has all of 20 s for its answer.
            patch.setattr(_async, "time", SimpleNamespace(monotonic=partial(next, itertools.count(0, 20))))
            with pytest.raises(pofl_client.DeadlineError, match="is TASK_PHASE_WORK after"):
                await node.wait_task(task, 60)
        assert (await node.wait_task(task, 60, [pb.TASK_PHASE_WORK])).task_id == task
        assert not waiting.done()
        block = world.chain.work_block("pool1")
        world.chain.apply(block)
        world.follow()
        won = await waiting
        assert (won.phase, won.winner, won.ended_height) == (pb.TASK_PHASE_WON, account("pool1"), world.store.state.height)
        assert (await node.block(won.ended_height)).header.kind == pb.BLOCK_KIND_WORK
        assert [each.task_id for each in await node.tasks([pb.TASK_PHASE_WON])] == [task]
