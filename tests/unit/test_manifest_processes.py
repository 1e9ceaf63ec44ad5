"""What the back end of processes does to them; no process is started here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.manifest import processes
from bench.manifest.model import Act, At, Manifest, Perturbation
from bench.manifest.processes import Processes
from core.errors import DeadlineError
from services.testnet.layout import Shape
from services.testnet.supervisor import ProcessSpec

WRONG = Perturbation(Act.CLOCK, ("node0",), At(seconds=1.0), 0.5, shift_ms=4000)


class Recorded:
    """A supervisor that starts nothing."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def start(self, spec: ProcessSpec) -> None:
        self.told.append(f"start {spec.module} {' '.join(spec.arguments)}".strip())

    async def end(self, name: str) -> None:
        self.told.append(f"end {name}")

    def check(self) -> None: ...


@pytest.fixture
def network(tmp_path: Path) -> tuple[Processes, Recorded]:
    made, supervisor = Processes(Manifest("m", shape=Shape(1, 1, 1)), tmp_path / "net"), Recorded()
    made._supervisor = supervisor  # type: ignore[assignment]
    return made, supervisor


async def test_a_wrong_clock_lasts_from_when_its_node_takes_part(network: tuple[Processes, Recorded]) -> None:
    made, supervisor = network
    perturbing = asyncio.create_task(made.perturb(WRONG))
    while len(supervisor.told) < 2:  # noqa: ASYNC110 - it is no event of ours
        await asyncio.sleep(0.01)
    assert not perturbing.done()
    host, _, port = made.layout.member("node0").bind.rpartition(":")
    async with await asyncio.start_server(lambda _, writer: writer.close(), host, int(port)):
        heal = await asyncio.wait_for(perturbing, 60)
    await heal()
    assert supervisor.told == ["end node0", "start tests.shifted_node 4000", "end node0", "start node"]


async def test_a_node_that_does_not_come_with_a_wrong_clock_is_started_with_the_right_one(
    network: tuple[Processes, Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, supervisor = network
    monkeypatch.setattr(processes, "START_SECONDS", 0.0)
    with pytest.raises(DeadlineError, match="node0 does not listen"):
        await made.perturb(WRONG)
    assert supervisor.told[-2:] == ["end node0", "start node"]
