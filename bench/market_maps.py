"""Where the market's mechanism does what section III promises: as reputation falls, p* falls and the price rises.

Each map varies two parameters around the defaults, plays the bounded game at 41 reputations, and says what becomes of the
promise. The default rule is core.market.contract's; the default pool is docs/adr/0034's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.market.bridge import to_float
from core.market.contract import DEFAULT_RULE
from core.market.reverse_game import Array, PoolPrivate, Rule, best_response

__all__ = ["DEFAULT_POOL", "MAPS", "MEANINGS", "Map", "classify", "outcomes", "rows", "summary"]

DEFAULT_POOL: Final = PoolPrivate(20_000.0, 0.0, 0.0)
REPUTATIONS: Final = np.linspace(0, 1, 41)
SLACK: Final = 1e-9
MEANINGS: Final = (
    "as promised", "price does not rise as r falls", "p does not fall as r falls", "neither", "p = 1 at every r",
    "declines at some r",
)  # fmt: skip
PROMISED, NO_PRICE, NO_P, NEITHER, SURE, DECLINES = range(6)


@dataclass(frozen=True, slots=True)
class Map:
    """Two parameters by name, of the rule or (``Q``, ``alpha~``, ``beta~``) of the pool, and their values."""

    name: str
    x_name: str
    y_name: str
    x: Array
    y: Array

    @property
    def default(self) -> tuple[float, float]:
        rule = to_float(DEFAULT_RULE)
        known = {"Q": DEFAULT_POOL.Q, "alpha~": DEFAULT_POOL.alpha, "beta~": DEFAULT_POOL.beta}
        first, second = (known[n] if n in known else getattr(rule, n) for n in (self.x_name, self.y_name))
        return float(np.asarray(first)), float(np.asarray(second))


def _play(chart: Map, x: Array, y: Array) -> tuple[Rule, PoolPrivate]:
    rule, private = to_float(DEFAULT_RULE), DEFAULT_POOL
    for name, value in ((chart.x_name, x), (chart.y_name, y)):
        if name == "Q":
            private = replace(private, Q=value)
        elif name == "alpha~":
            private = replace(private, alpha=value)
        elif name == "beta~":
            private = replace(private, beta=value)
        else:
            rule = replace(rule, **{name: value})
    return rule, private


def outcomes(chart: Map) -> tuple[Array, Array]:
    """p* and price at every point and reputation, each of shape (y, x, 41); NaN where the pool declines."""
    x, y = np.meshgrid(chart.x, chart.y)
    rule, private = _play(chart, x[..., None], y[..., None])
    found = best_response(rule, private, REPUTATIONS)
    shape = (*x.shape, len(REPUTATIONS))
    return np.broadcast_to(found.p, shape), np.broadcast_to(found.price, shape)


def classify(chart: Map) -> NDArray[np.int64]:
    """For each point, of shape (y, x), an index of MEANINGS."""
    p, price = outcomes(chart)
    scale = 1 + np.nanmax(np.abs(price), axis=-1, initial=0.0)
    p_moves, price_moves = np.diff(p, axis=-1), np.diff(price, axis=-1) / scale[..., None]
    # At a known p = 1 nothing can fall; the promise is that it does somewhere, and nowhere turns back.
    p_ok = (p_moves >= -SLACK).all(-1) & (p_moves.sum(-1) > SLACK)
    price_ok = (price_moves <= SLACK).all(-1) & (price_moves.sum(-1) < -SLACK)
    kind = np.select(
        [np.isnan(p).any(-1), (p >= 1 - SLACK).all(-1), p_ok & price_ok, p_ok, price_ok],
        [DECLINES, SURE, PROMISED, NO_PRICE, NO_P], default=NEITHER,
    )  # fmt: skip
    return np.asarray(kind, dtype=np.int64)


def rows(chart: Map, found: NDArray[np.int64]) -> Iterator[dict[str, object]]:
    p, price = outcomes(chart)
    for i, y in enumerate(chart.y):
        for j, x in enumerate(chart.x):
            ends = {
                "p_at_r0": p[i, j, 0],
                "p_at_r1": p[i, j, -1],
                "price_at_r0": price[i, j, 0],
                "price_at_r1": price[i, j, -1],
            }
            row: dict[str, object] = {chart.x_name: float(x), chart.y_name: float(y), "outcome": MEANINGS[found[i, j]]}
            yield row | {name: "" if np.isnan(value) else float(value) for name, value in ends.items()}


def summary(chart: Map, found: NDArray[np.int64]) -> dict[str, object]:
    counts = {meaning: int((found == i).sum()) for i, meaning in enumerate(MEANINGS)}
    parts = ", ".join(f"{meaning}: {100 * n / found.size:.0f} %" for meaning, n in counts.items() if n)
    sentence = f"{chart.name}: as reputation falls, does p* fall and the price rise? {parts} of the map."
    return {"figure": chart.name, "sentence": sentence, "counts": counts, "curves": []}


def _highs() -> Array:
    return np.linspace(500, 20_000, 40)


MAPS: Final = (
    Map("map_pool", "Q", "alpha~", np.linspace(1_000, 40_000, 40), np.linspace(0, 6_000, 41)),
    Map("map_leaks", "Q", "beta~", np.linspace(1_000, 40_000, 40), np.linspace(0, 2, 41)),
    Map("map_highs", "m_bar", "D_bar", _highs(), _highs()),
    Map("map_weights", "e1", "e2", np.linspace(0, 0.49, 50), np.linspace(0.01, 0.5, 50)),
)
