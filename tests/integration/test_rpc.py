"""Real servers and channels on loopback, with real certificates."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pofl.admin.v1 import admin_pb2, admin_pb2_grpc
from pofl.blob.v1 import blob_pb2, blob_pb2_grpc

from core.crypto.signing import KeyPair
from core.errors import (
    AuthError,
    ConfigError,
    DeadlineError,
    LimitError,
    MalformedError,
    PoflError,
    TransactionError,
    UnavailableError,
    WrongChainError,
)
from services.rpc import auth, channel, interceptor, tls
from services.rpc.errors import translate
from services.rpc.handshake import ChainIdentity, LocalIdentity
from services.rpc.limits import CallerLimits
from services.rpc.server import RpcServer
from services.testnet.layout import free_ports

BLOBS = "pofl.blob.v1.BlobService"
LONG = 100.0
"""Seconds, for what takes less than one on a machine that does nothing else."""
CHAIN = ChainIdentity("pofl-test", b"\x11" * 32, 1)


class Scripted(blob_pb2_grpc.BlobServiceServicer):
    """Answers what the test tells it to; the blob contract has three of the four kinds of method."""

    def __init__(self) -> None:
        self.stat: Callable[[], Any] = lambda: blob_pb2.StatResponse(size=7)
        self.seen: list[auth.Caller] = []
        self.calls = 0

    async def Stat(self, request: blob_pb2.StatRequest, context: Any) -> blob_pb2.StatResponse:  # noqa: N802
        self.calls += 1
        self.seen.append(auth.caller(context))
        result = self.stat()
        answer: blob_pb2.StatResponse = await result if asyncio.iscoroutine(result) else result
        return answer

    async def Read(self, request: blob_pb2.ReadRequest, context: Any) -> AsyncIterator[blob_pb2.Chunk]:  # noqa: N802
        yield blob_pb2.Chunk(offset=0, data=b"first")
        raise MalformedError("broken after one chunk")

    async def Write(self, request_iterator: AsyncIterator[Any], context: Any) -> blob_pb2.WriteResponse:  # noqa: N802
        count = 0
        async for _ in request_iterator:
            count += 1
        return blob_pb2.WriteResponse(size=count)


@dataclass
class World:
    folder: Path
    authority: tls.Authority

    def files(self, role: str, name: str, account: bytes | None = None) -> tls.TlsFiles:
        return tls.issue(self.authority, role, name, ["localhost", "127.0.0.1"], account).write(self.folder / f"{role}-{name}")

    def identity(self, role: str, name: str, seed: int, chain: ChainIdentity = CHAIN) -> LocalIdentity:
        return LocalIdentity(role, name, chain, KeyPair.from_seed(bytes([seed]) * 32))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, tls.make_authority(tmp_path / "ca"))


@dataclass
class Served:
    server: RpcServer
    servicer: Scripted

    def channel(self, files: tls.TlsFiles | None, role: str | None = "node") -> aio.Channel:
        return channel.connect(self.server.address, files, expect_role=role)


@pytest.fixture
async def served(world: World) -> AsyncIterator[Served]:
    identity = world.identity("node", "node-0", 1)
    server = RpcServer(
        "127.0.0.1:0", world.files("node", "node-0", identity.key.public_key), "127.0.0.1:0",
        role_rules={BLOBS: ["miner"], f"{BLOBS}/Write": ["requester"]}, identity=identity,
        limits=CallerLimits(rate=0.5, burst=20, concurrent=3),
    )  # fmt: skip
    servicer = Scripted()
    server.add(blob_pb2_grpc.add_BlobServiceServicer_to_server, servicer, BLOBS)
    await server.start()
    await server.ready()
    yield Served(server, servicer)
    await server.stop(0)


async def stat(on: aio.Channel, timeout: float = LONG, idempotent: bool = False) -> blob_pb2.StatResponse:
    stub = blob_pb2_grpc.BlobServiceStub(on)
    return await channel.call(stub.Stat, blob_pb2.StatRequest(), timeout, idempotent=idempotent)


async def test_a_caller_is_known_by_its_certificate(world: World, served: Served) -> None:
    async with served.channel(world.files("miner", "m-1", b"\x07" * 32)) as on:
        assert (await stat(on)).size == 7
    assert served.servicer.seen == [auth.Caller("miner", "m-1", b"\x07" * 32)]


async def test_a_role_without_a_rule_is_refused_before_the_method_runs(world: World, served: Served) -> None:
    async with served.channel(world.files("provider", "p-1")) as on:
        with pytest.raises(AuthError, match=r"provider/p-1 may not call pofl.blob.v1.BlobService/Stat: it serves miner"):
            await stat(on)
    assert served.servicer.calls == 0


async def test_a_methods_rule_wins_over_its_services(world: World, served: Served) -> None:
    async def parts() -> AsyncIterator[blob_pb2.WriteRequest]:
        yield blob_pb2.WriteRequest()

    async with served.channel(world.files("miner", "m-1")) as on:
        with pytest.raises(AuthError, match="it serves requester"), translate():
            await blob_pb2_grpc.BlobServiceStub(on).Write(parts(), timeout=LONG)
    async with served.channel(world.files("requester", "r-1")) as on:
        assert (await blob_pb2_grpc.BlobServiceStub(on).Write(parts(), timeout=LONG)).size == 1


async def test_a_server_of_another_role_is_not_called(world: World, served: Served) -> None:
    async with served.channel(world.files("miner", "m-1"), "pool") as on:
        with pytest.raises(AuthError, match="certificate is for another role"):
            await stat(on)


async def test_another_authoritys_certificate_is_cut_off(world: World, served: Served, tmp_path: Path) -> None:
    stranger = tls.issue(tls.make_authority(tmp_path / "other"), "miner", "m-1", [])
    files = stranger.write(tmp_path / "stranger")
    mixed = tls.TlsFiles(world.folder / "ca" / "ca.pem", files.cert, files.key)
    with pytest.raises(ConfigError, match="was not issued by"):
        served.channel(mixed)
    # Past our own check, straight through gRPC: TLS itself must refuse.
    credentials = grpc.ssl_channel_credentials(mixed.ca.read_bytes(), mixed.key.read_bytes(), mixed.cert.read_bytes())
    override = [("grpc.ssl_target_name_override", tls.server_name("node"))]
    async with aio.secure_channel(served.server.address, credentials, options=override) as on:
        with pytest.raises(UnavailableError):
            await stat(on)
    assert served.servicer.calls == 0


@pytest.mark.parametrize(("version", "accepted"), [(ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, True)])
async def test_only_tls_1_3_is_spoken(world: World, served: Served, version: ssl.TLSVersion, accepted: bool) -> None:
    files = world.files("miner", "m-1")
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    host, port = served.server.address.split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    except (ssl.SSLError, ConnectionError):
        agreed = False
    else:
        agreed = True
        writer.transport.abort()
    assert agreed == accepted


async def test_an_error_of_the_tree_arrives_as_it_left(world: World, served: Served) -> None:
    def refuse() -> None:
        raise TransactionError("nonce 3 is used, the next is 5: naïve ✓", "nonce")

    served.servicer.stat = refuse
    async with served.channel(world.files("miner", "m-1")) as on:
        with pytest.raises(TransactionError, match="nonce 3 is used, the next is 5: naïve ✓") as caught:
            await stat(on)
    assert caught.value.reason == "nonce"


async def test_a_defect_is_named_by_an_identifier_that_the_log_has(
    world: World, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    def defect() -> None:
        raise KeyError("a private detail")

    served.servicer.stat = defect
    async with served.channel(world.files("miner", "m-1")) as on:
        with caplog.at_level(logging.ERROR), pytest.raises(PoflError, match=r"internal error [0-9a-f]{8}") as caught:
            await stat(on)
    assert "private detail" not in str(caught.value)
    incident = str(caught.value).split("internal error ")[1][:8]
    assert [record.__dict__["fields"]["incident"] for record in caplog.records if "unexpectedly" in record.message] == [
        incident
    ]


async def test_an_error_in_mid_stream_ends_it_with_its_type(world: World, served: Served) -> None:
    received = []
    async with served.channel(world.files("miner", "m-1")) as on:

        async def read() -> None:
            with translate("node-0"):
                async for chunk in blob_pb2_grpc.BlobServiceStub(on).Read(blob_pb2.ReadRequest(), timeout=LONG):
                    received.append(chunk.data)  # noqa: PERF401 - what came before the error is kept

        with pytest.raises(MalformedError, match="broken after one chunk"):
            await read()
    assert received == [b"first"]


async def test_a_call_without_deadline_is_refused(world: World, served: Served) -> None:
    async with served.channel(world.files("miner", "m-1")) as on:
        with pytest.raises(MalformedError, match="without a deadline"), translate():
            await blob_pb2_grpc.BlobServiceStub(on).Stat(blob_pb2.StatRequest())
    assert served.servicer.calls == 0


async def test_bytes_that_do_not_decode_are_malformed(world: World, served: Served) -> None:
    async with served.channel(world.files("miner", "m-1")) as on:
        raw = on.unary_unary(f"/{BLOBS}/Stat", lambda data: data, lambda data: data)
        with pytest.raises(MalformedError, match="does not decode"), translate():
            await raw(b"\x0a\xff", timeout=LONG)
    assert served.servicer.calls == 0


async def test_a_message_above_the_limit_is_refused(world: World, served: Served) -> None:
    async with served.channel(world.files("miner", "m-1")) as on:
        stub = blob_pb2_grpc.BlobServiceStub(on)
        with pytest.raises(LimitError), translate():
            await stub.Stat(blob_pb2.StatRequest(digest=bytes(5 * 1024 * 1024)), timeout=LONG)
    big = channel.connect(served.server.address, world.files("miner", "m-2"), expect_role="node", max_message=64 * 1024 * 1024)
    async with big as on:
        with pytest.raises(LimitError), translate():
            await blob_pb2_grpc.BlobServiceStub(on).Stat(blob_pb2.StatRequest(digest=bytes(5 * 1024 * 1024)), timeout=LONG)
    assert served.servicer.calls == 0


async def test_a_caller_above_its_rate_is_refused_and_another_is_not(world: World, served: Served) -> None:
    async with served.channel(world.files("miner", "greedy")) as on:

        async def hurry() -> None:
            for _ in range(40):
                await stat(on)

        with pytest.raises(LimitError, match=r"more than 0\.5 times a second"):
            await hurry()
    async with served.channel(world.files("miner", "modest")) as on:
        await stat(on)


async def test_a_caller_with_too_many_open_calls_is_refused(world: World, served: Served) -> None:
    gate = asyncio.Event()
    begun = asyncio.Semaphore(0)

    async def wait() -> blob_pb2.StatResponse:
        begun.release()
        await gate.wait()
        return blob_pb2.StatResponse()

    served.servicer.stat = wait
    async with served.channel(world.files("miner", "m-1")) as on:
        waiting = [asyncio.create_task(stat(on)) for _ in range(3)]
        await asyncio.wait_for(begun.acquire(), LONG)
        await asyncio.wait_for(begun.acquire(), LONG)
        await asyncio.wait_for(begun.acquire(), LONG)
        with pytest.raises(LimitError, match="3 calls open"):
            await stat(on)
        gate.set()
        await asyncio.gather(*waiting)
        await stat(on)


async def test_a_deadline_ends_the_wait_and_the_method(world: World, served: Served) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def forever() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    served.servicer.stat = forever
    async with served.channel(world.files("miner", "m-1")) as on:
        # On a machine that is busy enough the time is over before the method has begun.
        for seconds in (0.2, 2.0, 20.0):
            with pytest.raises(DeadlineError):
                await stat(on, timeout=seconds)
            if begun.is_set():
                break
        await asyncio.wait_for(ended.wait(), 60)


async def test_only_idempotent_calls_are_tried_again(world: World, served: Served) -> None:
    answers = iter([UnavailableError("starting"), UnavailableError("starting"), None])

    def starting() -> blob_pb2.StatResponse:
        if (error := next(answers)) is not None:
            raise error
        return blob_pb2.StatResponse(size=9)

    served.servicer.stat = starting
    async with served.channel(world.files("miner", "m-1")) as on:
        with pytest.raises(UnavailableError):
            await stat(on)
        assert served.servicer.calls == 1
        assert (await stat(on, idempotent=True)).size == 9
    assert served.servicer.calls == 3


async def test_nobody_at_the_address_is_unavailable(world: World) -> None:
    async with channel.connect("127.0.0.1:1", world.files("miner", "m-1"), expect_role="node") as on:
        with pytest.raises(UnavailableError, match="cannot be reached"):
            await stat(on)


async def test_a_closed_channel_is_unavailable(world: World, served: Served) -> None:
    on = served.channel(world.files("miner", "m-1"))
    await on.close(None)
    with pytest.raises(UnavailableError, match="is closed"):
        await stat(on)


async def test_a_taken_port_is_named(world: World, served: Served) -> None:
    second = RpcServer(served.server.address, world.files("node", "node-1"), "127.0.0.1:0", role_rules={})
    with pytest.raises(UnavailableError, match=f"cannot listen on {served.server.address}"):
        await second.start()
    await second.stop(0)


async def test_plaintext_and_the_operators_port_stay_on_loopback(world: World) -> None:
    with pytest.raises(ConfigError, match="plaintext is served on loopback only"):
        RpcServer("0.0.0.0:0", None, "127.0.0.1:0", role_rules={})
    with pytest.raises(ConfigError, match="not a loopback address"):
        RpcServer("127.0.0.1:0", None, "0.0.0.0:0", role_rules={})
    with pytest.raises(ConfigError, match="plaintext is spoken on loopback only"):
        channel.connect("192.0.2.1:5000", None, expect_role=None)


async def test_plaintext_on_loopback_says_who_calls() -> None:
    server = RpcServer("127.0.0.1:0", None, "127.0.0.1:0", role_rules={BLOBS: ["miner"]})
    servicer = Scripted()
    server.add(blob_pb2_grpc.add_BlobServiceServicer_to_server, servicer, BLOBS)
    await server.start()
    async with channel.connect(server.address, None, expect_role="node", caller=auth.Caller("miner", "m-1")) as on:
        await stat(on)
    async with channel.connect(server.address, None, expect_role="node") as on:
        with pytest.raises(AuthError, match="no certificate"):
            await stat(on)
    assert servicer.seen == [auth.Caller("miner", "m-1")]
    await server.stop(0)


async def test_health_follows_the_role(world: World) -> None:
    server = RpcServer("127.0.0.1:0", world.files("node", "node-0"), "127.0.0.1:0", role_rules={})
    await server.start()
    files = world.files("user", "someone")
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with (
        channel.connect(server.address, files, expect_role="node") as main,
        aio.insecure_channel(server.admin_address) as local,
    ):
        for on in (main, local):
            health = health_pb2_grpc.HealthStub(on)
            assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=LONG)).status == not_serving
            await server.ready()
            assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=LONG)).status == serving
            await server.not_ready()
    await server.stop(0)


async def test_the_operator_sees_status_and_metrics(served: Served) -> None:
    served.server.details(lambda: {"height": 12})
    async with aio.insecure_channel(served.server.admin_address) as on:
        stub = admin_pb2_grpc.AdminServiceStub(on)
        status = await stub.Status(admin_pb2.StatusRequest(), timeout=LONG)
        metrics = await stub.Metrics(admin_pb2.MetricsRequest(), timeout=LONG)
    assert (status.role, status.name, status.ready, status.listen) == ("node", "node-0", True, served.server.address)
    assert dict(status.details) == {"height": "12"}
    assert 'pofl_rpc_served_total{code="OK",method="/pofl.admin.v1.AdminService/Status"}' in metrics.text


async def test_reflection_lists_the_services(world: World, served: Served) -> None:
    async def ask() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async with served.channel(world.files("user", "someone")) as on:
        stub = reflection_pb2_grpc.ServerReflectionStub(on)
        answers = [answer async for answer in stub.ServerReflectionInfo(ask())]
    names = {service.name for service in answers[0].list_services_response.service}
    assert {BLOBS, "pofl.admin.v1.IdentityService", "grpc.health.v1.Health"} <= names


async def dial(world: World, served: Served, identity: LocalIdentity, account: bytes | None = None) -> Any:
    files = world.files(identity.role, identity.name, account)
    return await channel.dial(served.server.address, files, identity, expect_role="node", expect_name="node-0")


async def test_both_sides_learn_the_others_account(world: World, served: Served) -> None:
    identity = world.identity("miner", "m-1", 2)
    connection = await dial(world, served, identity, identity.key.public_key)
    assert connection.remote.account == world.identity("node", "node-0", 1).key.public_key
    assert str(connection.remote) == "node/node-0"
    await connection.close()


@pytest.mark.parametrize(
    ("other", "ours", "theirs"),
    [
        (replace(CHAIN, chain_id="pofl-else"), "pofl-test", "pofl-else"),
        (replace(CHAIN, genesis_hash=b"\x22" * 32), "11" * 32, "22" * 32),
        (replace(CHAIN, protocol_version=2), "protocol version 2", "this process has 1"),
    ],
)
async def test_another_chain_is_refused_with_both_values(
    world: World, served: Served, other: ChainIdentity, ours: str, theirs: str
) -> None:
    with pytest.raises(WrongChainError) as caught:
        await dial(world, served, world.identity("miner", "m-1", 2, other))
    assert ours in str(caught.value)
    assert theirs in str(caught.value)


async def test_the_certificates_account_must_sign(world: World, served: Served) -> None:
    identity = world.identity("miner", "m-1", 2)
    with pytest.raises(AuthError, match="its certificate says another"):
        await dial(world, served, identity, world.identity("miner", "m-1", 3).key.public_key)


async def test_a_name_that_is_not_the_certificates_is_refused(world: World, served: Served) -> None:
    with pytest.raises(AuthError, match="the handshake is of pool/p-1, the certificate of miner/m-1"):
        await channel.dial(
            served.server.address, world.files("miner", "m-1"), world.identity("pool", "p-1", 2), expect_role="node"
        )


async def test_a_relayed_handshake_does_not_verify(world: World, served: Served) -> None:
    """A man in the middle with a certificate of its own cannot pass the victim's claim on."""
    from services.rpc import handshake

    victim = world.identity("miner", "victim", 2)
    nonce = b"\x01" * 32
    victims_certificate = auth.own_certificate_digest(world.files("miner", "victim"))
    hello = handshake._hello(victim, 1, victims_certificate, nonce)
    async with served.channel(world.files("miner", "relay")) as on:
        with pytest.raises(AuthError, match="does not prove its account"), translate():
            await admin_pb2_grpc.IdentityServiceStub(on).Handshake(
                admin_pb2.HandshakeRequest(nonce=nonce, hello=hello), timeout=LONG
            )


