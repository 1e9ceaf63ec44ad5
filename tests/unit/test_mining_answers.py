"""A miner's pool is a stranger: what it answers is bounded before it is read."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.supernode.fleet_http_client import FleetHttpClient

from pool.flower.answers import bound_answers

LIMIT = 64 * 1024


class Pool(BaseHTTPRequestHandler):
    """Answers as its server's ``mode`` says, and counts who came by a redirect."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        server = self.server
        assert isinstance(server, PoolServer)
        if self.path == "/inside":
            server.redirected += 1
        body = bytes(PullMessagesResponse().SerializeToString())
        if server.mode == "redirect":
            self.send_response(307)
            self.send_header("location", "/inside")
        else:
            self.send_response(200)
        if server.mode == "packed":
            body = gzip.compress(bytes(50_000_000))
            self.send_header("content-encoding", "gzip")
        if server.mode == "endless":
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for _ in range(1000):
                try:
                    self.wfile.write(b"4000\r\n" + bytes(0x4000) + b"\r\n")
                except OSError:
                    return
                server.sent += 0x4000
            return
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: tests speak for themselves."""


class PoolServer(ThreadingHTTPServer):
    mode = "good"
    sent = 0
    redirected = 0


@pytest.fixture
def pool() -> Iterator[PoolServer]:
    server = PoolServer(("127.0.0.1", 0), Pool)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def pulled(pool: PoolServer, mode: str) -> PullMessagesResponse:
    pool.mode = mode
    with FleetHttpClient.from_server_address(f"127.0.0.1:{pool.server_port}", True, None, []) as client:
        bound_answers(client, LIMIT)
        return client.PullMessages(PullMessagesRequest())


def test_an_honest_answer_comes_through(pool: PoolServer) -> None:
    assert not pulled(pool, "good").messages_list


def test_an_answer_without_end_is_not_read_to_its_end(pool: PoolServer) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="more than 65536 bytes"):
        pulled(pool, "endless")
    assert pool.sent < 16_000_000


def test_a_packed_answer_is_not_unpacked(pool: PoolServer) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match=r"packed \(gzip\)"):
        pulled(pool, "packed")


def test_no_request_goes_where_a_redirect_points(pool: PoolServer) -> None:
    with pytest.raises(httpx.HTTPStatusError):
        pulled(pool, "redirect")
    assert pool.redirected == 0
