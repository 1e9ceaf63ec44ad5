"""What the manager checks of each update on its own before any aggregation.

One malformed reply makes Flower's FedAvg raise for the whole round, and NaN, negative or enormous weights are accepted
by it; here the one miner is refused, with a reason, and the round goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import CheatingError, PoflError
from core.market.contributions import counted
from pool.flower.wire import Update, delta_from

__all__ = ["Accepted", "cap_weights", "check_update", "refuse_outliers"]

NORM_CEILING = 1e6
"""No honest step is this long, however many miners agree on it."""
NORM_FACTOR = 10.0
"""A step this many times longer than the round's median step is refused (when at least three answered)."""
WEIGHT_FACTOR = 4
"""No miner counts for more than this many times the median of the others' numbers of examples."""


@dataclass(frozen=True, slots=True, eq=False)
class Accepted:
    """One miner's usable update. ``weight``: examples after the weight cap."""

    miner: bytes
    vector: NDArray[np.floating[Any]]
    examples: int
    weight: int
    loss: float


def check_update(miner: bytes, update: Update, parameters: int, registered: int) -> Accepted:
    """Length, finiteness, 0 < examples <= registered, norm.

    Raises MalformedError or CheatingError whose message is the reason shown to the miner.
    """
    vector = delta_from(update, parameters)
    if not np.isfinite(vector).all():
        bad = int((~np.isfinite(vector)).sum())
        raise CheatingError(f"{bad} of {parameters} values are not finite")
    if not np.isfinite(update.loss):
        raise CheatingError(f"the reported loss {update.loss} is not finite")
    if not 0 < update.examples <= registered:
        raise CheatingError(f"{update.examples} examples, registered {registered}")
    with np.errstate(over="ignore"):
        norm = float(np.linalg.norm(vector))
    if norm > NORM_CEILING:
        raise CheatingError(f"norm {norm:.3g} above the ceiling {NORM_CEILING:.3g}")
    return Accepted(miner, vector, update.examples, update.examples, update.loss)


def refuse_outliers(updates: list[Accepted]) -> tuple[list[Accepted], dict[bytes, PoflError]]:
    """Drop updates much longer than the median one. With fewer than three there is no majority to compare with."""
    if len(updates) < 3:
        return updates, {}
    norms = {u.miner: float(np.linalg.norm(u.vector)) for u in updates}
    bound = NORM_FACTOR * float(np.median(list(norms.values())))
    refused: dict[bytes, PoflError] = {
        miner: CheatingError(f"norm {norm:.3g} above {NORM_FACTOR:g} times the median {bound / NORM_FACTOR:.3g}")
        for miner, norm in norms.items()
        if norm > bound > 0
    }
    return [u for u in updates if u.miner not in refused], refused


def cap_weights(updates: list[Accepted], factor: int = WEIGHT_FACTOR) -> list[Accepted]:
    """Clip each weight to ``factor`` times the median of the others' examples: the rule by which miners are paid, too."""
    weights = counted([u.examples for u in updates], factor)
    return [Accepted(u.miner, u.vector, u.examples, w, u.loss) for u, w in zip(updates, weights, strict=True)]
