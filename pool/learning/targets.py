"""Real targets of a regression: rows with them, the unit they are learned in, and the buckets they are counted by.

A pool learns ``(y - shift) / scale``, so that one step length suits targets of any size; both numbers come from the public
practice set and travel with each instruction. Which bucket a value is in is the task's matter (docs/adr/0065, 0090).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, MalformedError
from pool.learning.datasets import checked, read_npz
from pool.learning.model_spec import Weights

__all__ = ["TargetRows", "Targets", "checked_targets", "load_targets"]

MAX_TARGET = 1e30
"""Magnitude beyond which float32 training has no room left."""


@dataclass(frozen=True, slots=True, eq=False)
class TargetRows:
    """``x`` float32 of shape (n, features); ``y`` float64 of shape (n), finite."""

    x: NDArray[np.float32]
    y: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True)
class Targets:
    """``cuts``: between the buckets, rising, in the targets' own unit; none where only the error counts.

    Raises ConfigError for numbers that are not finite, a scale that is not above 0, or cuts that do not rise.
    """

    shift: float = 0.0
    scale: float = 1.0
    cuts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("shift", self.shift), ("scale", self.scale), *(("a cut", cut) for cut in self.cuts)):
            if not (math.isfinite(value) and abs(value) <= MAX_TARGET):
                raise ConfigError(f"{name} of the targets is {value}, must be finite and at most {MAX_TARGET:g}")
        if self.scale < 1 / MAX_TARGET:
            raise ConfigError(f"scale of the targets is {self.scale}, must be above 0")
        if any(second <= first for first, second in pairwise(self.cuts)):
            raise ConfigError(f"cuts of the targets must rise, got {list(self.cuts)[:20]}")

    @classmethod
    def of(cls, y: NDArray[np.float64], cuts: tuple[float, ...]) -> Targets:
        """Mean and standard deviation of public targets as shift and scale."""
        spread = float(np.std(y))
        return cls(float(np.mean(y)), spread if spread > 1 / MAX_TARGET else 1.0, cuts)

    def learned(self, y: NDArray[np.float64]) -> NDArray[np.float32]:
        """What the network is to give for targets ``y``."""
        return ((y - self.shift) / self.scale).astype(np.float32)

    def unscaled(self, weights: Weights) -> Weights:
        """The network whose output is in the targets' own unit: only the last layer changes."""
        *first, (W, b) = weights
        # In float64: a target far from 0 leaves float32 few digits for what distinguishes rows.
        return (*first, (W.astype(np.float64) * self.scale, b.astype(np.float64) * self.scale + self.shift))


def checked_targets(x: object, y: object, *, name: str, features: int | None = None) -> TargetRows:
    """Rows with real targets from two arrays of any numeric type. Raises MalformedError that names the first row at fault."""
    targets = np.asarray(y)
    if targets.dtype.kind not in "fiub" or targets.ndim != 1:
        raise MalformedError(f"{name}: y must be numbers of shape (rows), got {targets.dtype} {targets.shape}")
    values = targets.astype(np.float64)
    bad = ~(np.abs(values) <= MAX_TARGET)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise MalformedError(f"{name}: y[{row}] = {targets[row]} is not a finite number of at most {MAX_TARGET:g}")
    return TargetRows(checked(x, np.zeros(len(values), np.int64), name=name, features=features).x, values)


def load_targets(path: Path, *, features: int | None = None) -> TargetRows:
    """Rows ``x`` and targets ``y`` of an ``.npz`` file. Raises NotFoundError, LimitError or MalformedError, naming the file."""
    return checked_targets(*read_npz(path), name=str(path), features=features)
