"""Serving and fetching blobs: anything larger than one message. See services.rpc.blob_store for the store itself."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncIterator
from typing import Any

from grpc import aio
from pofl.blob.v1 import blob_pb2, blob_pb2_grpc

from core.errors import CryptoError, DeadlineError, LimitError, MalformedError, NotFoundError, UnavailableError
from services.rpc.blob_store import BlobStore, Part, checked_digest
from services.rpc.channel import backoff, call
from services.rpc.errors import translate
from services.rpc.limits import CHUNK

__all__ = ["SERVICE", "BlobServicer", "BlobStore", "Part", "fetch", "upload"]

SERVICE = blob_pb2.DESCRIPTOR.services_by_name["BlobService"].full_name

_turns: weakref.WeakKeyDictionary[BlobStore, weakref.WeakValueDictionary[bytes, asyncio.Lock]] = weakref.WeakKeyDictionary()


class BlobServicer(blob_pb2_grpc.BlobServiceServicer):
    """Serves a store. Who may call what is the server's rule; without ``write_limit`` nobody may write."""

    def __init__(self, store: BlobStore, write_limit: int | None = None) -> None:
        """``write_limit``: largest blob in bytes that a caller may bring."""
        self._store = store
        self._write_limit = write_limit

    async def Stat(  # noqa: N802 - the contract's name
        self, request: blob_pb2.StatRequest, context: aio.ServicerContext[Any, Any]
    ) -> blob_pb2.StatResponse:
        size = self._store.size(checked_digest(request.digest))
        if size is None:
            raise NotFoundError(f"blob {request.digest.hex()} is not here")
        return blob_pb2.StatResponse(size=size)

    async def Read(  # noqa: N802 - the contract's name
        self, request: blob_pb2.ReadRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[blob_pb2.Chunk]:
        offset = request.offset
        for piece in self._store.read(checked_digest(request.digest), offset):
            yield blob_pb2.Chunk(offset=offset, data=piece)
            offset += len(piece)

    async def Write(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[blob_pb2.WriteRequest], context: aio.ServicerContext[Any, Any]
    ) -> blob_pb2.WriteResponse:
        if self._write_limit is None:
            raise LimitError("this process takes no blobs")
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("part") != "start":
            raise MalformedError("a write begins with its digest and size")
        digest, size = checked_digest(first.start.digest), first.start.size
        if size > self._write_limit:
            raise LimitError(f"a blob of {size} bytes is above the limit of {self._write_limit}", size=size)
        with self._store.incoming(digest, size) as part:
            if part is not None:
                # A writer sends the whole; what another one left here is not trusted.
                part.restart()
            position = 0
            async for request in request_iterator:
                if request.WhichOneof("part") != "chunk":
                    raise MalformedError("a write has one start")
                position = _check_chunk(request.chunk, position, size)
                if part is not None:
                    part.write(request.chunk.data)
            if position != size:
                raise MalformedError(f"blob {digest.hex()} ended after {position} of {size} bytes")
            if part is not None:
                await asyncio.to_thread(part.finish)
        return blob_pb2.WriteResponse(size=size)


async def fetch(
    channel: aio.Channel, digest: bytes, size_limit: int, store: BlobStore, deadline: float, *, peer: str = ""
) -> int:
    """Bring a blob into ``store``, within ``deadline`` seconds; its size in bytes. At once if it is there.

    The size is asked first and compared with ``size_limit``; a broken transfer goes on where it broke. Raises
    LimitError, NotFoundError, CryptoError (the peer sent something else), MalformedError, DeadlineError,
    UnavailableError (the time did not suffice for another try).
    """
    have = store.size(checked_digest(digest))
    if have is not None:
        return have
    end = time.monotonic() + deadline
    stub = blob_pb2_grpc.BlobServiceStub(channel)
    stat = await call(stub.Stat, blob_pb2.StatRequest(digest=digest), deadline, peer=peer, idempotent=True)
    size = stat.size
    if size > size_limit:
        raise LimitError(f"blob {digest.hex()} has {size} bytes, the limit is {size_limit}", size=size, limit=size_limit)
    async with _turn(store, digest, end):
        with store.incoming(digest, size) as part:
            if part is not None:
                await _receive(stub, digest, size, part, end, peer)
    return size


async def upload(channel: aio.Channel, digest: bytes, store: BlobStore, deadline: float, *, peer: str = "") -> int:
    """Bring a blob of ``store`` to another process that takes blobs; its size. Raises what `fetch` raises."""
    size = store.size(checked_digest(digest))
    if size is None:
        raise NotFoundError(f"blob {digest.hex()} is not here", digest=digest)

    async def requests() -> AsyncIterator[blob_pb2.WriteRequest]:
        yield blob_pb2.WriteRequest(start=blob_pb2.WriteStart(digest=digest, size=size))
        offset = 0
        for piece in store.read(digest, 0):
            yield blob_pb2.WriteRequest(chunk=blob_pb2.Chunk(offset=offset, data=piece))
            offset += len(piece)

    with translate(peer):
        response = await blob_pb2_grpc.BlobServiceStub(channel).Write(requests(), timeout=deadline)
    return response.size


@contextlib.asynccontextmanager
async def _turn(store: BlobStore, digest: bytes, end: float) -> AsyncIterator[None]:
    """One fetch of a blob at a time; the second then finds it there."""
    turn = _turns.setdefault(store, weakref.WeakValueDictionary()).setdefault(digest, asyncio.Lock())
    try:
        await asyncio.wait_for(turn.acquire(), max(0.0, end - time.monotonic()))
    except TimeoutError:
        raise DeadlineError(f"blob {digest.hex()} is being fetched by others, and was not there in time") from None
    try:
        yield
    finally:
        turn.release()


async def _receive(stub: blob_pb2_grpc.BlobServiceStub, digest: bytes, size: int, part: Part, end: float, peer: str) -> None:
    """The content, and once more from its beginning if the part that was here already came from a liar."""
    resumed = part.offset > 0
    await _read_all(stub, digest, size, part, end, peer)
    try:
        await asyncio.to_thread(part.finish)
    except CryptoError:
        if not resumed:
            raise
        await _read_all(stub, digest, size, part, end, peer)
        await asyncio.to_thread(part.finish)


async def _read_all(stub: blob_pb2_grpc.BlobServiceStub, digest: bytes, size: int, part: Part, end: float, peer: str) -> None:
    """As many reads as it takes. A read that brought something starts the count of failures anew."""
    failures = 0
    while part.offset < size:
        before = part.offset
        try:
            await _read_on(stub, digest, size, part, end, peer)
            if part.offset < size:
                raise MalformedError(f"blob {digest.hex()} ended after {part.offset} of {size} bytes")
        except UnavailableError as error:
            failures = 0 if part.offset > before else failures + 1
            delay = backoff(failures)
            if time.monotonic() + delay >= end:
                message = f"blob {digest.hex()} stopped at {part.offset} of {size} bytes: {error.message}"
                raise UnavailableError(message, peer=peer) from error
            await asyncio.sleep(delay)


async def _read_on(stub: blob_pb2_grpc.BlobServiceStub, digest: bytes, size: int, part: Part, end: float, peer: str) -> None:
    left = end - time.monotonic()
    if left <= 0:
        raise DeadlineError(f"blob {digest.hex()} stopped at {part.offset} of {size} bytes: no time left")
    with translate(peer):
        replies = stub.Read(blob_pb2.ReadRequest(digest=digest, offset=part.offset), timeout=left)
        try:
            async for chunk in replies:
                _check_chunk(chunk, part.offset, size)
                part.write(chunk.data)
        finally:
            replies.cancel()


def _check_chunk(chunk: blob_pb2.Chunk, expected: int, size: int) -> int:
    """The offset after ``chunk``. Raises MalformedError, LimitError."""
    if chunk.offset != expected:
        raise MalformedError(f"a chunk begins at {chunk.offset}, expected {expected}")
    if not 0 < len(chunk.data) <= CHUNK:
        raise LimitError(f"a chunk has 1 to {CHUNK} bytes, got {len(chunk.data)}")
    if expected + len(chunk.data) > size:
        raise LimitError(f"a blob of {size} bytes goes on after its end")
    return expected + len(chunk.data)
