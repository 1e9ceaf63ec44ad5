"""Who may hold a connection to the fleet's port, and for how long without asking for anything.

Anybody on the network can open one: TLS names the pool, not the miner, and a miner is known by its first signed request only.
uvicorn closes a connection that was idle after a request, but keeps one that never made a request, or sends one byte of it a
minute, for ever; and beyond its limit it refuses requests of all, members too. Here the limit is for each host, the oldest
connection that never asked for anything gives way to a new one, and whoever does not end a request in time is cut off.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any, Final

__all__ = ["Gate"]

MOST: Final = 1_024
MOST_A_HOST: Final = 256
"""Two for each miner of a host, or behind one address."""
IDLE_S: Final = 30.0
SWEEP_S: Final = 5.0


class Gate:
    """``wrap`` gives uvicorn's protocol class this gate; ``run`` cuts off the idle, for ever."""

    def __init__(self, most: int = MOST, most_a_host: int = MOST_A_HOST, idle_s: float = IDLE_S) -> None:
        self._most, self._most_a_host, self._idle_s = most, most_a_host, idle_s
        self._held: dict[Any, tuple[str, Any, float]] = {}
        """Connection -> host, the request last seen on it, when something last began or ended. Oldest first."""
        self._hosts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    def wrap(self, base: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
        gate = self

        class Gated(base):  # type: ignore[misc, valid-type]
            def connection_made(self, transport: asyncio.Transport) -> None:
                self.is_held = gate._admit(self, transport)
                if self.is_held:
                    super().connection_made(transport)
                else:
                    transport.abort()

            def data_received(self, data: bytes) -> None:
                if self.is_held:
                    super().data_received(data)

            def connection_lost(self, reason: Exception | None) -> None:
                if self.is_held:
                    gate._forget(self)
                    super().connection_lost(reason)

        return Gated

    async def run(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_S, self._idle_s / 2))
            self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        """Cut off connections without progress; one whose request is being answered makes progress."""
        for connection, (host, seen, since) in list(self._held.items()):
            cycle = getattr(connection, "cycle", None)
            if cycle is not seen or (cycle is not None and not cycle.response_complete):
                self._held[connection] = host, cycle, now
            elif now - since > self._idle_s:
                connection.transport.abort()

    def _admit(self, connection: Any, transport: asyncio.Transport) -> bool:
        peer = transport.get_extra_info("peername")
        host = str(peer[0]) if isinstance(peer, tuple) and peer else "unknown"
        if self._hosts[host] >= self._most_a_host:
            return False
        if len(self._held) >= self._most:
            silent = next((c for c in self._held if getattr(c, "cycle", None) is None), None)
            if silent is None:
                return False
            silent.transport.abort()
            # Its place is free now; the loop tells of its end later.
            self._forget(silent)
        self._held[connection] = host, None, time.monotonic()
        self._hosts[host] += 1
        return True

    def _forget(self, connection: Any) -> None:
        held = self._held.pop(connection, None)
        if held is None:
            return
        self._hosts[held[0]] -= 1
        if self._hosts[held[0]] <= 0:
            del self._hosts[held[0]]
