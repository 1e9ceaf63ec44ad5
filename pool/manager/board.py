"""Things that change, and those who wait for them: the pool's progress, and a task as the chain shows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from services.rpc.convert_mining import Progress
from services.rpc.views import TaskView

__all__ = ["Board", "TaskFeed"]

MAX_BEHIND: Final = 256
"""Changes kept for a slow watcher; the oldest go first."""


class Board:
    """The pool's progress, for all who watch it."""

    def __init__(self) -> None:
        self.present = Progress("idle")
        self._watchers: set[asyncio.Queue[Progress]] = set()

    def show(self, progress: Progress) -> None:
        self.present = progress
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(progress)

    async def watch(self) -> AsyncIterator[Progress]:
        """The present state, then every change, for ever."""
        queue: asyncio.Queue[Progress] = asyncio.Queue(MAX_BEHIND)
        queue.put_nowait(self.present)
        self._watchers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)


class TaskFeed:
    """The newest view of one task."""

    def __init__(self, view: TaskView) -> None:
        self.view = view
        self.is_ending = False
        """It is no longer among the chain's unfinished tasks."""
        self._changed = asyncio.Event()

    def update(self, view: TaskView) -> None:
        """A task's life goes one way: an older view from a node that is behind is ignored."""
        if view.phase < self.view.phase:
            return
        self.view = view
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, is_it: Callable[[TaskView], bool]) -> TaskView:
        """The first view for which ``is_it`` holds. The chain ends every task, so wait for an end as well."""
        while not is_it(self.view):
            await self._changed.wait()
        return self.view
