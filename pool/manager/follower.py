"""Follows the chain's tasks and plays a season for each that becomes current; tasks come one after another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from core.errors import NotFoundError, PoflError
from core.ids import TaskId
from pool.manager.board import Board, TaskFeed
from services.rpc.chain_client import ChainClient
from services.rpc.convert_mining import Progress
from services.runtime.logging import logger, scope

__all__ = ["Follower"]

log = logger(__name__)

POLL_SECONDS: Final = 0.5


class Follower:
    """``play`` is one task's season; it returns when the task is over for this pool."""

    def __init__(self, chain: ChainClient, board: Board, play: Callable[[TaskFeed], Coroutine[Any, Any, None]]) -> None:
        self._chain = chain
        self._board = board
        self._play = play
        self._feeds: dict[TaskId, TaskFeed] = {}

    async def run(self) -> None:
        """For ever. Ends only with an error that is no PoflError: a defect."""
        async with asyncio.TaskGroup() as group:
            async for update in self._chain.watch_tasks():
                unfinished = {view.task_id for view in update.tasks}
                for view in update.tasks:
                    feed = self._feeds.get(view.task_id)
                    if feed is not None:
                        feed.update(view)
                    elif view.phase.is_current:
                        self._feeds[view.task_id] = TaskFeed(view)
                        log.info(
                            "task is current", task=view.task_id, name=view.spec.name, reward=view.reward,
                            phase=view.phase.name.lower(),
                        )  # fmt: skip
                        group.create_task(self._season(self._feeds[view.task_id]))
                for task_id, feed in self._feeds.items():
                    if task_id not in unfinished and not feed.is_ending:
                        feed.is_ending = True
                        group.create_task(self._see_end(feed))

    async def _season(self, feed: TaskFeed) -> None:
        task_id = feed.view.task_id
        with scope(task=task_id):
            try:
                await self._play(feed)
            except PoflError as error:
                log.error("the season ended early", error=error)
        await feed.until(lambda view: view.phase.is_ended)
        del self._feeds[task_id]
        if not self._feeds and self._board.present.phase not in ("won", "lost"):
            self._board.show(Progress("idle"))

    async def _see_end(self, feed: TaskFeed) -> None:
        """A task that is not among the unfinished ones has ended: how?"""
        while not feed.view.phase.is_ended:
            try:
                feed.update(await self._chain.task(feed.view.task_id))
            except NotFoundError:
                log.debug("the node asked does not know the task any more", task=feed.view.task_id)
            except PoflError as error:
                log.warning("cannot read how the task ended, trying again", error=error)
            if not feed.view.phase.is_ended:
                await asyncio.sleep(POLL_SECONDS)
