"""Asks a process for its health, for a container's health check: ``python -m services.runtime.probe [HOST:PORT] [--patient]``.

One call of ``grpc.health.v1.Health/Check`` in plaintext, to the operator's port on loopback; exit code 0 if it says SERVING, 1
if not. A check runs every few seconds in every container, and importing gRPC alone takes a second of a core: so this speaks the
few frames of HTTP/2 (RFC 9113) that the one call needs, with the standard library only.

``--patient`` is for engines that know one interval only, for a container's start and for the rest of it. Until the process
has been ready once, a check waits for that and ends in that moment: nothing that starts after it waits longer than it must.
From then on a check rests before it asks, so that many containers cost little (docs/adr/0150).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DEFAULT", "MARK", "PATIENT", "HealthUnknownError", "main", "patient", "serving"]

DEFAULT: Final = "127.0.0.1:7001"
TIMEOUT: Final = 3.0
PATIENT: Final = "--patient"
MARK: Final = "/tmp/pofl-was-ready"  # noqa: S108 - in a container, where it is a file system of this start alone
"""Is there once a check found the process ready."""
WAIT: Final = 20.0
"""Seconds that a check waits for the first readiness. With `TIMEOUT` less than the check's own timeout, 30 s."""
POLL: Final = 0.5
REST: Final = 15.0
MOST: Final = 65_536
"""Bytes of an answer, all frames together: what is longer is no health check's."""
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS, PADDED = 0x1, 0x1, 0x4, 0x8
SERVING: Final = b"\x08\x01"
"""HealthCheckResponse with status 1. NOT_SERVING is 2; UNKNOWN, 0, is an empty message."""


class HealthUnknownError(Exception):
    """The process did not answer the question; the text says why."""


def serving(address: str, timeout: float = TIMEOUT) -> bool:
    """Whether the process whose operator's port is ``host:port`` is ready. Raises HealthUnknownError, within ``timeout`` s."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise HealthUnknownError(f"{address!r} must be host:port")
    end = time.monotonic() + timeout
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout) as connection:
            connection.sendall(PREFACE + _frame(SETTINGS, 0, 0, b"") + _request(address))
            return _answer(connection, end) == SERVING
    except TimeoutError:
        raise HealthUnknownError(f"{address} did not answer within {timeout:g} s") from None
    except OSError as error:
        raise HealthUnknownError(f"{address}: {error.strerror or error}") from None


def patient(
    address: str, mark: str = MARK, sleep: Callable[[float], None] = time.sleep, now: Callable[[], float] = time.monotonic
) -> bool:
    """`serving`, after a rest if ``mark`` is there; else as soon as it is so, within `WAIT`. Raises HealthUnknownError."""
    if os.path.exists(mark):
        sleep(REST)
        return serving(address)
    end = now() + WAIT
    while True:
        try:
            if serving(address):
                os.close(os.open(mark, os.O_CREAT | os.O_WRONLY, 0o600))
                return True
        except HealthUnknownError:
            if now() >= end:
                raise
        if now() >= end:
            return False
        sleep(POLL)


def main(arguments: list[str]) -> int:
    """The exit code."""
    addresses = [word for word in arguments if word != PATIENT]
    address = addresses[0] if addresses else DEFAULT
    try:
        ready = patient(address) if PATIENT in arguments else serving(address)
    except HealthUnknownError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}: {error.filename}\n")
        return 1
    sys.stdout.write("SERVING\n" if ready else "NOT_SERVING\n")
    return 0 if ready else 1


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _request(address: str) -> bytes:
    """Headers, and an empty HealthCheckRequest behind gRPC's five bytes: not compressed, length 0."""
    headers = (
        (":method", "POST"), (":scheme", "http"), (":path", "/grpc.health.v1.Health/Check"), (":authority", address),
        ("te", "trailers"), ("content-type", "application/grpc"),
    )  # fmt: skip
    block = b"".join(_literal(name) + _literal(value, first=b"") for name, value in headers)
    return _frame(HEADERS, END_HEADERS, 1, block) + _frame(DATA, END_STREAM, 1, bytes(5))


def _literal(text: str, first: bytes = b"\x00") -> bytes:
    """HPACK (RFC 7541, 6.2.2): a literal that is not indexed, its text not Huffman-coded and shorter than 127 bytes."""
    data = text.encode("ascii")
    if len(data) >= 127:
        raise HealthUnknownError(f"{text!r} is too long")
    return first + bytes([len(data)]) + data


def _answer(connection: socket.socket, end: float) -> bytes:
    """The message of the answer on stream 1. Raises HealthUnknownError, TimeoutError, OSError."""
    body, seen = b"", 0
    while True:
        head = _read(connection, 9, end)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        stream = int.from_bytes(head[5:9], "big") & 0x7FFF_FFFF
        seen += 9 + length
        if seen > MOST:
            raise HealthUnknownError(f"the answer has more than {MOST} bytes")
        payload = _read(connection, length, end)
        if kind == SETTINGS and not flags & ACK:
            connection.sendall(_frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            connection.sendall(_frame(PING, ACK, 0, payload))
        elif kind in (RST_STREAM, GOAWAY):
            raise HealthUnknownError("the process broke the call off")
        elif kind == DATA and stream == 1:
            body += payload[1 : len(payload) - payload[0]] if flags & PADDED and payload else payload
            if len(body) >= 5 and len(body) >= 5 + int.from_bytes(body[1:5], "big"):
                return body[5 : 5 + int.from_bytes(body[1:5], "big")]
        if stream == 1 and kind in (DATA, HEADERS) and flags & END_STREAM:
            raise HealthUnknownError("the process answered with an error: is this the operator's port?")


def _read(connection: socket.socket, size: int, end: float) -> bytes:
    data = b""
    while len(data) < size:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(size - len(data))
        if not part:
            raise HealthUnknownError("the process closed the connection")
        data += part
    return data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
