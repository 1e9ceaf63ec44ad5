"""Labelled rows from ``.npz`` files, checked before anything is made of them; and the public practice set as bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.errors import MalformedError, NotFoundError
from core.verification.quantise import quantise_features
from core.verification.scored_model import FEATURE_BOUND
from core.verification.test_set import TestSet
from services.runtime.npz import UNREADABLE, check_archive

__all__ = ["Rows", "clamped_features", "feature_scale_of", "load_rows", "practice_bytes", "scored_test_set"]

MAX_BYTES: Final = 2 << 30
MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """``x`` float64 of shape (n, M), finite; ``y`` int64 of shape (n,), not negative. ``source``: for messages."""

    source: str
    x: NDArray[np.float64]
    y: NDArray[np.int64]

    @property
    def features(self) -> int:
        return int(self.x.shape[1])

    @property
    def classes(self) -> int:
        """Labels are 0 to this less 1."""
        return int(self.y.max()) + 1


def load_rows(path: Path) -> Rows:
    """``x`` (n, M) and ``y`` (n,) of an ``.npz`` file; nothing in it is unpickled.

    Raises:
        NotFoundError, LimitError, MalformedError: one sentence with the file, and the row where there is one.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file; it must be an .npz file with the arrays x and y")
    try:
        check_archive(path, MAX_BYTES)
        with np.load(path, allow_pickle=False) as arrays:
            if missing := sorted({"x", "y"} - set(arrays.files)):
                raise MalformedError(f"{path}: it holds {sorted(arrays.files)}, but no array {' and '.join(missing)}")
            x, y = arrays["x"], arrays["y"]
    except UNREADABLE as error:
        raise MalformedError(f"{path}: not an .npz file of plain arrays ({error})") from None
    return _checked(str(path), x, y)


def _checked(source: str, x: NDArray[np.generic], y: NDArray[np.generic]) -> Rows:
    if x.dtype.kind not in "fiub" or x.ndim != 2:
        raise MalformedError(f"{source}: x must be numbers of shape (rows, features), it is {x.dtype} of {x.shape}")
    if y.dtype.kind not in "fiu" or y.ndim != 1:
        raise MalformedError(f"{source}: y must be whole numbers of shape (rows,), it is {y.dtype} of {y.shape}")
    if len(x) != len(y):
        raise MalformedError(f"{source}: x has {len(x)} rows, y has {len(y)} labels")
    if not x.size:
        raise MalformedError(f"{source}: x is empty, its shape is {x.shape}")
    floats = x.astype(np.float64)
    if (bad := ~np.isfinite(floats)).any():
        row, column = map(int, np.argwhere(bad)[0])
        raise MalformedError(f"{source}: row {row}: feature {column} is {floats[row, column]}, not a finite number", row=row)
    labels = y.astype(np.float64)
    wrong = ~np.isfinite(labels) | (labels != np.floor(labels)) | (labels < 0) | (labels > 65534)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise MalformedError(f"{source}: row {row}: label {y[row]} is not a whole number from 0 to 65534", row=row)
    return Rows(source, floats, labels.astype(np.int64))


def feature_scale_of(practice: Rows) -> int:
    """In millionths: the scale that brings the largest practice feature to 127. A function of public rows only."""
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
    """The blob that pools read: ``.npz`` with x float32 and y int64, no pickle in it."""
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, x=practice.x.astype(np.float32), y=practice.y)
    return out.getvalue()
