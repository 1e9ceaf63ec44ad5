"""The requester believes a ranking that enough nodes tell alike, and waits for the silent ones no longer than she must."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest

from core.chain.state import Validator
from core.errors import UnavailableError
from core.ids import Amount, Digest, NodeId, TaskId
from requester import agreement as module
from requester.agreement import Agreement, Teller
from requester.standing import Follower
from requester.turns import ranking_of
from services.rpc.chain_client import ChainClient
from services.rpc.views import TaskPhase, TaskView, Tip
from tests.unit.test_requester_turns import HEIGHT, TASK, VIEW

LIE = replace(VIEW, entries=VIEW.entries[1:])


class Node:
    def __init__(self, view: TaskView = VIEW, height: int = HEIGHT - 1, at_work: bool = True, delay: float = 0.0) -> None:
        self.view, self.height, self.at_work, self.delay = view, height, at_work, delay
        self.asked = 0
        self.is_down = False

    async def tip(self) -> Tip:
        self.asked += 1
        await asyncio.sleep(self.delay)
        if self.is_down:
            raise UnavailableError("down")

        class Told:
            height, work_height, current_task = self.height, self.at_work, self.view.task_id

        return cast(Tip, Told())

    async def task(self, task_id: TaskId) -> TaskView:
        return self.view


def made(nodes: Sequence[Node], validators: int = 4) -> Agreement:
    return Agreement([(f"node{i}", cast(Teller, node)) for i, node in enumerate(nodes)], validators)


async def asked_twice(node: Node) -> None:
    """The answers to the first round of questions did not settle it."""
    async with asyncio.timeout(60):
        while node.asked < 2:  # noqa: ASYNC110 - it only counts
            await asyncio.sleep(0.01)


def validators(count: int) -> list[Validator]:
    return [Validator(NodeId(bytes([i]) * 32), 1, Amount(0), False) for i in range(count)]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(module, "TELL_SECONDS", 3600.0)


async def test_one_lying_node_of_four_is_not_believed() -> None:
    """The node that the requester follows leaves out the best claim. Before, its word was the ranking."""
    settled = await made([Node(LIE), Node(), Node(), Node()]).settle(TASK)
    assert ranking_of(settled.task) == ranking_of(VIEW)
    assert settled.height == HEIGHT


async def test_a_lie_about_the_height_is_not_believed_either() -> None:
    settled = await made([Node(height=HEIGHT + 7), Node(), Node()]).settle(TASK)
    assert settled.height == HEIGHT


async def test_nodes_that_are_silent_or_down_are_not_waited_for() -> None:
    slow, down = Node(delay=3600.0), Node()
    down.is_down = True
    async with asyncio.timeout(60):
        await made([slow, down, Node(), Node()]).settle(TASK)


async def test_too_few_that_agree_are_asked_again() -> None:
    late = Node(at_work=False)
    agreement = made([Node(LIE), Node(), late])
    task = asyncio.create_task(agreement.settle(TASK))
    await asked_twice(late)
    assert not task.done()
    late.at_work = True
    async with asyncio.timeout(60):
        assert ranking_of((await task).task) == ranking_of(VIEW)


async def test_with_few_nodes_all_must_agree() -> None:
    assert made([Node()], 7).needed == 1
    assert made([Node(), Node()], 7).needed == 2
    assert made([Node()] * 7, 7).needed == 3
    honest = Node()
    task = asyncio.create_task(made([Node(LIE), honest], 7).settle(TASK))
    await asked_twice(honest)
    assert not task.done()
    task.cancel()


async def test_who_joined_and_left_since_genesis_counts() -> None:
    """Two liars are a third of the genesis document's four, and less than a third of the sixteen that vote now. Before, their
    word was enough."""
    last = Node(at_work=False)
    agreement = made([Node(LIE), Node(LIE), *(Node(at_work=False) for _ in range(13)), last], 4)
    follower = Follower(cast(ChainClient, None), Digest(bytes(32)), validators(4), agreement)
    assert agreement.needed == 2
    follower.replace_validators(validators(16))
    assert agreement.needed == 6
    task = asyncio.create_task(agreement.settle(TASK))
    await asked_twice(last)
    assert not task.done()
    task.cancel()
    follower.replace_validators(validators(3))
    assert agreement.needed == 2


async def test_what_is_being_settled_follows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TELL_SECONDS", 0.2)
    agreement = made([Node(), Node(), Node()], 16)
    task = asyncio.create_task(agreement.settle(TASK))
    liars = made([Node(LIE), Node(), Node(delay=3600.0)], 4)
    stuck = asyncio.create_task(liars.settle(TASK))
    async with asyncio.timeout(60):
        await task
    await asyncio.sleep(0.05)
    assert not stuck.done()
    liars.replace_validators(2)
    async with asyncio.timeout(60):
        await stuck


async def test_a_task_in_another_phase_is_not_settled() -> None:
    nodes = [Node(replace(VIEW, phase=TaskPhase.EVALUATION)) for _ in range(4)]
    task = asyncio.create_task(made(nodes).settle(TASK))
    await asked_twice(nodes[-1])
    assert not task.done()
    task.cancel()
