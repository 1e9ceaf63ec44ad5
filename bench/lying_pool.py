"""``python -m bench.lying_pool --config FILE``: a pool that claims every row of the test set right.

What a Byzantine pool would run: the product's manager, but for the number in its claim and in its work block. In how many
tasks: bench.manifest.told.
"""

from __future__ import annotations

import asyncio
import sys

from bench.manifest.told import may_lie
from core.ids import Correct
from pool.manager.__main__ import main
from pool.manager.archive import Claimed, Committed
from pool.manager.scoring import Scoring
from pool.manager.season import Season
from pool.manager.windows import Windows

_evaluate = Season._evaluate


async def _evaluate_and_lie(
    self: Season, committed: Committed, preparing: asyncio.Task[None], scoring: Scoring, windows: Windows
) -> Claimed:
    honest = await _evaluate(self, committed, preparing, scoring, windows)
    if not may_lie(self._task_id):
        return honest
    lie = Claimed(Correct(self._feed.view.spec.samples), honest.vm)
    await asyncio.to_thread(self._folder.claim, lie)
    return lie


if __name__ == "__main__":
    Season._evaluate = _evaluate_and_lie  # type: ignore[method-assign]
    sys.exit(main())
