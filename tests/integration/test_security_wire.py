"""Connections and requests that are wrong, slow or large, against a real server: made by hand, no library sends these."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio
from pofl.blob.v1 import blob_pb2, blob_pb2_grpc

from core.errors import AuthError, LimitError, UnavailableError
from services.rpc import tls
from services.rpc.channel import connect
from services.rpc.errors import translate
from services.rpc.limits import CallerLimits, ConnectionLimits
from services.rpc.server import RpcServer
from tests.raw_http2 import DATA, Raw, context, frame, grpc_message, open_raw, open_tls

BLOBS = "pofl.blob.v1.BlobService"
STAT = f"/{BLOBS}/Stat"
LONG = 60.0
"""Seconds for what takes one on an idle machine."""


class Slow(blob_pb2_grpc.BlobServiceServicer):
    def __init__(self) -> None:
        self.calls = 0

    async def Stat(self, request: blob_pb2.StatRequest, context: Any) -> blob_pb2.StatResponse:  # noqa: N802
        self.calls += 1
        return blob_pb2.StatResponse(size=7)


@dataclass
class World:
    folder: Path
    authority: tls.Authority

    def files(self, role: str, name: str = "x-1") -> tls.TlsFiles:
        return tls.issue(self.authority, role, name, ["localhost", "127.0.0.1"]).write(self.folder / f"{role}-{name}")


@dataclass
class Served:
    server: RpcServer
    servicer: Slow


Serve = Callable[[ConnectionLimits], Awaitable[Served]]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, tls.make_authority(tmp_path / "ca"))


@pytest.fixture
async def serve(world: World) -> AsyncIterator[Serve]:
    running: list[RpcServer] = []

    async def started(connections: ConnectionLimits) -> Served:
        server = RpcServer(
            "127.0.0.1:0", world.files("node", f"n-{len(running)}"), "127.0.0.1:0", role_rules={BLOBS: ["miner"]},
            limits=CallerLimits(rate=1e6, burst=10**6, concurrent=3), connections=connections,
        )  # fmt: skip
        servicer = Slow()  # type: ignore[abstract]
        server.add(blob_pb2_grpc.add_BlobServiceServicer_to_server, servicer, BLOBS)
        await server.start()
        running.append(server)
        return Served(server, servicer)

    yield started
    for server in running:
        await server.stop(0)


async def until_closed(reader: asyncio.StreamReader) -> None:
    """Until the other side ends the connection."""
    try:
        async with asyncio.timeout(LONG):
            while await reader.read(65_536):
                pass
    except (OSError, ssl.SSLError):
        pass


async def answers(world: World, served: Served, name: str) -> bool:
    """Whether an honest caller is served."""
    async with connect(served.server.address, world.files("miner", name), expect_role="node") as channel:
        stub = blob_pb2_grpc.BlobServiceStub(channel)
        answer = await stub.Stat(blob_pb2.StatRequest(), timeout=LONG, wait_for_ready=True)
    return bool(answer.size == 7)


# Who may connect


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
async def test_an_older_tls_is_refused_whatever_suite_is_offered(world: World, serve: Serve, version: ssl.TLSVersion) -> None:
    served = await serve(ConnectionLimits())
    old = context(world.files("miner"))
    old.minimum_version = old.maximum_version = version
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await open_tls(served.server.address, old)
    _, writer = await open_tls(served.server.address, context(world.files("miner", "newer")))
    assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    writer.transport.abort()


def signed_by_itself(folder: Path) -> tls.TlsFiles:
    """A certificate with the right names and nobody's signature but its own."""
    files = tls.issue(tls.make_authority(folder / "own-ca"), "miner", "x-1", []).write(folder / "own")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "miner/x-1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("pofl://role/miner/x-1")]), critical=False
        ).sign(key, hashes.SHA256())
    )  # fmt: skip
    issued = tls.Issued(made.public_bytes(serialization.Encoding.PEM), tls._key_pem(key), files.ca.read_bytes())
    return issued.write(folder / "own")


def of_another_network(folder: Path) -> tls.TlsFiles:
    return tls.issue(tls.make_authority(folder / "other-ca"), "miner", "x-1", []).write(folder / "other")


def out_of_date(folder: Path) -> tls.TlsFiles:
    """Of the right authority, and over since yesterday."""
    authority = tls.load_authority(folder / "ca")
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(authority.certificate.subject)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2)).not_valid_after(now - datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("pofl://role/miner/x-1")]), critical=False
        ).sign(authority.key, hashes.SHA256())
    )  # fmt: skip
    issued = tls.Issued(made.public_bytes(serialization.Encoding.PEM), tls._key_pem(key), authority.pem)
    return issued.write(folder / "old")


