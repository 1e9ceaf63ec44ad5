"""How a data set is split among miners: evenly, or with Dirichlet label skew. Seeded, every row used once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError

__all__ = ["dirichlet", "even"]


def even(labels: NDArray[np.int64], parts: int, seed: int) -> list[NDArray[np.int64]]:
    """Row numbers of each part: a random split into sizes that differ by one at most."""
    _check(labels, parts)
    order = np.random.default_rng(seed).permutation(len(labels)).astype(np.int64)
    return [np.sort(rows) for rows in np.array_split(order, parts)]


def dirichlet(labels: NDArray[np.int64], parts: int, alpha: float, seed: int) -> list[NDArray[np.int64]]:
    """Row numbers of each part with label skew: each class is shared out in proportions Dir(alpha, ..., alpha).

    Small ``alpha`` gives each part few classes, large ``alpha`` an even split (Hsu et al., arXiv 1909.06335). A part
    left empty takes one row from the largest.

    Raises ConfigError for alpha <= 0, or more parts than rows.
    """
    _check(labels, parts)
    if not alpha > 0:
        raise ConfigError(f"alpha = {alpha}, must be above 0")
    rng = np.random.default_rng(seed)
    shares: list[list[NDArray[np.int64]]] = [[] for _ in range(parts)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label)).astype(np.int64)
        cuts = (np.cumsum(rng.dirichlet(np.full(parts, alpha)))[:-1] * len(rows)).astype(np.int64)
        for part, piece in enumerate(np.split(rows, cuts)):
            shares[part].append(piece)
    split = [np.sort(np.concatenate(pieces)) for pieces in shares]
    for part in range(parts):
        if not len(split[part]):
            largest = max(range(parts), key=lambda other: len(split[other]))
            split[part], split[largest] = split[largest][:1], split[largest][1:]
    return split


def _check(labels: NDArray[np.int64], parts: int) -> None:
    if not 1 <= parts <= len(labels):
        raise ConfigError(f"{len(labels)} rows cannot be split into {parts} parts with at least one row each")
