"""Random small models, features and labels, from a seed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from core.chain.transaction import Activation
from core.verification.scored_model import Features, Labels, ModelShape, ScoredModel


def random_model(dims: tuple[int, ...], activation: Activation, seed: int, shift: int = 6, bits: int = 10) -> ScoredModel:
    rng = np.random.default_rng(seed)
    bound = (1 << (bits - 1)) - 1
    pairs = list(pairwise(dims))
    return ScoredModel(
        ModelShape(dims, activation, bits, (shift,) * (len(dims) - 2)),
        tuple(rng.integers(-bound, bound, (r, c), endpoint=True) for r, c in pairs),
        tuple(rng.integers(-5000, 5000, c) for _, c in pairs),
    )


def random_features(rows: int, width: int, seed: int) -> Features:
    return np.random.default_rng(seed).integers(-127, 127, (rows, width), dtype=np.int8, endpoint=True)


def random_labels(rows: int, classes: int, seed: int) -> Labels:
    return np.random.default_rng(seed).integers(0, classes, rows)
