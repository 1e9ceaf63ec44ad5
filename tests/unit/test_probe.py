"""services.runtime.probe: the health check of a container speaks to a real server, and believes nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from services.rpc.server import RpcServer
from services.runtime import probe
from services.runtime.probe import POLL, REST, TIMEOUT, WAIT, HealthUnknownError, main, patient, serving


@pytest.fixture(autouse=True)
def _answers_have_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client and server are one process here: when it gets no processor for a while, neither is at fault."""
    monkeypatch.setattr(probe.serving, "__defaults__", (60.0,))


async def test_a_process_is_healthy_from_ready_on(capsys: pytest.CaptureFixture[str]) -> None:
    server = RpcServer("127.0.0.1:0", None, "127.0.0.1:0", role_rules={})
    await server.start()
    try:
        assert await asyncio.to_thread(serving, server.admin_address) is False
        assert await asyncio.to_thread(main, [server.admin_address]) == 1
        await server.ready()
        assert await asyncio.to_thread(serving, server.admin_address) is True
        assert await asyncio.to_thread(main, [server.admin_address]) == 0
        await server.not_ready()
        assert await asyncio.to_thread(serving, server.admin_address) is False
    finally:
        await server.stop(0)
    assert await asyncio.to_thread(main, [server.admin_address]) == 1
    said = capsys.readouterr()
    assert said.out == "NOT_SERVING\nSERVING\n"
    assert "Connection refused" in said.err


async def test_a_patient_check_ends_in_the_moment_of_readiness_and_rests_from_then_on(tmp_path: Path) -> None:
    server = RpcServer("127.0.0.1:0", None, "127.0.0.1:0", role_rules={})
    await server.start()
    loop, mark = asyncio.get_running_loop(), str(tmp_path / "ready")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        """At the third look it is ready."""
        slept.append(seconds)
        if len(slept) == 3:
            asyncio.run_coroutine_threadsafe(server.ready(), loop).result(60)

    try:
        assert await asyncio.to_thread(patient, server.admin_address, mark, sleep, lambda: 0.0) is True
        assert slept == [POLL] * 3
        assert (tmp_path / "ready").exists()
        assert await asyncio.to_thread(patient, server.admin_address, mark, sleep, lambda: 0.0) is True
        assert slept[3:] == [REST]
        await server.not_ready()
        assert await asyncio.to_thread(patient, server.admin_address, mark, sleep, lambda: 0.0) is False
    finally:
        await server.stop(0)
    with pytest.raises(HealthUnknownError, match="Connection refused"):
        await asyncio.to_thread(patient, server.admin_address, mark, sleep, lambda: 0.0)


def test_a_patient_check_ends_before_the_engine_ends_it(tmp_path: Path) -> None:
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    with pytest.raises(HealthUnknownError, match="Connection refused"):
        patient("127.0.0.1:1", str(tmp_path / "ready"), sleep, lambda: clock[0])
    assert WAIT <= clock[0] <= WAIT + POLL
    assert max(WAIT + POLL, REST) + TIMEOUT < 30
    assert not (tmp_path / "ready").exists()


@pytest.mark.parametrize("address", ["", "7001", "localhost:", "localhost:x", "localhost:0", "localhost:65536"])
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(HealthUnknownError, match="must be host:port"):
        serving(address)


def frame(kind: int, flags: int, payload: bytes, stream: int = 1) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "more than 65536 bytes"),
        (frame(7, 0, bytes(8), 0), "broke the call off"),
        (frame(3, 0, bytes(4)), "broke the call off"),
        (frame(1, 5, b""), "answered with an error"),
        (frame(0, 0, bytes(60_000)) + frame(0, 0, bytes(60_000)), None),
        (frame(0, 0, b"\xff" * 60_000) + frame(0, 0, bytes(60_000)), "more than 65536 bytes"),
        (frame(4, 0, b"", 0) + frame(6, 0, bytes(8), 0) + frame(0, 0, b"\x00\x00"), "closed the connection"),
    ],
)
def test_a_strange_answer_is_no_health(answer: bytes, sentence: str | None) -> None:
    with _Listener(lambda connection: connection.sendall(answer)) as address:
        if sentence is None:
            assert serving(address, 60) is False
        else:
            with pytest.raises(HealthUnknownError, match=sentence):
                serving(address, 60)


def test_silence_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    with _Listener(lambda _: done.wait(60) and None) as address:
        with pytest.raises(HealthUnknownError, match="did not answer within"):
            serving(address, timeout=0.2)
        done.set()


def test_it_loads_neither_grpc_nor_anything_else() -> None:
    """A check runs every few seconds in every container."""
    source = Path(probe.__file__).read_text(encoding="utf-8")
    imports = {line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"__future__", "os", "socket", "struct", "sys", "time", "typing"}


class _Listener:
    """Takes one connection, reads the request, and answers."""

    def __init__(self, answer: Callable[[socket.socket], object]) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> str:
        self._thread.start()
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection, contextlib.suppress(OSError):  # the other side may have read enough
            connection.recv(4096)
            self._answer(connection)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
