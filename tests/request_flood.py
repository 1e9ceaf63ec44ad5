"""Bad requests by the thousand, from certified callers and from strangers, and what they cost the process that is asked."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import psutil
from grpc import aio

from tests.node_network import Network, NodeProcess

__all__ = ["Flood", "flood"]

CHAIN, PEER = "/pofl.chain.v1.ChainService/", "/pofl.peer.v1.PeerService/"
AT_ONCE = 48
CALLERS = 24
"""Certificates, of four roles: one caller alone would only meet its own limit."""
SAMPLE_EVERY = 500
LARGE = 5 * 1024 * 1024


@dataclass
class Flood:
    """What came of it. Memory in bytes, of the process that was asked."""

    before: int = 0
    warm: int = 0
    """After the first tenth: pools of threads, caches and tables of callers are filled then."""
    peak: int = 0
    after: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    samples: list[int] = field(default_factory=list)


async def flood(network: Network, node: NodeProcess, count: int, seed: int) -> Flood:
    """``count`` requests that no honest caller sends, each of its own kind of wrong."""
    assert node.process is not None
    process = psutil.Process(node.process.pid)
    rng = random.Random(f"requests {seed}")
    roles = ("user", "miner", "provider", "pool")
    channels = [network.channel(node, roles[index % 4], f"flooder{index}") for index in range(CALLERS)]
    result = Flood(before=process.memory_info().rss)
    result.peak = result.before
    numbers = iter(range(count))
    host, _, port = node.address.rpartition(":")

    async def stranger(what: bytes) -> str:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(what)
            await writer.drain()
            writer.transport.abort()
        except OSError:
            return "connection refused"
        return "stranger"

    async def one(number: int) -> str:
        if number % 50 == 0:
            return await stranger(rng.randbytes(rng.randrange(1, 400)))
        return await _bad_call(channels[number % CALLERS], number, rng)

    async def worker() -> None:
        for number in numbers:
            result.codes[await one(number)] += 1
            if number % SAMPLE_EVERY == 0:
                result.samples.append(process.memory_info().rss)
                result.peak = max(result.peak, result.samples[-1])
                if not result.warm and number >= count // 10:
                    result.warm = result.samples[-1]

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    result.after = process.memory_info().rss
    result.peak = max(result.peak, result.after)
    return result


async def _bad_call(channel: aio.Channel, number: int, rng: random.Random) -> str:
    """Name of the status it ended with."""
    kind = number % 10
    method = rng.choice(("GetBlock", "GetAccount", "GetTask", "SubmitTransaction", "ListTrades", "GetProof", "Explain"))
    path, data, timeout = CHAIN + method, rng.randbytes(rng.randrange(1, 300)), 30.0
    metadata: Sequence[tuple[str, str]] = ()
    limit: float | None = timeout
    if kind == 1:
        path = f"/pofl.none{rng.randrange(10**9)}.v1.No/Method{rng.randrange(10**9)}"
    elif kind == 2:
        path = PEER + rng.choice(("Gossip", "FetchBlocks", "OfferWork"))
    elif kind == 3:
        limit = None
    elif kind == 4:
        metadata = tuple((f"x-{rng.randrange(10**6)}", "y" * rng.randrange(500)) for _ in range(8))
    elif kind == 5:
        metadata = (("traceparent", f"00-{rng.randrange(1 << 128):032x}-{rng.randrange(1, 1 << 64):016x}-01"),)
    elif kind == 6:
        # A good head, and a length that the rest does not have.
        data = b"\x0a\xff\xff\xff\xff\x0f" + data
    elif kind == 7 and number % 1_000 == 7:
        data = bytes(LARGE)
    elif kind == 8:
        data = b""
    call: Any = channel.unary_unary(path, bytes, bytes)
    running = call(data, timeout=limit, metadata=metadata)
    if kind == 9:
        # Gone before there can be an answer.
        await asyncio.sleep(0)
        running.cancel()
    try:
        await running
    except aio.AioRpcError as error:
        return str(error.code().name)
    except asyncio.CancelledError:
        if not running.cancelled():
            raise
        return grpc.StatusCode.CANCELLED.name
    return grpc.StatusCode.OK.name
