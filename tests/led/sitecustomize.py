"""Python runs this first in every process that has this folder on its path: a test puts their clock forward.

As in tests/led_node.py, for processes that start others which look at the clock too. What counts seconds, and the dates that
Flower signs, go by other clocks.
"""

from __future__ import annotations

import mmap
import os
import time

path = os.environ.get("TEST_LED_CLOCK")
if path is not None:
    with open(path, "r+b") as file:
        ahead = mmap.mmap(file.fileno(), 8)
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + int.from_bytes(ahead[:], "big") / 1_000
    time.time_ns = lambda: nanoseconds() + int.from_bytes(ahead[:], "big") * 1_000_000
