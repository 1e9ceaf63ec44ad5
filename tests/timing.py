"""Whether two computations take as long as each other, as far as a machine with other work to do can tell."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Final

__all__ = ["is_same_time"]

LOOKS: Final = 8
BOUND: Final = 1.67
"""What skips zeros, or looks at nothing, is several times quicker."""


def ratio(one: Callable[[], object], other: Callable[[], object], times: int = 15) -> float:
    """Median CPU time of one over the other's, measured in turns."""
    spent: tuple[list[float], list[float]] = ([], [])
    for step in (one, other):
        step()
    for turn in range(times):
        order = ((0, one), (1, other)) if turn % 2 else ((1, other), (0, one))
        for place, step in order:
            start = time.process_time()
            step()
            spent[place].append(time.process_time() - start)
    return statistics.median(spent[0]) / statistics.median(spent[1])


def is_same_time(one: Callable[[], object], other: Callable[[], object]) -> bool:
    """Within noise. A machine with other work to do gets several looks: a difference that is there is there at each of them."""
    return any(1 / BOUND < ratio(one, other) < BOUND for _ in range(LOOKS))
