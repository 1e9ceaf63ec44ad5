"""A peer with a certificate of the network that sends as fast as it can: valid messages, then what no honest node sends."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from bench.chaos import PROGRESS
from core.chain import build
from core.chain.transaction import Transfer
from core.chain.vote import SignedVote, Step, Vote
from core.codec import encode
from core.errors import PoflError
from core.ids import AccountId, Amount, BlockHash, Height, Milliseconds, NodeId, Signature
from core.params import PROTOCOL_VERSION
from services.rpc.channel import dial
from services.rpc.convert_peer import Gossip, Hello, Progress
from services.rpc.peer_client import gossip
from tests.chaos_world import World, until
from tests.node_network import NodeProcess
from tests.node_world import keys

__all__ = ["CUT_OFF", "flood"]

CUT_OFF: Final = "peer sent an invalid message, cut off"
MAX_GROWTH: Final = 160 << 20
"""Bytes of memory that a flood may cost a node: queues, the mempool, the digests of what was seen."""
FEE: Final = Amount(2)


@dataclass
class _Count:
    valid: int = 0
    invalid: int = 0
    refused: int = 0


class _Flooder:
    def __init__(self, it: World, seed: int) -> None:
        self._it = it
        self._rng = random.Random(f"flood {seed}")
        self._key = keys(1, "flooder")[0]
        self._me = NodeId(self._key.public_key)
        self._nonce = 0
        self._heard: deque[Gossip] = deque(maxlen=500)
        """What the nodes said last: all of it is valid, and known to whom it is said again."""
        self.count = _Count()
        self.is_valid = True

    async def run(self, node: NodeProcess) -> None:
        """Floods one node for ever, and comes back when it was cut off."""
        network = self._it.network
        files = network.files("node", "flooder", self._key.public_key)
        identity = network.identity("node", "flooder", self._key)
        while True:
            over = asyncio.Event()
            try:
                connection = await dial(node.address, files, identity, expect_role="node", timeout=2.0)
                try:
                    async with contextlib.aclosing(gossip(connection, self._say(node, over))) as incoming:
                        try:
                            async for message in incoming:
                                if not isinstance(message, Hello):
                                    self._heard.append(message)
                        finally:
                            over.set()
                            await asyncio.sleep(0)
                finally:
                    await connection.close()
            except PoflError:
                self.count.refused += 1
            await asyncio.sleep(0.2)

    async def _say(self, node: NodeProcess, over: asyncio.Event) -> AsyncIterator[Gossip]:
        yield Hello(self._it.network.genesis.chain_id, PROTOCOL_VERSION, self._me, Height(0), "flooder")
        height = max(0, await self._it.height(node))
        began = time.monotonic()
        while not over.is_set():
            if time.monotonic() > began + 1.0:
                height, began = max(height, await self._it.height(node)), time.monotonic()
            if self.is_valid:
                self.count.valid += 1
                yield self._valid(height)
            else:
                self.count.invalid += 1
                yield self._forged(height + 1)

    def _valid(self, height: int) -> Gossip:
        match self._rng.randrange(4):
            case 0:
                return Progress(Height(height + self._rng.randrange(1, 4)), self._rng.randrange(9), BlockHash(bytes(32)))
            case 1 if self._heard:
                return self._rng.choice(self._heard)
            case _:
                return self._transaction()

    def _transaction(self) -> Gossip:
        network = self._it.network
        payee = AccountId(network.users[0].public_key)
        self._nonce += 1
        nonce = self._nonce - 1
        return build.make_transaction(network.users[2], network.genesis.chain_id, nonce, FEE, Transfer(payee, Amount(1)))

    def _forged(self, height: int) -> SignedVote:
        genesis = self._it.network.genesis
        vote = Vote(
            genesis.chain_id, Height(height), self._rng.randrange(99), Step.PREVOTE, BlockHash(self._rng.randbytes(32)),
            Milliseconds(0), genesis.validators[0].node_id,
        )  # fmt: skip
        return SignedVote(encode(vote), Signature(self._rng.randbytes(64)))


async def flood(it: World, seconds: float, seed: int) -> dict[str, Any]:
    """All four nodes are flooded at once. Blocks go on, what it costs in memory is bounded, and who lies is cut off."""
    before = [it.memory(i) for i in range(4)]
    flooder = _Flooder(it, seed)
    tasks = [asyncio.create_task(flooder.run(node)) for node in it.nodes]
    try:
        valid = await it.rise(range(4), 2, PROGRESS)
        await asyncio.sleep(seconds / 2)
        flooder.is_valid = False
        invalid = await it.rise(range(4), 2, PROGRESS)
        await asyncio.sleep(seconds / 2)

        async def are_cut_off() -> bool:
            return all(CUT_OFF in node.log.read_text(errors="replace") for node in it.nodes)

        await until(are_cut_off, PROGRESS, "each of four nodes cuts off who sends signatures that do not verify")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await it.rise(range(4), 1, PROGRESS)
    grown = max(it.memory(i) - m for i, m in enumerate(before))
    assert grown <= MAX_GROWTH, f"a flood costs a node {grown >> 20} MiB"
    return {"valid_sent": flooder.count.valid, "invalid_sent": flooder.count.invalid, "refused": flooder.count.refused,
            "two_blocks_meanwhile_s": [round(valid, 1), round(invalid, 1)], "memory_grown_mib": grown >> 20}  # fmt: skip
