"""What this requester does, for whoever looks on: the steps of its sessions."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Final

from core.errors import LimitError
from services.rpc.task_client import Activity

__all__ = ["ActivityLog"]

MAX_WATCHERS: Final = 16
WATCHER_BACKLOG: Final = 256


class ActivityLog:
    """The newest step of each session, and a stream of all of them for whoever looks on."""

    def __init__(self, most: int) -> None:
        """``most``: sessions whose newest step is kept."""
        self._most = most
        self._newest: OrderedDict[bytes, Activity] = OrderedDict()
        self._watchers: set[asyncio.Queue[Activity]] = set()

    def add(self, session: bytes, activity: Activity) -> None:
        self._newest[session] = activity
        self._newest.move_to_end(session)
        if len(self._newest) > self._most:
            self._newest.popitem(last=False)
        for queue in self._watchers:
            # Who looks too slowly misses steps; nobody is held up.
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(activity)

    async def watch(self) -> AsyncIterator[Activity]:
        """The newest step of each session, then every step from now on. Raises LimitError."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise LimitError(f"{MAX_WATCHERS} look on already")
        queue: asyncio.Queue[Activity] = asyncio.Queue(WATCHER_BACKLOG)
        self._watchers.add(queue)
        try:
            for activity in list(self._newest.values()):
                yield activity
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)
