"""Relays in front of real processes: who calls is found out, and each link is cut and slowed by itself."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench.manifest.links import Links, holder
from services.testnet.layout import free_ports

HOST = "127.0.0.1"
CALLER = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as link:
    link.settimeout(60)
    for line in sys.stdin:
        link.sendall(line.encode())
        print(link.recv(64).decode(), end="", flush=True)
"""
"""Sends each line of its input and prints what comes back."""


async def caller(port: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", CALLER, HOST, str(port), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )


def send(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"hello\n")


async def answer(process: asyncio.subprocess.Process, seconds: float = 60.0) -> bytes:
    assert process.stdout is not None
    return await asyncio.wait_for(process.stdout.readline(), seconds)


@asynccontextmanager
async def echo() -> AsyncIterator[str]:
    ended: list[asyncio.Event] = []
    writers: list[asyncio.StreamWriter] = []

    async def back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = asyncio.Event()
        ended.append(end)
        writers.append(writer)
        try:
            while line := await reader.readline():
                writer.write(line)
        except OSError:
            pass  # a relay that was cut resets
        finally:
            writer.transport.abort()
            end.set()

    server = await asyncio.start_server(back, HOST, 0)
    yield f"{HOST}:{server.sockets[0].getsockname()[1]}"
    server.close()
    for writer in writers:
        writer.transport.abort()
    await asyncio.gather(*(end.wait() for end in ended))
    await asyncio.sleep(0)


@pytest.mark.slow
async def test_only_the_links_of_those_cut_off_are_cut() -> None:
    (port,) = free_ports(1)
    pids: dict[str, int] = {}
    links = Links(lambda: pids, seed=1)
    async with echo() as behind:
        await links.serve("server", f"{HOST}:{port}", behind)
        first, second = await caller(port), await caller(port)
        pids.update(first=first.pid, second=second.pid)
        try:
            for process in (first, second):
                send(process)
                assert await answer(process) == b"hello\n"
            apart = links.cut(["first"])
            assert links.is_cut("first", "server")
            assert not links.is_cut("second", "server")
            send(first)
            send(second)
            assert await answer(second) == b"hello\n"
            with pytest.raises(TimeoutError):
                await answer(first, 0.5)
            links.heal(apart)
            # Nothing of the stream was lost.
            assert await answer(first) == b"hello\n"
            both = links.cut(["first", "server"])
            send(first)
            assert await answer(first) == b"hello\n"
            links.heal(both)
        finally:
            for process in (first, second):
                process.kill()
                await process.wait()
            await links.close()


async def test_a_slow_process_is_slow_in_all_its_links_and_no_other_is() -> None:
    (port,) = free_ports(1)
    links = Links(lambda: {"me": os.getpid()}, seed=1)
    async with echo() as behind:
        await links.serve("server", f"{HOST}:{port}", behind)
        reader, writer = await asyncio.open_connection(HOST, port)
        loop = asyncio.get_running_loop()

        async def round_trip() -> float:
            began = loop.time()
            writer.write(b"hello\n")
            assert await asyncio.wait_for(reader.readline(), 200.0) == b"hello\n"
            return loop.time() - began

        await round_trip()
        links.slow(["me"], delay=0.2)
        # Half of it at least, after the jitter, in both directions.
        assert await round_trip() >= 0.2
        links.slow(["me"])
        links.slow(["another"], delay=300.0)
        assert await round_trip() < 300.0
        writer.close()
        await links.close()


async def test_a_connection_of_nobody_is_unknown() -> None:
    assert holder(1, {"me": os.getpid()}) == ""
    async with echo() as behind:
        host, _, port = behind.partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        own = writer.get_extra_info("sockname")[1]
        assert holder(own, {"gone": 1 << 22}) == ""
        assert holder(own, {"gone": 1 << 22, "me": os.getpid()}) == "me"
        writer.close()
