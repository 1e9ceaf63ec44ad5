"""How a data set is split among miners: evenly, with Dirichlet label skew, or by a natural key. Seeded, every row used once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError

__all__ = ["by_key", "dirichlet", "even", "split"]

Ints = NDArray[np.int64]


def split(rule: str, labels: NDArray[np.generic], keys: NDArray[np.str_] | None, parts: int, seed: int) -> list[Ints]:
    """Row numbers of each part by a rule as it is written on a command line: ``even``, ``dirichlet:ALPHA``, ``key``.

    Raises ConfigError for another rule, for ``key`` without keys, and whatever the partitioner refuses.
    """
    name, colon, argument = rule.partition(":")
    if name == "even" and not colon:
        return even(np.zeros(len(labels), np.int64), parts, seed)
    if name == "dirichlet":
        if labels.dtype.kind == "f":
            raise ConfigError("real targets have no classes to skew: split evenly, or by key")
        try:
            alpha = float(argument)
        except ValueError:
            raise ConfigError(f"{rule!r}: dirichlet needs a number, for example dirichlet:0.5") from None
        return dirichlet(labels.astype(np.int64), parts, alpha, seed)
    if name == "key" and not colon:
        if keys is None:
            raise ConfigError("the data have no natural key: name its column with key in the descriptor")
        return by_key(keys, parts, seed)
    raise ConfigError(f"{rule!r} is no way to split: it must be even, dirichlet:ALPHA or key")


def even(labels: Ints, parts: int, seed: int) -> list[Ints]:
    """Row numbers of each part: a random split into sizes that differ by one at most."""
    _check(labels, parts)
    order = np.random.default_rng(seed).permutation(len(labels)).astype(np.int64)
    return [np.sort(rows) for rows in np.array_split(order, parts)]


def dirichlet(labels: Ints, parts: int, alpha: float, seed: int) -> list[Ints]:
    """Row numbers of each part with label skew: each class is shared out in proportions Dir(alpha, ..., alpha).

    Small ``alpha`` gives each part few classes, large ``alpha`` an even split (Hsu et al., arXiv 1909.06335). A part
    left empty takes one row from the largest.

    Raises ConfigError for alpha <= 0, or more parts than rows.
    """
    _check(labels, parts)
    if not alpha > 0:
        raise ConfigError(f"alpha = {alpha}, must be above 0")
    rng = np.random.default_rng(seed)
    shares: list[list[Ints]] = [[] for _ in range(parts)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label)).astype(np.int64)
        cuts = (np.cumsum(rng.dirichlet(np.full(parts, alpha)))[:-1] * len(rows)).astype(np.int64)
        for part, piece in enumerate(np.split(rows, cuts)):
            shares[part].append(piece)
    made = [np.sort(np.concatenate(pieces)) for pieces in shares]
    for part in range(parts):
        if not len(made[part]):
            largest = max(range(parts), key=lambda other: len(made[other]))
            made[part], made[largest] = made[largest][:1], made[largest][1:]
    return made


def by_key(keys: NDArray[np.str_], parts: int, seed: int) -> list[Ints]:
    """Row numbers of each part: all rows of one key (a subject, a speaker, a hospital) lie in one part.

    The largest key goes first, each to the part with the fewest rows yet; the seed decides between equals.

    Raises ConfigError for more parts than keys.
    """
    names, of_row, counts = np.unique(keys, return_inverse=True, return_counts=True)
    if not 1 <= parts <= len(names):
        raise ConfigError(f"{len(names)} keys cannot be split into {parts} parts with at least one key each")
    shuffled = np.random.default_rng(seed).permutation(len(names))
    held = np.zeros(parts, dtype=np.int64)
    part_of = np.empty(len(names), dtype=np.int64)
    for key in sorted(shuffled.tolist(), key=lambda k: -int(counts[k])):
        part = int(held.argmin())
        part_of[key] = part
        held[part] += counts[key]
    owners = part_of[of_row.ravel()]
    return [np.flatnonzero(owners == part).astype(np.int64) for part in range(parts)]


def _check(labels: Ints, parts: int) -> None:
    if not 1 <= parts <= len(labels):
        raise ConfigError(f"{len(labels)} rows cannot be split into {parts} parts with at least one row each")
