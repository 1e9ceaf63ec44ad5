"""The embedded default data: scikit-learn's bundled handwritten digits, split once by a fixed seed.

1,797 real 8x8 images of 10 classes (UCI "Optical Recognition of Handwritten Digits"). The requester keeps a secret test
set; a practice set is public; every miner has a share of its own; the rest only the provider has.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError

__all__ = ["CLASSES", "FEATURES", "FEATURE_SCALE_MICRO", "SEED", "DigitSplit", "split_digits"]

SEED: Final = 20200224
FEATURES: Final = 64
CLASSES: Final = 10
FEATURE_SCALE_MICRO: Final = 127_000_000
"""Features are pixels in [0, 1]; the scored int8 feature is round(127 x)."""
TEST_ROWS: Final = 400
PRACTICE_ROWS: Final = 200
PROVIDER_ROWS: Final = 300

Rows = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class DigitSplit:
    """Disjoint rows: x float32 (n, 64) in [0, 1], y int64 (n,) in 0..9."""

    test: Rows
    practice: Rows
    provider: Rows
    miners: tuple[Rows, ...]

    def write(self, paths: Mapping[str, Path], miners: list[Path]) -> None:
        """Write ``test``, ``practice``, ``provider`` and one npz a miner."""
        for name, rows in (("test", self.test), ("practice", self.practice), ("provider", self.provider)):
            _save(paths[name], rows)
        for path, rows in zip(miners, self.miners, strict=True):
            _save(path, rows)


def split_digits(miners: int) -> DigitSplit:
    """The same split on every machine. Raises ConfigError if scikit-learn is missing or there are too many miners."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("the default data needs scikit-learn: pip install 'pofl[data]'") from None
    digits = load_digits()
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(len(digits.target))
    x = (digits.data[order] / 16.0).astype(np.float32)
    y = digits.target[order].astype(np.int64)
    reserved = TEST_ROWS + PRACTICE_ROWS + PROVIDER_ROWS
    share, rest = divmod(len(y) - reserved, miners)
    if share < CLASSES:
        raise ConfigError(f"{len(y) - reserved} rows are left for {miners} miners: at most {(len(y) - reserved) // CLASSES}")
    sizes = [TEST_ROWS, PRACTICE_ROWS, PROVIDER_ROWS] + [share + (i < rest) for i in range(miners)]
    edges = itertools.accumulate([0, *sizes])
    parts = [(x[a:b], y[a:b]) for a, b in itertools.pairwise(edges)]
    return DigitSplit(parts[0], parts[1], parts[2], tuple(parts[3:]))


def _save(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, x=rows[0], y=rows[1])
