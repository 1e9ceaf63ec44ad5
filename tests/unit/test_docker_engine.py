"""What can be done to a container in which state; what a real engine does then is in tests/e2e/test_docker.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import ConfigError, NotFoundError
from services.testnet.engine import Engine
from services.testnet.layout import Shape
from services.testnet.plan import LABEL, PROCESS, Settings, plan_of

PLAN = plan_of(Settings("net", Shape()))


class Listed:
    """An engine that has one container."""

    def __init__(self, state: str) -> None:
        self.done: list[str] = []
        acts = {name: lambda name=name: self.done.append(name) for name in ("kill", "pause", "unpause", "start")}
        self._only = SimpleNamespace(status=state, **acts)
        self.containers = self

    def list(self, *, all: bool, filters: dict[str, Any], ignore_removed: bool) -> list[Any]:
        assert all
        assert ignore_removed
        # By what it was given when it was made: another one may have the name.
        project, process = filters["label"]
        assert project == f"{LABEL}=net"
        return [self._only] if process == f"{PROCESS}=node1" else []


@pytest.mark.parametrize(
    ("act", "state", "done"),
    [
        ("kill", "running", "kill"), ("kill", "paused", "kill"), ("kill", "exited", None), ("pause", "running", "pause"),
        ("pause", "paused", None), ("resume", "paused", "unpause"), ("resume", "running", None), ("start", "exited", "start"),
        ("start", "running", None), ("start", "paused", None),
    ],
)  # fmt: skip
async def test_what_makes_no_sense_is_said_and_not_done(act: str, state: str, done: str | None) -> None:
    listed = Listed(state)
    call = getattr(Engine(listed), act)
    if done is None:
        with pytest.raises(ConfigError, match=f"node1 is {state}, it should be "):
            await call(PLAN, "node1")
    else:
        await call(PLAN, "node1")
    assert listed.done == [done] * (done is not None)


async def test_a_process_without_a_container_and_one_that_there_is_not() -> None:
    engine = Engine(Listed("running"))
    with pytest.raises(NotFoundError, match="node0 has no container now: `pofl testnet up --docker` makes it"):
        await engine.kill(PLAN, "node0")
    with pytest.raises(NotFoundError, match="this network has no process 'node9'; it has node0"):
        await engine.kill(PLAN, "node9")