async def test_dialling_goes_on_until_somebody_is_there(world: World, caplog: pytest.LogCaptureFixture) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    identity = world.identity("node", "node-0", 1)
    with caplog.at_level(logging.INFO):
        dialling = asyncio.create_task(
            channel.dial_forever(address, world.files("miner", "m-1"), world.identity("miner", "m-1", 2), expect_role="node")
        )
        async with asyncio.timeout(LONG):
            while "cannot reach peer" not in caplog.text:  # noqa: ASYNC110 - it only logs
                await asyncio.sleep(0.02)
        server = RpcServer(address, world.files("node", "node-0"), "127.0.0.1:0", role_rules={}, identity=identity)
        await server.start()
        connection = await asyncio.wait_for(dialling, LONG)
    await connection.close()
    await server.stop(0)


async def test_a_refused_call_is_drained_only_from_who_has_business_here(
    world: World, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What drains is no open call: so few at a time, and nothing of a role that may not call at all."""
    monkeypatch.setattr(interceptor, "DRAIN_SECONDS", 300.0)
    monkeypatch.setattr(interceptor, "MOST_DRAINS", 2)
    never = asyncio.Event()

    async def silent() -> AsyncIterator[bytes]:
        await never.wait()
        yield b""

    def calls(on: aio.Channel, count: int) -> list[asyncio.Task[bytes]]:
        raw = on.stream_unary(f"/{BLOBS}/Stat", lambda data: data, lambda data: data)

        async def one() -> bytes:
            return await raw(silent(), timeout=100)

        return [asyncio.create_task(one()) for _ in range(count)]

    async with served.channel(world.files("provider", "p-1")) as on:
        done, _ = await asyncio.wait(calls(on, 6), timeout=60)
        assert {task.exception().code() for task in done} == {grpc.StatusCode.PERMISSION_DENIED}  # type: ignore[union-attr]
        assert len(done) == 6
    async with served.channel(world.files("miner", "m-1")) as on:
        # Three may be open; of the others two are drained, and the rest is told at once.
        waiting = calls(on, 8)
        told: set[asyncio.Task[bytes]] = set()
        async with asyncio.timeout(60):
            while len(told) < 3:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                told |= done
                waiting = [task for task in waiting if task not in told]
        assert {task.exception().code() for task in told} == {grpc.StatusCode.RESOURCE_EXHAUSTED}  # type: ignore[union-attr]
        assert len(told) == 3
        for task in waiting:
            task.cancel()
