"""Catching up: finalised blocks with their certificates from peers that are ahead, never from a requester.

A certificate of 2/3 of the validators of its height makes a block final, whoever brings it. So a peer can only delay us:
what it sends is checked block by block, and after a fault the next peer is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from core.chain.block import Block, Certificate
from core.errors import ChainError, InputError, PoflError, PrunedError
from core.ids import Height, NodeId
from services.rpc.channel import Connection
from services.rpc.convert_peer import Progress
from services.rpc.peer_client import fetch_blocks
from services.runtime.logging import logger
from services.runtime.metrics import counter

__all__ = ["Sync"]

log = logger(__name__)

FETCHED = counter("node_blocks_fetched", "Finalised blocks taken from other nodes instead of from own voting.")

GRACE_SECONDS: Final = 0.3
"""A peer that is one block ahead has usually just seen the last vote first: wait for that vote."""
BATCH: Final = 256
TIMEOUT_SECONDS: Final = 60.0
AVOID_SECONDS: Final = 1.0
"""After the first fault of a peer; twice as long after each further one."""
MAX_AVOID_SECONDS: Final = 600.0
PRUNED_SECONDS: Final = 10.0
"""A peer that has pruned what is needed is asked again: others may have brought this node far enough."""


class Target(Protocol):
    """Where fetched blocks go."""

    @property
    def height(self) -> Height: ...

    async def take_final(self, block: Block, certificate: Certificate) -> None:
        """Checks and adds the next block. Raises ChainError."""


class Sync:
    """Remembers how far peers are, and fetches while one of them is ahead."""

    def __init__(self, target: Target, connection: Callable[[NodeId], Connection | None]) -> None:
        self._target = target
        self._connection = connection
        self._heights: dict[NodeId, int] = {}
        self._strikes: dict[NodeId, tuple[int, float]] = {}
        """How often in a row a peer did not give what it said it has, and until when it is not asked."""
        self._wake = asyncio.Event()

    @property
    def best(self) -> int:
        """Last finalised height of the peer that is furthest."""
        return max(self._heights.values(), default=0)

    def progress(self, node: NodeId, progress: Progress) -> None:
        """A peer says which height it is deciding."""
        self._heights[node] = progress.height - 1
        if progress.height - 1 > self._target.height:
            self._wake.set()

    def forget(self, node: NodeId) -> None:
        self._heights.pop(node, None)

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(GRACE_SECONDS)
            while (node := self._ahead()) is not None:
                try:
                    await self._fetch(node)
                except PrunedError as error:
                    # No fault: it serves those that are less far behind.
                    log.warning("a peer does not keep the blocks that this node needs", peer=node, error=error)
                    self._strikes[node] = (0, monotonic() + PRUNED_SECONDS)
                    self.forget(node)
                except PoflError as error:
                    log.info("could not fetch blocks", peer=node, error=error)
                    # It says how far it is again when it is reachable again.
                    self._blame(node)

    def _ahead(self) -> NodeId | None:
        """The furthest peer that can be called and is ahead of us. One that lied about that is left alone for a while: it
        must not keep us from the others by saying that it is furthest again and again."""
        now = monotonic()
        able = [
            node
            for node, height in self._heights.items()
            if height > self._target.height
            and self._connection(node) is not None
            and self._strikes.get(node, (0, 0.0))[1] <= now
        ]
        return max(able, key=lambda n: self._heights[n], default=None)

    async def _fetch(self, node: NodeId) -> None:
        connection = self._connection(node)
        if connection is None:
            return
        first = Height(self._target.height + 1)
        count = 0
        async for block, certificate in fetch_blocks(
            connection.channel, first, BATCH, TIMEOUT_SECONDS, peer=connection.target
        ):
            if certificate.height <= self._target.height:
                # Our own voting was faster.
                continue
            try:
                await self._target.take_final(block, certificate)
            except (ChainError, InputError) as error:
                log.warning("a peer sent a block that is not final", peer=node, height=certificate.height, error=error)
                raise
            FETCHED.inc()
            count += 1
        if count:
            self._strikes.pop(node, None)
            log.info("fetched blocks", peer=node, first=first, count=count, height=self._target.height)
        elif self._heights.get(node, 0) > self._target.height:
            self._blame(node)

    def _blame(self, node: NodeId) -> None:
        count = self._strikes.get(node, (0, 0.0))[0] + 1
        self._strikes[node] = (count, monotonic() + min(AVOID_SECONDS * 2.0**count, MAX_AVOID_SECONDS))
        self.forget(node)
