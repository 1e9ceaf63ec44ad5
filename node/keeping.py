"""node.held beside the event loop: what was fetched and checked is on disk before anything is said that relies on it.

A disk that fails here costs durability and no vote: what is in memory is used all the same. Where a vote must not go on
without the disk, the driver's own writes end the node.
"""

from __future__ import annotations

import asyncio

from core.errors import PoflError
from core.ids import Height, ModelCommitment
from node.held import Held, WorkPart
from services.runtime.logging import logger

__all__ = ["Keeping"]

log = logger(__name__)


class Keeping:
    """Puts and gets run in threads. A put that its caller no longer waits for is finished all the same."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._running: set[asyncio.Task[bool]] = set()

    async def put(self, height: Height, part: WorkPart, commitment: ModelCommitment, data: bytes) -> None:
        """On disk when this returns, or logged. The caller has checked ``data``; ``height`` is the one being decided."""
        job = asyncio.create_task(asyncio.to_thread(self._held.put, height, part, commitment, data))
        self._running.add(job)
        job.add_done_callback(self._running.discard)
        try:
            await asyncio.shield(job)
        except PoflError as error:
            log.error("a claim's part is in memory only", part=part.name.lower(), model=commitment, error=error)

    async def get(self, part: WorkPart, commitment: ModelCommitment) -> bytes | None:
        """None if it is not here, or damaged: then it is fetched again."""
        try:
            return await asyncio.to_thread(self._held.get, part, commitment)
        except PoflError as error:
            log.error("a claim's part cannot be read", part=part.name.lower(), model=commitment, error=error)
            return None

    def commitments(self, height: Height, part: WorkPart) -> tuple[ModelCommitment, ...]:
        return self._held.commitments(height, part)

    def size(self, part: WorkPart, commitment: ModelCommitment) -> int:
        return self._held.size(part, commitment)

    async def settled(self) -> None:
        """No put runs any more: the store may be closed."""
        await asyncio.gather(*self._running, return_exceptions=True)
