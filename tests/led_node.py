"""``python -m tests.led_node FILE --config FILE``: a node whose clock a test puts forward, so that no window need be short.

The windows are long beside anything that a busy machine does in them, and the test ends each as soon as it has seen in the
chain what it waits for. The clock is the one thing of the node that is replaced.
"""

from __future__ import annotations

import mmap
import sys
import time
from functools import partial
from pathlib import Path

from core.ids import Milliseconds
from node.app import main
from node.config import NodeConfig
from services.rpc.role import role_main

SIZE = 8


class Led:
    """core.ports.Clock: the machine's, and what the file says more. All who have the file open see the same."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(SIZE))
        with path.open("r+b") as file:
            self._ahead = mmap.mmap(file.fileno(), SIZE)

    def now_ms(self) -> Milliseconds:
        return Milliseconds(time.time_ns() // 1_000_000 + int.from_bytes(self._ahead[:], "big"))

    def lead_to(self, instant_ms: int) -> None:
        """It shows this instant, or a later one."""
        more = max(0, instant_ms - self.now_ms())
        self._ahead[:] = (int.from_bytes(self._ahead[:], "big") + more).to_bytes(SIZE, "big")


if __name__ == "__main__":
    clock = Led(Path(sys.argv.pop(1)))
    sys.exit(role_main(NodeConfig, partial(main, clock=clock)))
