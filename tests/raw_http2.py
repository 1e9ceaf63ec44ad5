"""HTTP/2 frames by hand over a real TLS connection: a client that does what no library would do."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from services.rpc import tls

__all__ = ["DATA", "Raw", "context", "frame", "grpc_message", "open_raw", "open_tls", "request_head"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1


def context(files: tls.TlsFiles | None, authority: tls.TlsFiles | None = None) -> ssl.SSLContext:
    """A client of TLS 1.3 with the certificate of ``files``, or with none, that trusts the network of either."""
    trusted = files or authority
    assert trusted is not None
    made = ssl.create_default_context(cafile=trusted.ca)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    if files is not None:
        made.load_cert_chain(files.cert, files.key)
    made.set_alpn_protocols(["h2"])
    return made


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """A frame that says to have ``length`` bytes, those of ``payload`` if None."""
    said = len(payload) if length is None else length
    return said.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def request_head(method: str, more: Iterable[tuple[str, str]] = ()) -> bytes:
    """The header block of a gRPC call, without compression. ``method`` as ``/service/Method``."""
    pairs = [
        (":method", "POST"), (":scheme", "https"), (":path", method), (":authority", "localhost"),
        ("te", "trailers"), ("content-type", "application/grpc"), *more,
    ]  # fmt: skip
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in pairs)


def grpc_message(data: bytes, length: int | None = None) -> bytes:
    return b"\x00" + (len(data) if length is None else length).to_bytes(4, "big") + data


def _string(text: str) -> bytes:
    raw = text.encode("ascii")
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, out = len(raw) - 127, bytearray([127])
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes(out) + bytes([rest]) + raw


@dataclass
class Raw:
    """A connection. Frames that the server sends are counted; its settings and pings are answered if ``answers``."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    answers: bool = True
    pings: int = 0
    ended: dict[int, str] = field(default_factory=dict)
    """Streams that the server ended: how, and what it said."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        try:
            while True:
                head = await self.reader.readexactly(9)
                payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
                self._take(head[3], head[4], int.from_bytes(head[5:9], "big"), payload)
                self.changed.set()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.closed.set()
            self.changed.set()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK and self.answers:
            self.send(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.pings += 1
            if self.answers:
                self.send(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            self.ended.setdefault(stream, f"reset {int.from_bytes(payload, 'big')}")
        elif kind == HEADERS and flags & END_STREAM:
            self.ended[stream] = payload.decode("latin-1")

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.writer.write(data)

    def begin(self) -> None:
        self.send(PREFACE + frame(SETTINGS, 0, 0, b""))

    def call(self, stream: int, method: str, more: Iterable[tuple[str, str]] = ()) -> None:
        """The head of a call, and nothing of its request."""
        self.send(frame(HEADERS, END_HEADERS, stream, request_head(method, more)))

    async def drip(self, data: bytes, seconds: float) -> None:
        """One byte at a time, until the server closes the connection or the bytes are used up."""
        for byte in data:
            if self.closed.is_set():
                return
            self.send(bytes([byte]))
            await asyncio.sleep(seconds)

    async def until_ended(self, stream: int, timeout: float) -> str:
        async with asyncio.timeout(timeout):
            while stream not in self.ended and not self.closed.is_set():
                self.changed.clear()
                await self.changed.wait()
        return self.ended.get(stream, "closed")


async def open_tls(address: str, made: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port), ssl=made, server_hostname="localhost")


@contextlib.asynccontextmanager
async def open_raw(address: str, files: tls.TlsFiles, answers: bool = True) -> AsyncIterator[Raw]:
    reader, writer = await open_tls(address, context(files))
    raw = Raw(reader, writer, answers)
    listening = asyncio.create_task(raw.listen())
    try:
        yield raw
    finally:
        writer.transport.abort()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
