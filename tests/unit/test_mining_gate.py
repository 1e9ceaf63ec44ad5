"""Who may hold a connection to the fleet's port."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from pool.flower.connections import Gate


class Base(asyncio.Protocol):
    """uvicorn's protocol, as far as the gate knows it."""

    def __init__(self) -> None:
        self.cycle: Any = None
        self.transport: Any = None
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data


class Transport:
    def __init__(self, host: str) -> None:
        self.host, self.is_cut = host, False

    def get_extra_info(self, name: str) -> tuple[str, int]:
        assert name == "peername"
        return self.host, 1

    def abort(self) -> None:
        self.is_cut = True


def connect(gate: Gate, host: str) -> tuple[Any, Transport]:
    protocol, transport = gate.wrap(Base)(), Transport(host)
    protocol.connection_made(transport)  # type: ignore[arg-type]
    return protocol, transport


def test_one_host_has_so_many_and_no_more() -> None:
    gate = Gate(most=10, most_a_host=2)
    (first, _), (_, second), (third, cut) = (connect(gate, "a") for _ in range(3))
    assert (second.is_cut, cut.is_cut, len(gate)) == (False, True, 2)
    third.data_received(b"x")
    third.connection_lost(None)
    assert third.received == b""
    assert not connect(gate, "b")[1].is_cut
    first.data_received(b"y")
    assert first.received == b"y"
    first.connection_lost(None)
    assert not connect(gate, "a")[1].is_cut


def test_the_oldest_that_never_asked_gives_way_and_who_asked_stays() -> None:
    gate = Gate(most=3, most_a_host=1)
    (member, kept), (silent, cut), (_, later) = (connect(gate, host) for host in "abc")
    member.cycle = SimpleNamespace(response_complete=True)
    assert not connect(gate, "d")[1].is_cut
    assert (kept.is_cut, cut.is_cut, later.is_cut, len(gate)) == (False, True, False, 3)
    silent.connection_lost(None)
    assert len(gate) == 3
    others = [c for c in gate._held if c is not member]
    for other in others:
        other.cycle = SimpleNamespace(response_complete=True)
    assert connect(gate, "e")[1].is_cut, "all of them made requests: the newcomer waits"


def test_who_makes_no_progress_is_cut_off() -> None:
    gate = Gate(idle_s=30)
    (never, a), (drip, b), (busy, c), (active, d) = (connect(gate, host) for host in "abcd")
    start = next(iter(gate._held.values()))[2]
    drip.cycle = SimpleNamespace(response_complete=True)
    busy.cycle = SimpleNamespace(response_complete=False)
    for seconds in range(1, 100):
        active.cycle = SimpleNamespace(response_complete=True)
        gate.sweep(start + seconds)
        drip.data_received(b"X-")
        if a.is_cut:
            assert 30 < seconds < 33
            never.connection_lost(None)
            break
    for seconds in range(33, 100):
        active.cycle = SimpleNamespace(response_complete=True)
        gate.sweep(start + seconds)
    assert (b.is_cut, c.is_cut, d.is_cut) == (True, False, False)