@pytest.mark.parametrize("make", [signed_by_itself, of_another_network, out_of_date, None])
async def test_who_has_no_certificate_of_the_network_reaches_no_method(
    world: World, serve: Serve, make: Callable[[Path], tls.TlsFiles] | None
) -> None:
    """In TLS 1.3 the client is done before its certificate is looked at: what counts is that nothing is served."""
    served = await serve(ConnectionLimits())
    good = world.files("miner", "good")
    made = context(None, good)
    if make is not None:
        files = make(world.folder)
        made.load_cert_chain(files.cert, files.key)
    try:
        reader, writer = await open_tls(served.server.address, made)
    except (ssl.SSLError, ConnectionError):
        pass
    else:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(0x4, 0, 0, b""))
        await until_closed(reader)
        writer.transport.abort()
    assert served.servicer.calls == 0
    assert await answers(world, served, "honest")


async def test_a_certificate_that_names_no_role_is_refused_before_any_method(world: World, serve: Serve) -> None:
    served = await serve(ConnectionLimits())
    key = ec.generate_private_key(ec.SECP256R1())
    authority = world.authority
    made = tls._builder(x509.Name([]), authority.certificate.subject, key.public_key(), 1).sign(authority.key, hashes.SHA256())
    pem = made.public_bytes(serialization.Encoding.PEM)
    files = tls.Issued(pem, tls._key_pem(key), authority.pem).write(world.folder / "nameless")
    async with connect(served.server.address, files, expect_role="node") as channel:
        with pytest.raises(AuthError, match="your certificate cannot be used"), translate():
            await blob_pb2_grpc.BlobServiceStub(channel).Stat(blob_pb2.StatRequest(), timeout=LONG, wait_for_ready=True)
    assert served.servicer.calls == 0


# Who sends nothing, or slowly


async def test_connections_without_tls_are_closed_and_many_of_them_are_not_kept(world: World, serve: Serve) -> None:
    """Half-open connections: what a stranger can have of a server is a few of them, for a short time."""
    served = await serve(ConnectionLimits(most=20, handshake_ms=1_000))
    host, port = served.server.address.split(":")
    opened = [await asyncio.open_connection(host, int(port)) for _ in range(60)]
    try:
        await asyncio.gather(*(until_closed(reader) for reader, _ in opened))
    finally:
        for _, writer in opened:
            writer.transport.abort()
    assert await answers(world, served, "honest")


async def test_an_established_connection_lives_through_a_flood_of_half_open_ones(world: World, serve: Serve) -> None:
    served = await serve(ConnectionLimits(most=20, handshake_ms=60_000))
    host, port = served.server.address.split(":")
    async with connect(served.server.address, world.files("miner"), expect_role="node") as channel:
        stub = blob_pb2_grpc.BlobServiceStub(channel)
        await stub.Stat(blob_pb2.StatRequest(), timeout=LONG, wait_for_ready=True)
        opened = [await asyncio.open_connection(host, int(port)) for _ in range(60)]
        try:
            # All places are taken, so a new one is closed as it comes.
            with pytest.raises((OSError, ssl.SSLError, UnavailableError)):
                await open_tls(served.server.address, context(world.files("miner", "late")))
            assert (await stub.Stat(blob_pb2.StatRequest(), timeout=LONG)).size == 7
        finally:
            for _, writer in opened:
                writer.transport.abort()


async def test_tls_and_then_silence_is_cut_off(world: World, serve: Serve) -> None:
    served = await serve(ConnectionLimits(handshake_ms=1_000))
    made = context(world.files("miner"))
    async with asyncio.timeout(LONG):
        while True:
            # On a busy machine the second may be over before TLS is.
            with contextlib.suppress(OSError):
                reader, writer = await open_tls(served.server.address, made)
                break
    await until_closed(reader)
    writer.transport.abort()


async def test_who_does_not_answer_pings_is_cut_off(world: World, serve: Serve) -> None:
    served = await serve(ConnectionLimits(ping_ms=1_000, pong_ms=1_000))
    async with open_raw(served.server.address, world.files("miner"), answers=False) as raw:
        raw.begin()
        # An open call, so that it is not idleness that ends it.
        raw.call(1, "/grpc.health.v1.Health/Watch")
        raw.send(frame(DATA, 0x1, 1, grpc_message(b"")))
        async with asyncio.timeout(LONG):
            await raw.closed.wait()


async def test_a_frame_that_drips_in_before_any_call_is_cut_off(world: World, serve: Serve) -> None:
    """Bytes keep arriving, pings too are waiting behind them: only idleness ends it."""
    served = await serve(ConnectionLimits(idle_ms=1_000))
    async with open_raw(served.server.address, world.files("miner")) as raw:
        raw.begin()
        dripping = asyncio.create_task(raw.drip(frame(0x1, 0x4, 1, bytes(16_000)), 0.05))
        async with asyncio.timeout(LONG):
            await raw.closed.wait()
        dripping.cancel()


def drip_into(raw: Raw, *streams: int) -> None:
    """Calls whose request has begun, with one byte of it in a frame: as slow as it gets without breaking a rule of HTTP/2."""
    for stream in streams:
        raw.call(stream, STAT, [("grpc-timeout", "1H")])
        raw.send(frame(DATA, 0, stream, grpc_message(b"", 4_000)))
        raw.send(frame(DATA, 0, stream, b"\x00"))


