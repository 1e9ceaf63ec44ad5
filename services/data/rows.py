"""Rows that can be learnt from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.data.recipe import Recipe
from services.data.transform import Projection

__all__ = ["Rows"]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """``x`` float32 (n, M), finite; ``y`` int64 (n), 0 <= y < classes, or with ``classes`` 0 float64: real targets.

    ``keys``: the natural key of each row, or none.
    """

    source: str
    name: str
    x: NDArray[np.float32]
    y: NDArray[np.int64] | NDArray[np.float64]
    classes: int
    keys: NDArray[np.str_] | None = None
    recipe: Recipe | None = None
    projection: Projection | None = None
    digest: bytes = b""
    """SHA-256 of the features in whole millionths and of the labels: equal wherever the same rows are read."""

    def __len__(self) -> int:
        return len(self.y)

    @property
    def features(self) -> int:
        return int(self.x.shape[1])

    def take(self, chosen: NDArray[np.int64]) -> Rows:
        """Some of the rows, without a digest."""
        keys = None if self.keys is None else self.keys[chosen]
        return Rows(self.source, self.name, self.x[chosen], self.y[chosen], self.classes, keys, self.recipe, self.projection)
