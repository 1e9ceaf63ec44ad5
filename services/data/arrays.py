"""Arrays of an ``.npz`` file as raw rows; nothing in it is unpickled, and sizes are checked before numpy makes room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import MalformedError, NotFoundError
from services.data.limits import MAX_BYTES, check_size
from services.runtime.npz import UNREADABLE, check_archive

__all__ = ["read_npz"]


def read_npz(path: Path, *names: str) -> tuple[NDArray[np.generic], ...]:
    """The named arrays of a file. Raises NotFoundError, LimitError, MalformedError, naming the file."""
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    try:
        check_archive(path, MAX_BYTES)
        with np.load(path, allow_pickle=False) as arrays:
            if missing := [name for name in names if name not in arrays.files]:
                raise MalformedError(f"{path}: no array {missing[0]!r}; it holds {sorted(arrays.files)}")
            found = tuple(arrays[name] for name in names)
    except UNREADABLE as error:
        raise MalformedError(f"{path}: not an .npz file of plain arrays: {error}") from None
    for name, values in zip(names, found, strict=True):
        if not values.ndim or len(values) != len(found[0]):
            raise MalformedError(f"{path}: {name} is of shape {values.shape}, {names[0]} of {found[0].shape}: one entry a row")
        check_size(path, len(values), values.nbytes // max(1, len(values)))
    return found
