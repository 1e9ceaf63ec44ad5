"""Who proposes in which round."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Final

from core.chain.state import Validator
from core.ids import Height, NodeId

__all__ = ["proposer"]

MAX_TURNS: Final = 4096


def proposer(validators: Sequence[Validator], height: Height, round_: int) -> NodeId:
    """Whose turn it is: one after another, each as often as its power says, spread evenly; successive rounds differ."""
    order = _turns(tuple((v.node_id, v.power) for v in validators))
    return order[(height + round_) % len(order)]


@functools.lru_cache(maxsize=16)
def _turns(powers: tuple[tuple[NodeId, int], ...]) -> tuple[NodeId, ...]:
    """Smooth weighted round robin over one period; very uneven powers are rounded to keep the period short."""
    unit = math.gcd(*(power for _, power in powers))
    weights = [power // unit for _, power in powers]
    if sum(weights) > MAX_TURNS:
        total = sum(weights)
        weights = [max(1, w * MAX_TURNS // total) for w in weights]
    credit = [0] * len(weights)
    turns: list[NodeId] = []
    for _ in range(sum(weights)):
        credit = [c + w for c, w in zip(credit, weights, strict=True)]
        first = max(range(len(weights)), key=lambda i: (credit[i], -i))
        credit[first] -= sum(weights)
        turns.append(powers[first][0])
    return tuple(turns)
