"""Labelled rows from ``.npz`` files, checked before anything trains on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import MalformedError, NotFoundError
from services.runtime.npz import UNREADABLE, check_archive

__all__ = ["Dataset", "checked", "load_npz", "read_npz", "save_npz"]

MAX_BYTES = 4 << 30


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
    if rows.dtype.kind not in "fiub" or rows.ndim != 2:
        raise MalformedError(f"{name}: x must be numbers of shape (rows, features), got {rows.dtype} {rows.shape}")
    if labels.dtype.kind not in "fiub" or labels.ndim != 1:
        raise MalformedError(f"{name}: y must be numbers of shape (rows), got {labels.dtype} {labels.shape}")
    if len(rows) != len(labels):
        raise MalformedError(f"{name}: {len(rows)} rows of x but {len(labels)} labels in y")
    if not len(rows):
        raise MalformedError(f"{name}: no rows")
    if features is not None and rows.shape[1] != features:
        raise MalformedError(f"{name}: {rows.shape[1]} features a row, the task has {features}")
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(rows, dtype=np.float32)
    bad = ~np.isfinite(floats)
    if bad.any():
        row, column = map(int, np.argwhere(bad)[0])
        raise MalformedError(f"{name}: x[{row}, {column}] = {rows[row, column]} is not a finite float32")
    if labels.dtype.kind == "f" and (wrong := ~np.isfinite(labels) | (labels != np.floor(labels))).any():
        row = int(np.flatnonzero(wrong)[0])
        raise MalformedError(f"{name}: y[{row}] = {labels[row]} is not a whole number")
    whole = labels.astype(np.int64)
    outside = (whole < 0) | (whole >= classes if classes is not None else False)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        limit = f"0 to {classes - 1}" if classes is not None else "0 or more"
        raise MalformedError(f"{name}: y[{row}] = {whole[row]}, labels are {limit}")
    return Dataset(floats, whole)


def load_npz(path: Path, *, features: int | None = None, classes: int | None = None) -> Dataset:
    """Rows ``x`` and labels ``y`` of an ``.npz`` file; nothing in it is unpickled.

    Raises NotFoundError, LimitError (larger than MAX_BYTES when unpacked) or MalformedError, naming the file.
    """
    return checked(*read_npz(path), name=str(path), features=features, classes=classes)


def read_npz(path: Path) -> tuple[object, object]:
    """The arrays ``x`` and ``y`` of an ``.npz`` file, of whatever type and shape they are. Raises as load_npz."""
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file; it should hold the arrays x and y")
    try:
        check_archive(path, MAX_BYTES)
        with np.load(path, allow_pickle=False) as arrays:
            missing = {"x", "y"} - set(arrays.files)
            if missing:
                raise MalformedError(f"{path}: no array {sorted(missing)}; it holds {sorted(arrays.files)}")
            return arrays["x"], arrays["y"]
    except UNREADABLE as error:
        raise MalformedError(f"{path}: not an .npz file of plain arrays: {error}") from None


def save_npz(path: Path, data: Dataset) -> None:
    """Write ``data`` so that a reader sees the old file or the whole new one."""
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        np.savez(file, x=data.x, y=data.y)
    partial.replace(path)
