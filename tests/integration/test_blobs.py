"""Blobs on disk and over real connections, honest and not."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from pofl.blob.v1 import blob_pb2, blob_pb2_grpc

from core.errors import (
    CorruptError,
    CryptoError,
    DeadlineError,
    LimitError,
    MalformedError,
    NotFoundError,
    UnavailableError,
)
from services.rpc import blobs
from services.rpc.auth import Caller
from services.rpc.blobs import BlobServicer, BlobStore
from services.rpc.channel import connect
from services.rpc.errors import translate
from services.rpc.limits import CHUNK
from services.rpc.server import RpcServer
from tests.seeded import SeededRng

QUOTA = 64 * 1024 * 1024
LONG = 100.0
"""Seconds, for what takes less than one on a machine that does nothing else."""
LIMIT = 16 * 1024 * 1024
CONTENT = SeededRng("blob").bytes(3 * CHUNK + 17)
DIGEST = hashlib.sha256(CONTENT).digest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "mine", QUOTA)


@dataclass
class Peer:
    """A process that serves blobs, and a channel to it."""

    server: RpcServer
    store: BlobStore
    channel: aio.Channel


Serve = Callable[..., Any]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    peers: list[Peer] = []

    async def start(servicer: Any = None, write_limit: int | None = None) -> Peer:
        theirs = BlobStore(tmp_path / f"peer-{len(peers)}", QUOTA)
        server = RpcServer("127.0.0.1:0", None, "127.0.0.1:0", role_rules={blobs.SERVICE: ["node"]})
        server.add(
            blob_pb2_grpc.add_BlobServiceServicer_to_server,
            servicer or BlobServicer(theirs, write_limit),
            blobs.SERVICE,
        )
        await server.start()
        peers.append(Peer(server, theirs, connect(server.address, None, expect_role=None, caller=Caller("node", "n"))))
        return peers[-1]

    yield start
    for peer in peers:
        await peer.channel.close(None)
        await peer.server.stop(0)


def test_a_blob_is_found_under_its_hash_also_after_a_restart(store: BlobStore, tmp_path: Path) -> None:
    assert store.put(CONTENT) == store.put(CONTENT) == DIGEST
    assert store.put(b"") == hashlib.sha256(b"").digest()
    again = BlobStore(tmp_path / "mine", QUOTA)
    assert again.get(DIGEST) == CONTENT
    assert again.get(hashlib.sha256(b"").digest()) == b""
    assert (again.size(DIGEST), again.used) == (len(CONTENT), len(CONTENT))
    assert b"".join(again.read(DIGEST, CHUNK + 3)) == CONTENT[CHUNK + 3 :]
    again.delete(DIGEST)
    with pytest.raises(NotFoundError):
        again.get(DIGEST)


def test_damage_on_the_disk_is_noticed(store: BlobStore, tmp_path: Path) -> None:
    store.put(CONTENT)
    path = tmp_path / "mine" / DIGEST.hex()[:2] / DIGEST.hex()
    path.write_bytes(b"?" + CONTENT[1:])
    with pytest.raises(CorruptError, match="is damaged on disk"):
        store.get(DIGEST)


def test_the_quota_counts_beginnings_and_drops_them_first(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 100)
    for name in (b"\x01" * 32, b"\x02" * 32):
        with store.incoming(name, 50) as part:
            assert part is not None
            part.write(b"x" * 40)
    assert store.used == 80
    store.put(b"y" * 60)
    assert store.used == 100
    assert BlobStore(tmp_path, 100).used == 100
    store.put(b"z" * 40)
    assert store.used == 100
    with pytest.raises(LimitError, match="does not fit: 100 of 100 bytes are taken"):
        store.put(b"w")


def test_a_part_takes_no_more_than_announced(store: BlobStore) -> None:
    with store.incoming(DIGEST, 10) as part:
        assert part is not None
        with pytest.raises(LimitError, match="longer than the 10 bytes announced"):
            part.write(b"x" * 11)
        with pytest.raises(UnavailableError, match="being received already"), store.incoming(DIGEST, 10):
            pass
        with pytest.raises(MalformedError, match="ended after 0 of 10"):
            part.finish()
    assert store.size(DIGEST) is None


async def test_fetch(store: BlobStore, serve: Serve) -> None:
    peer = await serve()
    peer.store.put(CONTENT)
    assert await blobs.fetch(peer.channel, DIGEST, LIMIT, store, LONG) == len(CONTENT)
    assert store.get(DIGEST) == CONTENT
    await peer.server.stop(0)
    assert await blobs.fetch(peer.channel, DIGEST, LIMIT, store, LONG) == len(CONTENT)


async def test_two_fetches_of_one_blob_bring_it_once(store: BlobStore, serve: Serve) -> None:
    peer = await serve()
    peer.store.put(CONTENT)
    sizes = await asyncio.gather(*(blobs.fetch(peer.channel, DIGEST, LIMIT, store, LONG) for _ in range(5)))
    assert sizes == [len(CONTENT)] * 5


async def test_an_absent_blob_and_a_wrong_name(store: BlobStore, serve: Serve) -> None:
    peer = await serve()
    with pytest.raises(NotFoundError, match="is not here"):
        await blobs.fetch(peer.channel, DIGEST, LIMIT, store, LONG)
    with pytest.raises(MalformedError, match="32 bytes, got 3"):
        await blobs.fetch(peer.channel, b"abc", LIMIT, store, LONG)
    with pytest.raises(MalformedError, match="32 bytes, got 3"), translate():
        await blob_pb2_grpc.BlobServiceStub(peer.channel).Stat(blob_pb2.StatRequest(digest=b"abc"), timeout=LONG)


async def test_a_large_blob_is_refused_before_reading(store: BlobStore, serve: Serve) -> None:
    peer = await serve()
    peer.store.put(CONTENT)
    with pytest.raises(LimitError, match=f"has {len(CONTENT)} bytes, the limit is 1000"):
        await blobs.fetch(peer.channel, DIGEST, 1000, store, LONG)
    assert store.used == 0


class Scripted(blob_pb2_grpc.BlobServiceServicer):
    """Says ``size`` and then sends what ``script`` gives for (number of the read, offset)."""

    def __init__(self, script: Callable[[int, int], Any], size: int = len(CONTENT)) -> None:
        self.script = script
        self.size = size
        self.offsets: list[int] = []

    async def Stat(self, request: blob_pb2.StatRequest, context: Any) -> blob_pb2.StatResponse:  # noqa: N802
        return blob_pb2.StatResponse(size=self.size)

    async def Read(self, request: blob_pb2.ReadRequest, context: Any) -> AsyncIterator[blob_pb2.Chunk]:  # noqa: N802
        self.offsets.append(request.offset)
        for item in self.script(len(self.offsets), request.offset):
            if isinstance(item, Exception):
                raise item
            if item is None:
                await asyncio.Event().wait()
            yield blob_pb2.Chunk(offset=item[0], data=item[1])

    async def Write(self, request_iterator: Any, context: Any) -> blob_pb2.WriteResponse:  # noqa: N802
        raise AssertionError


async def test_a_broken_transfer_goes_on_where_it_broke(store: BlobStore, serve: Serve) -> None:
    def script(number: int, offset: int) -> Any:
        yield offset, CONTENT[offset : offset + CHUNK]
        if number < 3:
            yield UnavailableError("cut")
        for start in range(offset + CHUNK, len(CONTENT), CHUNK):
            yield start, CONTENT[start : start + CHUNK]

    servicer = Scripted(script)
    peer = await serve(servicer)
    await blobs.fetch(peer.channel, DIGEST, LIMIT, store, LONG)
    assert store.get(DIGEST) == CONTENT
    assert servicer.offsets == [0, CHUNK, 2 * CHUNK]


async def test_what_a_liar_left_does_not_spoil_an_honest_transfer(store: BlobStore, serve: Serve, tmp_path: Path) -> None:
    def lie(number: int, offset: int) -> Any:
        yield 0, b"?" * CHUNK
        yield MalformedError("gone")

    liar = await serve(Scripted(lie))
    with pytest.raises(MalformedError):
        await blobs.fetch(liar.channel, DIGEST, LIMIT, store, LONG)
    assert store.used == CHUNK
    honest = await serve()
    honest.store.put(CONTENT)
    await blobs.fetch(honest.channel, DIGEST, LIMIT, store, LONG)
    assert store.get(DIGEST) == CONTENT


@pytest.mark.parametrize(
    ("chunks", "error", "message"),
    [
        ([(0, b"?" * CHUNK)] + [(CHUNK * i, b"?" * CHUNK) for i in (1, 2)] + [(3 * CHUNK, b"?" * 17)], CryptoError,
         "hashes to"),
        ([(5, b"x")], MalformedError, "begins at 5, expected 0"),
        ([(0, b"")], LimitError, "got 0"),
        ([(0, b"x" * (CHUNK + 1))], LimitError, "a chunk has 1 to"),
        ([(0, CONTENT[:CHUNK])], MalformedError, f"ended after {CHUNK} of"),
        ([(CHUNK * i, b"?" * CHUNK) for i in range(4)], LimitError, "goes on after its end"),
    ],
    ids=["other-content", "wrong-offset", "empty-chunk", "large-chunk", "short", "long"],
)  # fmt: skip
async def test_what_a_peer_sends_is_checked(
    store: BlobStore, serve: Serve, chunks: list[tuple[int, bytes]], error: type[Exception], message: str
) -> None:
    peer = await serve(Scripted(lambda number, offset: iter(chunks)))
    with pytest.raises(error, match=message):
        await blobs.fetch(peer.channel, DIGEST, LIMIT, store, LONG)
    assert store.size(DIGEST) is None


async def test_a_silent_peer_costs_no_more_than_the_deadline(store: BlobStore, serve: Serve) -> None:
    peer = await serve(Scripted(lambda number, offset: iter([None])))
    with pytest.raises(DeadlineError):
        await blobs.fetch(peer.channel, DIGEST, LIMIT, store, 0.5)


async def test_a_peer_that_always_breaks_ends_with_the_deadline(store: BlobStore, serve: Serve) -> None:
    peer = await serve(Scripted(lambda number, offset: iter([UnavailableError("cut")])))
    # The second, on a machine so busy that the time is over amid a call.
    with pytest.raises((UnavailableError, DeadlineError)):
        await blobs.fetch(peer.channel, DIGEST, LIMIT, store, 1)
    assert store.size(DIGEST) is None


async def test_upload(store: BlobStore, serve: Serve) -> None:
    store.put(CONTENT)
    peer = await serve(write_limit=LIMIT)
    assert await blobs.upload(peer.channel, DIGEST, store, LONG) == len(CONTENT)
    assert peer.store.get(DIGEST) == CONTENT
    assert await blobs.upload(peer.channel, DIGEST, store, LONG) == len(CONTENT)


async def test_who_takes_no_blobs_or_no_large_ones_says_so(store: BlobStore, serve: Serve) -> None:
    store.put(CONTENT)
    with pytest.raises(LimitError, match="takes no blobs"):
        await blobs.upload((await serve()).channel, DIGEST, store, LONG)
    peer = await serve(write_limit=1000)
    with pytest.raises(LimitError, match="above the limit of 1000"):
        await blobs.upload(peer.channel, DIGEST, store, LONG)
    assert peer.store.used == 0


def start(size: int = 10) -> blob_pb2.WriteRequest:
    return blob_pb2.WriteRequest(start=blob_pb2.WriteStart(digest=DIGEST, size=size))


def chunk(offset: int, data: bytes) -> blob_pb2.WriteRequest:
    return blob_pb2.WriteRequest(chunk=blob_pb2.Chunk(offset=offset, data=data))


@pytest.mark.parametrize(
    ("requests", "error"),
    [
        ([], MalformedError),
        ([chunk(0, b"x")], MalformedError),
        ([start(), start()], MalformedError),
        ([start(), chunk(1, b"x")], MalformedError),
        ([start(), chunk(0, b"x" * 11)], LimitError),
        ([start(), chunk(0, b"x" * 9)], MalformedError),
        ([start(), chunk(0, b"x" * 10)], CryptoError),
        ([start(QUOTA + 1)], LimitError),
    ],
)
async def test_what_a_writer_sends_is_checked(
    serve: Serve, requests: list[blob_pb2.WriteRequest], error: type[Exception]
) -> None:
    peer = await serve(write_limit=2 * QUOTA)

    async def send() -> AsyncIterator[blob_pb2.WriteRequest]:
        for request in requests:
            yield request

    with pytest.raises(error), translate():
        await blob_pb2_grpc.BlobServiceStub(peer.channel).Write(send(), timeout=LONG)
    assert peer.store.size(DIGEST) is None
