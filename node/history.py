"""The last updates of unfinished tasks, so that who was away for a moment gets what it missed, each once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from core.chain.state import State
from core.errors import NotFoundError
from core.ids import Height, Milliseconds
from node import queries
from services.rpc.views import TaskView

__all__ = ["TaskHistory", "TaskUpdate"]

KEPT: Final = 256


@dataclass(frozen=True, slots=True)
class TaskUpdate:
    """Every unfinished task after the block of ``height``, which changed one."""

    height: Height
    block_time_ms: Milliseconds
    tasks: tuple[TaskView, ...]


class TaskHistory:
    """At most ``KEPT`` updates; the same on every node that saw the same blocks."""

    def __init__(self, state: State) -> None:
        self._since = state.height
        self._last = _update(state)
        self._updates: deque[TaskUpdate] = deque(maxlen=KEPT)

    def note(self, state: State) -> None:
        """The state after the next block."""
        update = _update(state)
        if update.tasks == self._last.tasks:
            return
        if len(self._updates) == KEPT:
            self._since = self._updates[0].height
        self._last = update
        self._updates.append(update)

    @property
    def now(self) -> TaskUpdate:
        """The last update; right after a start: the state then."""
        return self._last

    def since(self, height: Height) -> tuple[TaskUpdate, ...]:
        """Updates of blocks from ``height`` on. Raises NotFoundError if some are no longer kept."""
        if height <= self._since:
            raise NotFoundError(
                f"task updates from height {height} on are not kept here, only those after {self._since}: watch from 0 to get "
                "all unfinished tasks as they are now", height=height, kept=self._since,
            )  # fmt: skip
        return tuple(u for u in self._updates if u.height >= height)


def _update(state: State) -> TaskUpdate:
    views = tuple(queries.task_view(state, state.task(task_id)) for task_id in state.live)
    return TaskUpdate(state.height, state.tip.timestamp_ms, views)
