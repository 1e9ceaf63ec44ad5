"""Final blocks as they are shown to callers: a full one takes some tenths of a second to describe.

Made beside the event loop, so that votes go on meanwhile, and once for all who ask for one of the last: a final block does
not change.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from pofl.chain.v1 import chain_pb2 as pb

from core.ids import BlockHash, Height
from services.rpc.convert_chain import block_to_proto
from services.rpc.views import BlockView

__all__ = ["ShownBlocks"]

KEPT: Final = 4
"""Each up to some MiB. Those who watch ask for the same one at about the same time."""

Key = Height | BlockHash


class ShownBlocks:
    """For one event loop. ``view`` is called in threads."""

    def __init__(self, view: Callable[[Key], BlockView]) -> None:
        self._view = view
        self._jobs: OrderedDict[Key, asyncio.Task[pb.BlockView]] = OrderedDict()

    async def get(self, key: Key) -> pb.BlockView:
        """Whoever gets it shares it with others: it must not be changed. Raises what ``view`` raises."""
        job = self._jobs.get(key)
        if job is None:
            job = asyncio.create_task(asyncio.to_thread(self._make, key), name="describe a block")
            self._jobs[key] = job
            job.add_done_callback(lambda done: self._forget_failed(key, done))
            while len(self._jobs) > KEPT:
                self._jobs.popitem(last=False)
        # Somebody else may wait for it too.
        return await asyncio.shield(job)

    def _make(self, key: Key) -> pb.BlockView:
        return block_to_proto(self._view(key))

    def _forget_failed(self, key: Key, done: asyncio.Task[pb.BlockView]) -> None:
        # A block that is not here may come.
        if (done.cancelled() or done.exception() is not None) and self._jobs.get(key) is done:
            del self._jobs[key]
