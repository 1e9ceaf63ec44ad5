"""``python -m tests.shifted_node MILLISECONDS --config FILE``: a node whose machine has a clock that is wrong by so much.

The clock is the one thing of the node that is replaced; a negative number makes it late.
"""

from __future__ import annotations

import sys
from functools import partial

from core.ids import Milliseconds
from node.app import main
from node.config import NodeConfig
from services.rpc.role import role_main
from services.runtime.clock import SystemClock


class Shifted:
    """core.ports.Clock."""

    def __init__(self, shift_ms: int) -> None:
        self._real, self._shift_ms = SystemClock(), shift_ms

    def now_ms(self) -> Milliseconds:
        return Milliseconds(self._real.now_ms() + self._shift_ms)


if __name__ == "__main__":
    clock = Shifted(int(sys.argv.pop(1)))
    sys.exit(role_main(NodeConfig, partial(main, clock=clock)))
