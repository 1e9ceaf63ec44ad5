"""``python -m bench.leaking_miner --config FILE``: a miner that also writes the rows its pool bought for it to a folder.

What a leaker would run: the protocol does not see the difference. ``LEAKED_ROWS_TO`` names the folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import numpy as np

from core.ids import Digest
from core.market.delivery import to_floats
from core.market.rows import Features, Labels
from pool.miner.__main__ import main
from pool.miner.rows import TrainingRows

__all__ = ["LEAK_TO"]

LEAK_TO: Final = "LEAKED_ROWS_TO"

_add = TrainingRows.add


def _add_and_keep(
    self: TrainingRows, trade_id: Digest, data_root: Digest, first: int, x: Features, y: Labels, feature_scale_micro: int,
    is_whole: bool = True,
) -> None:  # fmt: skip
    _add(self, trade_id, data_root, first, x, y, feature_scale_micro, is_whole)
    path = Path(os.environ[LEAK_TO]) / f"{trade_id.hex()}.npz"
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        # As a stranger would find them: in another order.
        order = np.random.default_rng().permutation(len(y))
        np.savez(file, allow_pickle=False, x=to_floats(x, feature_scale_micro)[order], y=y[order])
    partial.replace(path)


if __name__ == "__main__":
    TrainingRows.add = _add_and_keep  # type: ignore[method-assign]
    sys.exit(main())
