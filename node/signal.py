"""A thing that changes, and those who wait for it."""

from __future__ import annotations

import asyncio

__all__ = ["Signal"]


class Signal:
    """Counts changes. A waiter says which count it has seen, so none that came in between is missed."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Event()

    def notify(self) -> None:
        self.count += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seen: int) -> int:
        """The new count, as soon as it is not ``seen``."""
        while self.count == seen:
            await self._changed.wait()
        return self.count
