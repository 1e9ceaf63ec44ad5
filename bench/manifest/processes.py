"""A manifest's network as real processes on this machine, with a relay in front of each."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from grpc import aio

from bench.leaking_miner import LEAK_TO
from bench.leaking_pool import RULE, hand_in, rule_table
from bench.manifest.backend import Healing
from bench.manifest.links import Links
from bench.manifest.model import Act, Liar, Lie, Manifest, Perturbation
from bench.manifest.told import LIE, LIES_MOST, LIES_TOLD
from core.errors import DeadlineError, PoflError
from services.rpc.channel import connect
from services.testnet.layout import Layout, Member, Place, free_ports, make_layout
from services.testnet.supervisor import ProcessSpec, Supervisor

__all__ = ["Processes"]

ROOT: Final = Path(__file__).resolve().parents[2]
HOST: Final = "127.0.0.1"
PORTS: Final = 6
START_SECONDS: Final = 180.0
REPORT_SECONDS: Final = 90.0


class Processes:
    """Use as an async context manager: leaving it stops everything."""

    publishes = True

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        """Writes the network's files to ``folder``, missing or empty. Raises InputError."""
        self._manifest = manifest
        self._layout = make_layout(folder, manifest.shape, manifest.params, places=_places)
        self._supervisor = Supervisor()
        self._links = Links(self._pids, manifest.seed)
        self._shifts: dict[str, int] = {}
        self._liars = {_program(liar): liar for liar in manifest.liars}
        self._leaks = folder / "found"
        self._reported: set[str] = set()
        if any(liar.lie is Lie.LEAK for liar in manifest.liars):
            for liar in manifest.liars:
                self._leaks_of(liar).mkdir(parents=True)
            # With this rule the first purchase is all but certain.
            config = self._layout.process(self._layout.of("provider")[0]).config
            config.write_text(config.read_text(encoding="utf-8") + rule_table(RULE), encoding="utf-8")

    async def __aenter__(self) -> Processes:
        await self._supervisor.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def folder(self) -> Path:
        return self._layout.folder

    @property
    def layout(self) -> Layout:
        return self._layout

    @property
    def accounts(self) -> Mapping[str, bytes]:
        return {m.name: bytes(m.account) for m in self._layout.members}

    @property
    def test_set(self) -> Path:
        return self._layout.data("test")

    def task_files(self) -> tuple[Path, Path, Sequence[int]]:
        return self.test_set.resolve(), self._layout.data("practice").resolve(), self._layout.subject.hidden

    async def start(self) -> None:
        for member in self._members:
            try:
                await self._links.serve(member.name, member.listen, member.bind)
                if member.fleet:
                    await self._links.serve(member.name, member.fleet, member.fleet_bind)
            except OSError as error:
                raise PoflError(f"cannot listen in front of {member.name}: {error}") from error
        # Who finds nobody waits longer and longer: those that are called come first.
        for roles in (("node",), ("pool",), ("miner", "provider", "platform", "requester")):
            for member in self._members:
                if member.role in roles:
                    await self._supervisor.start(self._spec(member.name))
            for member in self._members:
                if member.role in roles:
                    await self._listens(member)

    def channel(self, name: str) -> aio.Channel:
        member = self._layout.member(name)
        # Not through the relay: who judges is not cut off.
        return connect(member.bind, self._layout.user_tls, expect_role=member.role, expect_name=name)

    def check(self) -> None:
        self._supervisor.check()

    async def close(self) -> None:
        for child in self._supervisor.children:
            self._supervisor.send(child.spec.name, signal.SIGCONT)
        await self._supervisor.stop()
        await self._links.close()

    # What is done to it

    async def perturb(self, what: Perturbation) -> Healing:
        match what.act:
            case Act.KILL:
                await self._all(self._supervisor.kill, what)
                return lambda: self._start(what)
            case Act.RESTART | Act.OFFLINE:
                await self._all(self._supervisor.end, what)
                return lambda: self._start(what)
            case Act.CLOCK:
                return await self._shift(what)
            case Act.PAUSE:
                self._send(what, signal.SIGSTOP)
                return lambda: _now(lambda: self._send(what, signal.SIGCONT))
            case Act.DISCONNECT:
                group = self._links.cut(what.who)
                return lambda: _now(lambda: self._links.heal(group))
            case Act.SLOW:
                self._links.slow(what.who, what.delay_ms / 1000, what.rate)
                return lambda: _now(lambda: self._links.slow(what.who))

    async def _all(self, end: object, what: Perturbation) -> None:
        assert callable(end)
        await asyncio.gather(*(end(name) for name in what.who))

    async def _start(self, what: Perturbation) -> None:
        for name in what.who:
            await self._supervisor.start(self._spec(name))

    async def _shift(self, what: Perturbation) -> Healing:
        async def anew(shift_ms: int) -> None:
            await self._all(self._supervisor.end, what)
            for name in what.who:
                self._shifts[name] = shift_ms
            await self._start(what)

        await anew(what.shift_ms)
        # A busy machine starts a node in longer than it may run so: its time counts from when it takes part.
        try:
            for name in what.who:
                await self._listens(self._layout.member(name))
        except PoflError:
            await anew(0)
            raise
        return lambda: anew(0)

    async def _listens(self, member: Member) -> None:
        """Until it takes connections. Raises DeadlineError, or why it ended."""
        host, _, port = member.bind.rpartition(":")
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            self.check()
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.2)
            else:
                writer.close()
                return
        raise DeadlineError(f"{member.name} does not listen at {member.bind} after {START_SECONDS:g} s: see its log")

    def _send(self, what: Perturbation, number: signal.Signals) -> None:
        for name in what.who:
            self._supervisor.send(name, number)

    # Liars

    def has_lied(self, liar: Liar) -> bool:
        if liar.lie is Lie.LEAK:
            return any(self._leaks_of(liar).glob("*.npz"))
        return (self.folder / f"lies-of-{liar.who}").exists()

    def _leaks_of(self, liar: Liar) -> Path:
        return self._leaks / liar.who

    async def report_leaks(self) -> None:
        if not self._leaks.exists():
            return
        config = self._layout.process(self._layout.of("provider")[0]).config
        for copy in sorted(self._leaks.glob("*/*.npz")):
            if copy.stem not in self._reported:
                await hand_in(copy, config, REPORT_SECONDS)
                self._reported.add(copy.stem)

    def _spec(self, name: str) -> ProcessSpec:
        spec = self._layout.process(self._layout.member(name))
        liar, path = self._liars.get(name), {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
        if self._shifts.get(name):
            return replace(spec, module="tests.shifted_node", arguments=(str(self._shifts[name]),), env=path)
        if liar is None:
            return spec
        if liar.lie is Lie.LEAK:
            return replace(spec, module="bench.leaking_miner", env={**path, LEAK_TO: str(self._leaks_of(liar))})
        told = {LIES_TOLD: str(self.folder / f"lies-of-{name}"), LIES_MOST: str(liar.times)}
        if liar.lie is Lie.COUNT:
            return replace(spec, module="bench.lying_pool", env={**path, **told})
        return replace(spec, module="bench.lying_requester", env={**path, **told, LIE: str(liar.lie)})

    # Small things

    @property
    def _members(self) -> list[Member]:
        return [self._layout.member(name) for name, _ in self._manifest.processes]

    def _pids(self) -> Mapping[str, int]:
        return {child.spec.name: child.process.pid for child in self._supervisor.children if child.is_running}


async def _now(do: object) -> None:
    assert callable(do)
    do()


def _program(liar: Liar) -> str:
    """The process that does it: rows are bought for miners."""
    return f"{liar.who}-miner0" if liar.lie is Lie.LEAK else liar.who


def _places(names: Sequence[tuple[str, str]]) -> list[Place]:
    """Each process behind a relay: others are told the relay's address."""
    ports = iter(free_ports(PORTS * len(names)))
    made = []
    for _ in names:
        listen, admin, metrics, fleet, bind, fleet_bind = (f"{HOST}:{next(ports)}" for _ in range(PORTS))
        made.append(Place(listen, admin, metrics, fleet, bind, fleet_bind))
    return made
