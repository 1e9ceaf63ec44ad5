"""Real nodes behind relays, with a load of transfers, a witness, and ways to hurt them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from core.chain.transaction import Transfer
from core.errors import PoflError
from core.ids import AccountId, Amount
from core.params import ChainParams
from services.rpc.chain_client import ChainClient, Wallet
from tests.node_network import FAST, Network, NodeProcess, make_network
from tests.wires import Wires
from tests.witness import Witness

__all__ = ["World", "until", "world"]

PAUSE: Final = 0.5
"""Seconds between two transfers."""
ANSWER_SECONDS: Final = 8.0
START_SECONDS: Final = 180.0
QUIET: Final = ("--set", "log.level=info")
OPENED: Final = "node is at"


async def until(true: Callable[[], Awaitable[bool]], timeout: float, what: str) -> float:
    """Seconds until ``true`` holds. An assertion error that says ``what`` did not come, after ``timeout`` seconds."""
    began = time.monotonic()
    while not await true():
        if time.monotonic() > began + timeout:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(0.1)
    return time.monotonic() - began


@dataclass
class World:
    network: Network
    wires: Wires
    witness: Witness
    sent: int = 0
    _clients: dict[str, ChainClient] | None = None

    @property
    def nodes(self) -> list[NodeProcess]:
        return self.network.nodes

    def client(self, node: NodeProcess) -> ChainClient:
        self._clients = self._clients or {}
        return self._clients.setdefault(node.name, self.network.client(node))

    async def height(self, node: NodeProcess) -> int:
        """-1 if it does not answer."""
        with contextlib.suppress(PoflError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                return (await self.client(node).tip()).height
        return -1

    async def heights(self, nodes: Iterable[int]) -> dict[int, int]:
        wanted = list(nodes)
        found = await asyncio.gather(*(self.height(self.nodes[i]) for i in wanted))
        return dict(zip(wanted, found, strict=True))

    async def answered(self, nodes: Iterable[int], timeout: float) -> dict[int, int]:
        """The heights of nodes that all live, once each has said its own."""
        wanted, found = list(nodes), dict[int, int]()

        async def said() -> bool:
            nonlocal found
            found = await self.heights(wanted)
            return min(found.values()) >= 0

        await until(said, timeout, f"an answer of each of {wanted}")
        return found

    async def reach(self, nodes: Iterable[int], height: int, timeout: float) -> float:
        """Seconds until all of them are at ``height``."""
        wanted = list(nodes)

        async def there() -> bool:
            return min((await self.heights(wanted)).values()) >= height

        return await until(there, timeout, f"height {height} at nodes {wanted}, which are at {await self.heights(wanted)}")

    async def rise(self, nodes: Iterable[int], by: int, timeout: float) -> float:
        """Seconds until all of them have ``by`` more blocks than any has now."""
        wanted = list(nodes)
        return await self.reach(wanted, max((await self.heights(wanted)).values()) + by, timeout)

    def memory(self, node: int) -> int:
        """Resident bytes."""
        process = self.nodes[node].process
        assert process is not None
        return int(psutil.Process(process.pid).memory_info().rss)

    def signal(self, node: int, number: signal.Signals) -> None:
        process = self.nodes[node].process
        assert process is not None
        os.kill(process.pid, number)

    async def kill(self, *nodes: int) -> None:
        """SIGKILL to all of them at once."""
        for node in nodes:
            self.signal(node, signal.SIGKILL)
        for node in nodes:
            await self.nodes[node].kill()

    async def start(self, *nodes: int) -> None:
        for node in nodes:
            await self.nodes[node].start()

    async def load(self) -> None:
        """Transfers for ever, by whoever answers."""
        client = self.network.client(*self.nodes)
        payer, payee = self.network.users[0], AccountId(self.network.users[1].public_key)
        wallet = Wallet(client, self.network.genesis.chain_id, payer)
        while True:
            with contextlib.suppress(PoflError, TimeoutError):
                async with asyncio.timeout(5.0):
                    await wallet.send(Transfer(payee, Amount(1)))
                    self.sent += 1
            await asyncio.sleep(PAUSE)


@contextlib.asynccontextmanager
async def world(
    folder: Path,
    seed: int,
    params: ChainParams = FAST,
    shifts: Sequence[int] = (0, 0, 0, 0),
    prepare: Callable[[Network], None] = lambda network: None,
    load: bool = True,
) -> AsyncIterator[World]:
    """Validators that run, one for each of ``shifts``, the milliseconds by which its clock is wrong; at height 1 at least."""
    os.makedirs(folder, exist_ok=True)
    network = make_network(folder, len(shifts), params=replace(params))
    wires = Wires({i: node.address for i, node in enumerate(network.nodes)}, seed)
    await wires.start()
    for i, (node, shift) in enumerate(zip(network.nodes, shifts, strict=True)):
        node.options = (*QUIET, "--set", "peers.nodes=" + ",".join(wires.address(i, j) for j in range(len(shifts)) if j != i))
        if shift:
            node.program = ("-m", "tests.shifted_node", str(shift))
    prepare(network)
    tasks: list[asyncio.Task[None]] = []
    try:
        async with Witness(network, network.nodes) as witness:
            made = World(network, wires, witness)
            await made.start(*range(len(shifts)))
            await made.reach(range(len(shifts)), 1, START_SECONDS)
            if load:
                tasks.append(asyncio.create_task(made.load()))
            yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await network.close()
        await wires.close()
