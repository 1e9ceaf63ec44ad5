"""Relays in front of the processes of a network on this machine: each link between two of them can be cut or slow by itself.

A process tells the others its relay's address, so whoever calls it goes through that relay, and the relay finds out who calls:
the process that holds the other end of the connection (Linux: ``/proc``). The wires themselves are those of `pofl bench chaos`.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from tests.wires import Wire

__all__ = ["Links", "holder"]

UNKNOWN: Final = ""
"""Who calls if it is no process of the network, or is gone already."""
PROC: Final = Path("/proc")


class Links:
    """All relays of a network. ``pids``: the processes that run now, by name."""

    def __init__(self, pids: Callable[[], Mapping[str, int]], seed: int) -> None:
        self._pids = pids
        self._rng = random.Random(f"links {seed}")
        self._servers: list[asyncio.Server] = []
        self._wires: dict[tuple[str, str, str], Wire] = {}
        """By who calls, who is called, and the address behind."""
        self._apart: list[frozenset[str]] = []
        self._slow: dict[str, tuple[float, float]] = {}

    async def serve(self, name: str, public: str, behind: str) -> None:
        """Listen at ``public`` for process ``name``, which itself listens at ``behind``. Raises OSError."""
        host, _, port = public.rpartition(":")
        self._servers.append(await asyncio.start_server(partial(self._accept, name, behind), host, int(port)))

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for wire in self._wires.values():
            await wire.close()

    def cut(self, names: Collection[str]) -> frozenset[str]:
        """Nothing passes between those named and all others, until `heal` gets what this returns."""
        group = frozenset(names)
        self._apart.append(group)
        self._treat_all()
        return group

    def heal(self, group: frozenset[str]) -> None:
        self._apart.remove(group)
        self._treat_all()

    def slow(self, names: Collection[str], delay: float = 0.0, rate: float = 0.0) -> None:
        """Seconds and bytes a second of every link of those named; without both as fast as it goes."""
        for name in names:
            self._slow.pop(name, None)
            if delay or rate:
                self._slow[name] = (delay, rate)
        self._treat_all()

    def is_cut(self, a: str, b: str) -> bool:
        return any((a in group) != (b in group) for group in self._apart)

    async def _accept(self, name: str, behind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = int(writer.get_extra_info("peername")[1])
        caller = holder(port, self._pids())
        place = (caller, name, behind)
        wire = self._wires.get(place)
        if wire is None:
            wire = self._wires[place] = Wire(behind, random.Random(self._rng.random()))
            self._treat(place, wire)
        await wire.accept(reader, writer)

    def _treat_all(self) -> None:
        for place, wire in self._wires.items():
            self._treat(place, wire)

    def _treat(self, place: tuple[str, str, str], wire: Wire) -> None:
        caller, called, _ = place
        if self.is_cut(caller, called):
            wire.is_open.clear()
        else:
            wire.is_open.set()
        found = [self._slow[name] for name in (caller, called) if name in self._slow]
        wire.delay = max((delay for delay, _ in found), default=0.0)
        wire.jitter = wire.delay / 4
        wire.rate = min((rate for _, rate in found if rate), default=0.0)


def holder(port: int, pids: Mapping[str, int]) -> str:
    """Whose the connection from this local port of 127.0.0.1 is; "" if of none of these processes or their groups."""
    inode = _inode(port)
    if inode is None:
        return UNKNOWN
    link = f"socket:[{inode}]"
    for name, pid in pids.items():
        if any(_holds(each, link) for each in (pid, *_group(pid))):
            return name
    return UNKNOWN


def _inode(port: int) -> str | None:
    wanted = f"0100007F:{port:04X}"
    for line in (PROC / "net" / "tcp").read_text().splitlines()[1:]:
        fields = line.split()
        # A connection that is over has no owner any more.
        if fields[1] == wanted and fields[9] != "0":
            return fields[9]
    return None


def _holds(pid: int, link: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        return any(_points(f"{folder}/{entry}", link) for entry in os.listdir(folder))
    except OSError:
        return False


def _points(path: str, link: str) -> bool:
    try:
        return os.readlink(path) == link
    except OSError:
        return False


def _group(pid: int) -> Iterator[int]:
    """Its children, where it is one that works in several processes."""
    try:
        listed = (PROC / str(pid) / "task" / str(pid) / "children").read_text()
    except OSError:
        return
    yield from (int(child) for child in listed.split())
