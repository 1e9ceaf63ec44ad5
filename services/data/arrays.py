"""Arrays of an ``.npz`` file: the one place that reads rows which somebody else made. Nothing is unpickled, sizes are checked
before numpy makes room, and what is no number is named with its file and row.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from core.errors import MalformedError, NotFoundError
from services.data.limits import MAX_BYTES, check_size
from services.runtime.npz import UNREADABLE, check_archive

__all__ = ["finite_rows", "read_arrays", "read_npz", "whole_labels"]

ARCHIVE: Final = b"PK\x03\x04"
"""What an .npz, a zip archive, begins with."""
Real = TypeVar("Real", np.float32, np.float64)


def read_arrays(
    path: Path, *names: str, optional: Sequence[str] = (), limit: int | None = None
) -> dict[str, NDArray[np.generic]]:
    """The named arrays of a file, and of the optional ones those that it has, whatever their types and shapes.

    ``limit``: bytes unpacked, MAX_BYTES if it is not given. Raises NotFoundError, LimitError, MalformedError, naming the file.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file; it must be an .npz file with the arrays {' and '.join(names)}")
    try:
        check_archive(path, MAX_BYTES if limit is None else limit)
        with np.load(path, allow_pickle=False) as arrays:
            if missing := [name for name in names if name not in arrays.files]:
                raise MalformedError(f"{path}: no array {missing[0]!r}; it holds {sorted(arrays.files)}")
            return {name: _plain(arrays, name) for name in (*names, *optional) if name in arrays.files}
    except UNREADABLE as error:
        raise MalformedError(f"{path}: not an .npz file of plain arrays: {_reason(path, error):.300}") from None


def _plain(arrays: Mapping[str, NDArray[np.generic]], name: str) -> NDArray[np.generic]:
    """Raises MalformedError for an array of Python objects: numpy's own advice is to unpickle them."""
    try:
        return arrays[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        wanted = "labels as whole numbers" if name == "y" else "rows as numbers" if name == "x" else "numbers or texts"
        raise ValueError(f"{name} holds Python objects: save {wanted}") from None


def _reason(path: Path, error: Exception) -> str:
    """Why a file is no archive of arrays, in words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, zipfile.BadZipFile | zlib.error | EOFError):
        # The list of what an archive holds is at its end.
        with path.open("rb") as file:
            begins = file.read(len(ARCHIVE)) == ARCHIVE
        return f"damaged or cut off ({error})" if begins else f"no archive ({error})"
    return str(error)


def read_npz(path: Path, *names: str) -> tuple[NDArray[np.generic], ...]:
    """Arrays with one entry a row. Raises NotFoundError, LimitError, MalformedError, naming the file."""
    found = tuple(read_arrays(path, *names).values())
    for name, values in zip(names, found, strict=True):
        if not values.ndim or len(values) != len(found[0]):
            raise MalformedError(f"{path}: {name} is of shape {values.shape}, {names[0]} of {found[0].shape}: one entry a row")
        check_size(path, len(values), values.nbytes // max(1, len(values)))
    return found


def finite_rows(source: Path | str, x: NDArray[np.generic], kind: type[Real]) -> NDArray[Real]:
    """Features of any numeric type as floats. Raises MalformedError that names shape, or row and feature, at fault."""
    if x.dtype.kind not in "fiub" or x.ndim != 2:
        raise MalformedError(f"{source}: x must be numbers of shape (rows, features), it is {x.dtype} of {x.shape}")
    with np.errstate(over="ignore"):
        floats: NDArray[Real] = np.ascontiguousarray(x, dtype=kind)
    if (bad := ~np.isfinite(floats)).any():
        row, column = map(int, np.argwhere(bad)[0])
        raise MalformedError(
            f"{source}: row {row}, feature {column}: {x[row, column]} is not a finite number of {np.dtype(kind).name}", row=row
        )
    return floats


def whole_labels(source: Path | str, y: NDArray[np.generic], classes: int | None) -> NDArray[np.int64]:
    """Labels 0 to classes - 1 of any numeric type, without classes 0 or more. Raises MalformedError with the row."""
    if y.dtype.kind not in "fiub" or y.ndim != 1 or not len(y):
        raise MalformedError(f"{source}: labels must be whole numbers, one a row; they are {y.dtype} of {y.shape}")
    floats = y.astype(np.float64)
    most = float(1 << 53) if classes is None else classes - 1
    wrong = np.flatnonzero(~((floats >= 0) & (floats <= most) & (floats == np.floor(floats))))
    if wrong.size:
        row = int(wrong[0])
        limits = "from 0" if classes is None else f"from 0 to {classes - 1}"
        raise MalformedError(f"{source}: row {row}: label {y[row]}, labels are whole numbers {limits}", row=row)
    return y.astype(np.int64)