async def test_a_request_that_drips_in_is_cut_off(world: World, serve: Serve) -> None:
    served = await serve(ConnectionLimits(request_ms=1_000))
    async with open_raw(served.server.address, world.files("miner", "slow")) as raw:
        raw.begin()
        drip_into(raw, 1, 3)
        for stream in (1, 3):
            assert "did not arrive whole within 1 s" in await raw.until_ended(stream, LONG)
        assert not raw.closed.is_set()
    assert served.servicer.calls == 0


async def test_requests_that_drip_in_count_as_open_calls(world: World, serve: Serve) -> None:
    served = await serve(ConnectionLimits(request_ms=100_000))
    async with open_raw(served.server.address, world.files("miner", "slow")) as raw:
        raw.begin()
        drip_into(raw, 1, 3, 5)
        raw.call(7, STAT, [("grpc-timeout", "1H")])
        assert "LimitError" in await raw.until_ended(7, LONG), "three slow requests are as many as this caller may have open"
        assert await answers(world, served, "another")
        assert not raw.ended.keys() & {1, 3, 5}
    assert served.servicer.calls == 1


async def test_a_call_without_a_deadline_is_refused_while_its_request_is_missing(world: World, serve: Serve) -> None:
    served = await serve(ConnectionLimits(request_ms=1_000))
    async with open_raw(served.server.address, world.files("miner")) as raw:
        raw.begin()
        raw.call(1, STAT)
        assert "without a deadline" in await raw.until_ended(1, LONG)
    assert served.servicer.calls == 0


# Who sends too much


async def test_a_message_that_announces_a_gigabyte_has_the_time_of_any_other(world: World, serve: Serve) -> None:
    """gRPC looks at a message's size when all of it is there, so it is the time for a request that bounds what is kept."""
    served = await serve(ConnectionLimits(request_ms=1_000))
    async with open_raw(served.server.address, world.files("miner")) as raw:
        raw.begin()
        raw.call(1, STAT, [("grpc-timeout", "1H")])
        raw.send(frame(DATA, 0, 1, grpc_message(b"\x00" * 100, 1 << 30)))
        assert "did not arrive whole within 1 s" in await raw.until_ended(1, LONG)
    assert served.servicer.calls == 0
    assert await answers(world, served, "honest")


async def test_a_compressed_request_is_refused_before_it_is_unpacked(world: World, serve: Serve) -> None:
    """A megabyte of zeros is a kilobyte of gzip; nobody here sends either."""
    served = await serve(ConnectionLimits())
    packed = gzip.compress(bytes(1 << 20))
    async with open_raw(served.server.address, world.files("miner")) as raw:
        raw.begin()
        raw.call(1, STAT, [("grpc-timeout", "1H"), ("grpc-encoding", "gzip")])
        raw.send(frame(DATA, 0x1, 1, b"\x01" + len(packed).to_bytes(4, "big") + packed))
        # 12 is UNIMPLEMENTED.
        assert "grpc-status\x0212" in await raw.until_ended(1, LONG)
    assert served.servicer.calls == 0


async def test_a_frame_above_the_announced_size_ends_the_connection(world: World, serve: Serve) -> None:
    served = await serve(ConnectionLimits())
    async with open_raw(served.server.address, world.files("miner")) as raw:
        raw.begin()
        raw.call(1, STAT, [("grpc-timeout", "1H")])
        raw.send(frame(DATA, 0, 1, bytes(100), (1 << 24) - 1))
        async with asyncio.timeout(LONG):
            await raw.closed.wait()
    assert await answers(world, served, "honest")


async def test_metadata_above_the_limit_is_refused(world: World, serve: Serve) -> None:
    served = await serve(ConnectionLimits())
    async with connect(served.server.address, world.files("miner"), expect_role="node") as channel:
        stub = blob_pb2_grpc.BlobServiceStub(channel)
        for size in (20_000, 200_000):
            metadata = aio.Metadata(("x-large", "a" * size))
            with pytest.raises((LimitError, UnavailableError)), translate():
                await stub.Stat(blob_pb2.StatRequest(), timeout=LONG, metadata=metadata, wait_for_ready=True)
    assert served.servicer.calls == 0


async def test_more_calls_at_once_than_a_connection_may_have(world: World, serve: Serve) -> None:
    """HTTP/2 streams that wait for a request: above its limit the server resets them, and the caller's count holds as well."""
    served = await serve(ConnectionLimits(request_ms=60_000))
    async with open_raw(served.server.address, world.files("miner", "many")) as raw:
        raw.begin()
        streams = range(1, 1_201, 2)
        for stream in streams:
            raw.call(stream, STAT, [("grpc-timeout", "1H")])
        async with asyncio.timeout(LONG):
            while len(raw.ended) < len(streams) - 3 and not raw.closed.is_set():
                raw.changed.clear()
                await raw.changed.wait()
        assert await answers(world, served, "another")
    assert served.servicer.calls == 1
