"""Labelled rows, checked before anything is made of them; and the public practice set as bytes.

An ``.npz`` file with x and y holds features; other files have a descriptor whose recipe makes them (docs/mining.md).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.errors import MalformedError
from core.verification.quantise import quantise_features
from core.verification.scored_model import FEATURE_BOUND
from core.verification.test_set import TestSet
from services.data.arrays import finite_rows, read_arrays, whole_labels
from services.data.loading import is_described
from services.data.loading import load_rows as load_described
from services.data.recipe import Recipe
from services.data.stored import public_arrays, recipe_in

__all__ = [
    "CARRIED", "Rows", "clamped_features", "feature_scale_of", "load_rows", "practice_bytes", "scale_of", "scored_test_set",
]  # fmt: skip

MAX_BYTES: Final = 2 << 30
MOST_LABELS: Final = 65_535
MILLION: Final = 1_000_000
CARRIED: Final = ("recipe", "pca_mean", "pca_matrix")
"""Arrays of an ``.npz`` that say how its features were made (services.data.stored)."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """``x`` float64 of shape (n, M), finite; ``y`` int64 of shape (n,), not negative. ``source``: for messages."""

    source: str
    x: NDArray[np.float64]
    y: NDArray[np.int64]
    declared: int = 0
    """Classes that the recipe names; 0: the labels say how many."""
    scale_micro: int = 0
    """Feature scale that the recipe names; 0: it follows from the rows."""
    recipe: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    """What the practice set carries along of how its features were made."""

    @property
    def features(self) -> int:
        return int(self.x.shape[1])

    @property
    def classes(self) -> int:
        """Labels are 0 to this less 1."""
        return self.declared or int(self.y.max()) + 1


def load_rows(path: Path) -> Rows:
    """``x`` (n, M) and ``y`` (n,) of an ``.npz`` file, or the rows of a descriptor; nothing is unpickled.

    Raises:
        NotFoundError, LimitError, MalformedError: one sentence with the file, and the row where there is one.
    """
    if is_described(path):
        made = load_described(path)
        if made.y.dtype.kind == "f":
            raise MalformedError(f"{path}: its targets are real: give the task cut points or a number of buckets")
        public = public_arrays(made.recipe, made.projection)
        return Rows(str(path), made.x.astype(np.float64), made.y.astype(np.int64), made.classes, scale_of(made.recipe), public)
    arrays = read_arrays(path, "x", "y", optional=CARRIED, limit=MAX_BYTES)
    x, y = arrays.pop("x"), arrays.pop("y")
    rows = _checked(str(path), x, y)
    stored = recipe_in(path) if "recipe" in arrays else None
    return rows if stored is None else replace(rows, declared=stored[0].classes, scale_micro=scale_of(stored[0]), recipe=arrays)


def scale_of(recipe: Recipe | None) -> int:
    """The feature scale that a recipe names, in millionths; 0: none."""
    return recipe.feature_scale_micro if recipe is not None else 0


def _checked(source: str, x: NDArray[np.generic], y: NDArray[np.generic]) -> Rows:
    floats = finite_rows(source, x, np.float64)
    if not floats.size:
        raise MalformedError(f"{source}: x is empty, its shape is {x.shape}")
    labels = whole_labels(source, y, MOST_LABELS)
    if len(floats) != len(labels):
        raise MalformedError(f"{source}: x has {len(floats)} rows, y has {len(labels)} labels")
    return Rows(source, floats, labels)


def feature_scale_of(practice: Rows) -> int:
    """In millionths: the recipe's, or the one that brings the largest practice feature to 127. Public either way."""
    if practice.scale_micro:
        return practice.scale_micro
    largest = float(np.abs(practice.x).max())
    if not largest > 0:
        raise MalformedError(f"{practice.source}: every feature is 0: no scale follows from that")
    return max(1, round(FEATURE_BOUND / largest * MILLION))


def scored_test_set(rows: Rows, classes: int, feature_scale_micro: int) -> TestSet:
    """The int8 test set that models are scored on."""
    return TestSet(quantise_features(rows.x, feature_scale_micro / MILLION), rows.y, classes)


def clamped_features(rows: Rows, feature_scale_micro: int) -> int:
    """How many features lie beyond [-127, 127] at this scale and are clamped."""
    return int(np.count_nonzero(np.abs(np.rint(rows.x * (feature_scale_micro / MILLION))) > FEATURE_BOUND))


def practice_bytes(practice: Rows) -> bytes:
    """The blob that pools read: ``.npz`` with x float32 and y int64, no pickle in it, and the recipe if there is one.

    So the task names its preprocessing: by the digest of this blob.
    """
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, x=practice.x.astype(np.float32), y=practice.y, **practice.recipe)
    return out.getvalue()
