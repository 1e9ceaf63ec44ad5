"""Labelled rows from ``.npz`` files, checked before anything trains on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import MalformedError
from services.data.arrays import finite_rows, read_arrays, whole_labels
from services.runtime.durable import replaced

__all__ = ["Dataset", "checked", "load_npz", "read_npz", "save_npz"]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """``x`` float32 of shape (n, features); ``y`` int64 of shape (n), 0 <= y < classes."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> Dataset:
        return Dataset(self.x[rows], self.y[rows])


def checked(x: object, y: object, *, name: str, features: int | None = None, classes: int | None = None) -> Dataset:
    """A Dataset from two arrays of any numeric type.

    Raises MalformedError that names ``name`` and the first row at fault: shape, length, a value that is not finite,
    a label outside 0 to classes - 1 or not whole.
    """
    rows, labels = np.asarray(x), np.asarray(y)
    if labels.dtype.kind not in "fiub" or labels.ndim != 1:
        raise MalformedError(f"{name}: y must be numbers of shape (rows), got {labels.dtype} {labels.shape}")
    floats = finite_rows(name, rows, np.float32)
    if len(rows) != len(labels):
        raise MalformedError(f"{name}: {len(rows)} rows of x but {len(labels)} labels in y")
    if not len(rows):
        raise MalformedError(f"{name}: no rows")
    if features is not None and rows.shape[1] != features:
        raise MalformedError(f"{name}: {rows.shape[1]} features a row, the task has {features}")
    return Dataset(floats, whole_labels(name, labels, classes))


def load_npz(path: Path, *, features: int | None = None, classes: int | None = None) -> Dataset:
    """Rows ``x`` and labels ``y`` of an ``.npz`` file; nothing in it is unpickled.

    Raises NotFoundError, LimitError (larger than services.data.limits.MAX_BYTES unpacked) or MalformedError, naming the file.
    """
    return checked(*read_npz(path), name=str(path), features=features, classes=classes)


def read_npz(path: Path) -> tuple[object, object]:
    """The arrays ``x`` and ``y`` of an ``.npz`` file, of whatever type and shape they are. Raises as load_npz."""
    arrays = read_arrays(path, "x", "y")
    return arrays["x"], arrays["y"]


def save_npz(path: Path, data: Dataset) -> None:
    """Write ``data`` so that a reader sees the old file or the whole new one."""
    with replaced(path) as file:
        np.savez(file, x=data.x, y=data.y)
