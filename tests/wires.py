"""TCP relays between real processes: links that can be cut, slow, late or lossy, without any right on the machine.

Every ordered pair of nodes has a relay of its own: node ``i`` is told the relay's address in place of node ``j``'s. Nothing of
a stream is ever lost or reordered, as TCP promises; what a network loses shows as what TCP makes of it, a wait for the packet
that is sent again. A link that is cut by `Wires.cut` is silent, as a pulled cable is: connections stay and nothing comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Wire", "Wires"]

HOST: Final = "127.0.0.1"
PIECE: Final = 16 * 1024
QUEUED: Final = 64
"""Pieces that are under way; then the sender is not read any more."""
AGAIN_SECONDS: Final = 0.2
"""How long TCP waits at least before it sends a lost packet again."""

Pair = tuple[int, int]


@dataclass
class Wire:
    """One relay, and how it treats what goes through it, both ways."""

    target: str
    rng: random.Random
    delay: float = 0.0
    """Seconds, one way."""
    jitter: float = 0.0
    loss: float = 0.0
    """Of pieces, 0 to 1."""
    rate: float = 0.0
    """Bytes a second; 0 for as many as come."""
    address: str = ""
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    refuses: bool = False
    carried: int = 0
    """Bytes, both ways."""
    accepted: int = 0
    """Connections."""
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> None:
        self.is_open.set()
        self._server = await asyncio.start_server(self.accept, HOST, 0)
        self.address = f"{HOST}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self) -> None:
        """Break every connection, as a machine on the way that restarts does."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection to its end. For who listens by itself; who called `start` has it called."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            self.accepted += 1
            if self.refuses:
                return
            early = await self._wait_open(reader)
            if early is None:
                return
            host, _, port = self.target.rpartition(":")
            far_reader, far = await asyncio.open_connection(host, int(port))
            self._writers.add(far)
            far.write(early)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, far))
                group.create_task(self._carry(far_reader, writer))
        except (OSError, ExceptionGroup):
            pass  # either end went away: so does the other
        except asyncio.CancelledError:
            if task.cancelling() and self._server is not None and self._server.is_serving():
                raise
        finally:
            for end in (writer, far):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()
            self._tasks.discard(task)

    async def _wait_open(self, reader: asyncio.StreamReader) -> bytes | None:
        """What came before the wire was open; None if who called has given up. Were that not seen, the far end would be called
        by everybody who ever tried at once."""
        early = bytearray()
        opening = asyncio.create_task(self.is_open.wait())
        try:
            while not self.is_open.is_set():
                reading = asyncio.create_task(reader.read(PIECE))
                await asyncio.wait((opening, reading), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    await asyncio.wait((reading,))
                    break
                piece = reading.result()
                if not piece:
                    return None
                early += piece
        finally:
            opening.cancel()
        return bytes(early)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: read, wait as the wire says, write. Raises OSError at the end, which ends the other direction."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED)
        loop = asyncio.get_running_loop()

        async def deliver() -> None:
            while True:
                due, piece = await under_way.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self.is_open.wait()
                if not piece:
                    raise ConnectionError("the end")
                writer.write(piece)
                await writer.drain()
                self.carried += len(piece)
                if self.rate:
                    await asyncio.sleep(len(piece) / self.rate)

        delivering = asyncio.create_task(deliver())
        try:
            due = 0.0
            while not delivering.done():
                piece = await reader.read(PIECE)
                wait = self.delay + self.rng.uniform(-self.jitter, self.jitter)
                if self.loss and self.rng.random() < self.loss:
                    wait += AGAIN_SECONDS + 2 * self.delay
                due = max(due, loop.time() + wait)
                put = asyncio.create_task(under_way.put((due, piece)))
                await asyncio.wait((put, delivering), return_when=asyncio.FIRST_COMPLETED)
                if delivering.done():
                    put.cancel()
                if not piece:
                    break
            await delivering
        finally:
            delivering.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await delivering


class Wires:
    """A relay for each ordered pair of nodes."""

    def __init__(self, addresses: Mapping[int, str], seed: int) -> None:
        rng = random.Random(f"wires {seed}")
        self._wires: dict[Pair, Wire] = {
            (i, j): Wire(target, random.Random(rng.random())) for i in addresses for j, target in addresses.items() if i != j
        }

    async def start(self) -> None:
        for wire in self._wires.values():
            await wire.start()

    async def close(self) -> None:
        for wire in self._wires.values():
            await wire.close()

    def address(self, dialler: int, target: int) -> str:
        return self._wires[dialler, target].address

    def all(self) -> Iterable[Wire]:
        return self._wires.values()

    def of(self, node: int) -> Iterable[Wire]:
        """Every wire that one node is an end of."""
        return [wire for pair, wire in self._wires.items() if node in pair]

    def cut(self, groups: Iterable[Iterable[int]], breaks: bool = False) -> None:
        """Nothing passes between the groups any more; with ``breaks`` connections end too, and new ones are refused."""
        where = {node: number for number, group in enumerate(groups) for node in group}
        for (i, j), wire in self._wires.items():
            if where[i] == where[j]:
                continue
            if breaks:
                wire.refuses = True
                wire.reset()
            else:
                wire.is_open.clear()

    def heal(self) -> None:
        for wire in self._wires.values():
            wire.refuses = False
            wire.is_open.set()

    @staticmethod
    def treat(wires: Iterable[Wire], delay: float = 0.0, jitter: float = 0.0, loss: float = 0.0, rate: float = 0.0) -> None:
        """Seconds, seconds, a share of the pieces, bytes a second; without any, as it comes."""
        for wire in wires:
            wire.delay, wire.jitter, wire.loss, wire.rate = delay, min(jitter, delay), loss, rate
