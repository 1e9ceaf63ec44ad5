"""From a copy that was found to a report: whose rows it has, and which variants (docs/adr/0108).

Only the seller can do this: it takes both variants of all rows and her own trace bits. Nothing here is agreed upon by
nodes. A wrong reading costs the seller her bond, never an innocent buyer reputation: that takes the buyer's own choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.errors import MarketError
from core.market.marks import least_agreeing, mark_count

__all__ = ["Copy", "Share", "Sight", "look", "most_likely", "read_copy", "LEAST_SCORE"]

LEAST_SCORE: Final = 22.0
"""Bits: what a stranger's share scores by chance once in 4 million copies. Below it a report is not worth its bond."""
_NOTHING: Final = 1e-6
"""A lean that is none."""
_BLOCK: Final = 2_048
"""Rows of a copy compared at a time."""


@dataclass(frozen=True, slots=True)
class Copy:
    """What a copy shows of each row of the data set."""

    leaning: NDArray[np.float64] = field(repr=False)
    """[n] in -1..1: 1 is variant 0, -1 variant 1, 0 says nothing or the row is not there."""
    rows: int
    """Rows of the copy, and of them ..."""
    matched: int
    """... rows of the data set that they are copies of."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a buyer may be known by: rows ``first..first+len(trace)-1`` and the seller's trace bits for them."""

    first: int
    trace: NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sight:
    """A copy, read as a copy of one share."""

    score: float
    """Bits: ``-log2`` of the chance that the rows of a stranger's share agree with one another as well."""
    found: NDArray[np.bool_] = field(repr=False)
    """[groups] what is in the copy."""
    seen: NDArray[np.bool_] = field(repr=False)
    """[groups] the choice that it shows."""

    @property
    def is_ours(self) -> bool:
        """Whether this is worth a report: surely this buyer's, and enough marks for a proof."""
        return self.score >= LEAST_SCORE and least_agreeing(int(self.found.sum())) is not None


def read_copy(variants: tuple[NDArray[np.int8], NDArray[np.int8]], copy: NDArray[np.float64]) -> Copy:
    """Match each row of a copy with the nearest row of the data set, and see to which variant it leans.

    ``variants``: int8 [n, M] each; ``copy``: float [k, M] in the units of the int8 features, in any order, rounded,
    noisy, some rows only. Costs ``k n M`` multiplications.

    Raises:
        MarketError: another width, no rows, or values that are not numbers.
    """
    plus, minus = (each.astype(np.float32) for each in variants)
    if copy.ndim != 2 or not len(copy) or copy.shape[1] != plus.shape[1]:
        raise MarketError(f"a copy of shape {list(copy.shape)}; the data set's rows have {plus.shape[1]} features")
    if not np.isfinite(copy).all():
        raise MarketError("the copy has values that are no numbers")
    found = copy.astype(np.float32)
    middle, half = (plus + minus) / 2, (plus - minus) / 2
    norms = np.einsum("ij,ij->i", middle, middle)
    nearest = np.empty(len(found), np.int64)
    distance = np.empty(len(found), np.float32)
    for start in range(0, len(found), _BLOCK):
        part = found[start : start + _BLOCK]
        gaps = norms - 2 * (part @ middle.T)
        best = gaps.argmin(axis=1)
        nearest[start : start + _BLOCK] = best
        distance[start : start + _BLOCK] = gaps[np.arange(len(part)), best] + np.einsum("ij,ij->i", part, part)
    # Of several rows that look like one of ours, the nearest counts.
    order = np.lexsort((distance, nearest))
    rows, first = np.unique(nearest[order], return_index=True)
    leaning = np.zeros(len(middle))
    leaning[rows] = _lean((found[order[first]] - middle[rows]).astype(np.float64), half[rows].astype(np.float64))
    return Copy(leaning, len(found), len(rows))


def _lean(moved: NDArray[np.float64], half: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a row's marked values of how far each moved towards variant 0: each at most one mark's length, so that a few
    wild values outweigh nothing."""
    marked = half != 0
    steps = np.clip(np.divide(moved, half, out=np.zeros(moved.shape), where=marked), -1, 1)
    counts = np.maximum(marked.sum(axis=1), 1)
    found: NDArray[np.float64] = steps.sum(axis=1) / counts
    return found


def look(copy: Copy, share: Share) -> Sight:
    """Read a copy as one of this share.

    With the trace bits taken away, all rows of a group lean the way of its one choice. The first row of a group says which;
    whether each further one leans with those before it is a fair coin for a copy of any other share, because its trace bit
    is: the score is the exact tail of so many coins.
    """
    size = len(share.trace)
    count = mark_count(size)
    leaning = np.zeros((-(-size // count), count))
    leaning.reshape(-1)[:size] = copy.leaning[share.first : share.first + size] * (1.0 - 2.0 * share.trace)
    sums = leaning.cumsum(axis=0)
    coins = leaning[1:] * np.where(np.abs(sums[:-1]) > _NOTHING, np.sign(sums[:-1]), 0.0)
    score = _bits(int((coins > _NOTHING).sum()), int((np.abs(coins) > _NOTHING).sum()))
    found = np.abs(sums[-1]) > _NOTHING
    return Sight(score, found, found & (sums[-1] < 0))


def _bits(heads: int, coins: int) -> float:
    """``-log2 P[Binomial(coins, 1/2) >= heads]``."""
    logs = np.concatenate([[0.0], np.cumsum(np.log2(np.arange(1, coins + 1)))])
    k = np.arange(heads, coins + 1)
    return max(0.0, coins - float(np.logaddexp2.reduce(logs[coins] - logs[k] - logs[coins - k])))


def most_likely(copy: Copy, shares: Sequence[Share]) -> tuple[int, Sight]:
    """The share that a copy fits best. Raises MarketError if there are none."""
    if not shares:
        raise MarketError("no share was sold: there is nobody whose copy this could be")
    sights = [look(copy, share) for share in shares]
    best = max(range(len(sights)), key=lambda i: sights[i].score)
    return best, sights[best]
