"""What a run does when its tasks cannot be published, or when who is asked was killed on purpose."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from core.errors import UnavailableError
from core.ids import Correct, TaskId, TxId
from services.rpc.task_client import OwnTask, Published
from services.rpc.views import TaskPhase
from services.testnet import runner
from services.testnet.control import Control
from services.testnet.runner import _once_back, _pass_on, _Publication, _unless_away
from services.testnet.supervisor import Supervisor


@pytest.mark.parametrize(
    ("error", "said"),
    [(UnavailableError("the requester is gone"), "the requester is gone"), (TimeoutError(), "TimeoutError()")],
)
async def test_an_error_without_words_is_named(error: Exception, said: str) -> None:
    async def publish() -> None:
        raise error

    failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(publish())
    await asyncio.wait((task,))
    _pass_on(task, SimpleNamespace(failed=failed))  # type: ignore[arg-type]
    assert await failed == f"publishing a task failed: {said}"


@pytest.fixture
def control() -> Control:
    return Control(cast(Supervisor, None))


class Clock:
    """Each look at it finds it a hundredth of a second later."""

    now = 1000.0

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(runner, "time", made)
    monkeypatch.setattr(runner, "POLL", 0.001)
    monkeypatch.setattr(runner, "AGREE_TIMEOUT", 0.05)
    return made


def fails(
    before: int, error: Exception | None = None, then: Callable[[int], None] = lambda _: None
) -> Callable[[], Awaitable[str]]:
    """Raises ``before`` times; ``then`` is told the count of each."""
    count = 0

    async def call() -> str:
        nonlocal count
        count += 1
        then(count)
        if count <= before:
            raise error or UnavailableError("gone")
        return "answer"

    return call


async def test_who_is_away_is_not_waited_for(control: Control, clock: Clock) -> None:
    assert await _unless_away(control, "node1", fails(2)) == "answer"
    with pytest.raises(UnavailableError):
        await _unless_away(control, "node1", fails(1000))
    assert await _unless_away(control, "node1", fails(1000, then=lambda n: control._paused.add("node1"))) is None
    assert await _unless_away(control, "node1", fails(0)) is None


async def test_who_was_just_brought_back_has_the_time_of_a_start(
    control: Control, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that is won while the requester starts again does not end the run."""
    control._killed["requester0"] = cast(Any, None)

    async def act(act: str, name: str) -> None:
        control._killed.pop(name)

    monkeypatch.setattr(control, "_act", act)
    monkeypatch.setattr(control, "_supervisor", SimpleNamespace(children=()))
    assert control.since_back("requester0") == math.inf
    await control.do("start", "requester0")
    assert await _unless_away(control, "requester0", fails(20)) == "answer"  # longer than AGREE_TIMEOUT
    control._back["requester0"] -= runner.MEMBERS_TIMEOUT
    with pytest.raises(UnavailableError):
        await _unless_away(control, "requester0", fails(1000))


async def test_who_comes_back_has_the_whole_time(control: Control, clock: Clock) -> None:
    with pytest.raises(UnavailableError):
        await _once_back(control, "requester0", fails(1000), 0.05)

    def away(count: int) -> None:
        if count == 1:
            control._paused.add("requester0")

    asked = asyncio.create_task(_once_back(control, "requester0", fails(5, then=away), 0.2))
    while not control._paused:  # noqa: ASYNC110 - a set has no event
        await asyncio.sleep(0.001)
    clock.now += 0.5  # more than it has
    await asyncio.sleep(0.05)
    assert not asked.done()
    async with control._changed:
        control._paused.clear()
        control._changed.notify_all()
    async with asyncio.timeout(60):
        assert await asked == "answer"


def own(name: str, number: int, phase: TaskPhase | None) -> OwnTask:
    return OwnTask(TaskId(bytes([number]) * 32), name, phase, False, Correct(0), 400, None, None)


class Owner:
    """A requester whose answers get lost."""

    def __init__(self) -> None:
        self.tasks: list[OwnTask] = [own("digits-1", 9, TaskPhase.WON)]
        self.lose = 0
        self.published = 0

    async def own_tasks(self) -> tuple[OwnTask, ...]:
        return tuple(self.tasks)

    async def publish(self, name: str, *_: object) -> Published:
        self.published += 1
        self.tasks.append(own(name, self.published, None))
        if self.lose:
            self.lose -= 1
            raise UnavailableError("killed while she published")
        return Published(self.tasks[-1].task_id, TxId(bytes(32)), 0, ())


async def test_a_task_is_published_once_whatever_happens_to_the_requester() -> None:
    owner = Owner()
    layout = SimpleNamespace(
        data=Path, shape=SimpleNamespace(reward=1000), subject=SimpleNamespace(name="digits", hidden=(16,))
    )
    clients = SimpleNamespace(requester=owner)
    old = frozenset({owner.tasks[0].task_id})

    def publication() -> _Publication:
        return _Publication(cast(Any, layout), cast(Any, clients), "digits-1", old)

    # A task of that name of an earlier run is not this one.
    assert (await publication().attempt()).task_id == bytes([1]) * 32
    owner.tasks, owner.lose = owner.tasks[:1], 1
    lost = publication()
    with pytest.raises(UnavailableError, match="killed"):
        await lost.attempt()
    with pytest.raises(UnavailableError, match="not final yet"):
        await lost.attempt()
    owner.tasks[-1] = own("digits-1", 2, TaskPhase.OPEN)
    assert (await lost.attempt()).task_id == bytes([2]) * 32
    assert owner.published == 2
    # She forgets one that the chain refuses.
    owner.tasks, owner.lose = owner.tasks[:1], 1
    refused = publication()
    with pytest.raises(UnavailableError):
        await refused.attempt()
    owner.tasks.pop()
    assert (await refused.attempt()).task_id == bytes([4]) * 32
