"""At which height a task's claims are decided, and their ranking, as enough nodes tell it alike (docs/adr/0063).

One node that leaves out the claims above one would have the requester answer about a loser. More than a third of the validators
do not lie; where fewer nodes are configured, all of them must agree. Who votes now is counted, as services.rpc.validator_watch
proves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from core.errors import PoflError
from core.ids import Height, TaskId
from requester.turns import Ranking, ranking_of
from services.rpc.views import TaskPhase, TaskView, Tip
from services.runtime.logging import logger

__all__ = ["Agreement", "Settled", "Teller"]

log = logger(__name__)

TELL_SECONDS: Final = 2.0
AGAIN_SECONDS: Final = 0.25


class Teller(Protocol):
    """What is asked of one node: services.rpc.chain_client.ChainClient over that node alone."""

    async def tip(self) -> Tip: ...

    async def task(self, task_id: TaskId) -> TaskView: ...


@dataclass(frozen=True, slots=True)
class Settled:
    """A task at its work height."""

    height: Height
    """The height that is being decided."""
    task: TaskView


class Agreement:
    """Over all nodes of the configuration."""

    def __init__(self, nodes: Sequence[tuple[str, Teller]], validators: int) -> None:
        self._nodes = tuple(nodes)
        self._validators = validators

    @property
    def needed(self) -> int:
        """Nodes that must tell the same."""
        return min(len(self._nodes), self._validators // 3 + 1)

    def replace_validators(self, count: int) -> None:
        """How many vote from now on; what is being settled needs as many."""
        self._validators = count

    async def settle(self, task_id: TaskId) -> Settled:
        """Asks until enough nodes tell the same; cancelled when nobody needs it any more."""
        while True:
            found = await self._ask_all(task_id)
            if found is not None:
                return found
            await asyncio.sleep(AGAIN_SECONDS)

    async def _ask_all(self, task_id: TaskId) -> Settled | None:
        """The first telling that enough nodes share; the slower ones are not waited for."""
        told: dict[tuple[Height, Ranking], int] = {}
        asked = [asyncio.create_task(self._ask(name, node, task_id)) for name, node in self._nodes]
        try:
            for answer in asyncio.as_completed(asked):
                settled = await answer
                if settled is None:
                    continue
                key = (settled.height, ranking_of(settled.task))
                told[key] = told.get(key, 0) + 1
                if told[key] >= self.needed:
                    return settled
        finally:
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if len(told) > 1:
            log.warning("nodes tell different claims", task=task_id, tellings=len(told), needed=self.needed)
        return None

    async def _ask(self, name: str, node: Teller, task_id: TaskId) -> Settled | None:
        try:
            async with asyncio.timeout(TELL_SECONDS):
                before = await node.tip()
                task = await node.task(task_id)
        except (PoflError, TimeoutError) as error:
            log.debug("a node does not tell the claims", node=name, error=error)
            return None
        if not before.work_height or before.current_task != task_id or task.phase is not TaskPhase.WORK:
            return None
        return Settled(Height(before.height + 1), task)
