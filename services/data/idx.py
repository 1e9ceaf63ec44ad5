"""idx files, the form of MNIST and its family: a magic number, sizes, then bytes (also .gz)."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.errors import MalformedError
from services.data.limits import check_size, opened, read_exactly

__all__ = ["read_idx"]

UNSIGNED_BYTE: Final = 0x08
TYPES: Final = {0x08: "bytes", 0x09: "signed bytes", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}


def read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes in a file, of ``dims`` dimensions. Raises NotFoundError, MalformedError, LimitError.

    Sizes are compared with the limits before anything is read, and with the file's length after.
    """
    with opened(path) as file:
        zero, kind, count = struct.unpack(">HBB", read_exactly(file, 4, path, "the magic number"))
        if zero or kind not in TYPES:
            raise MalformedError(f"{path}: not an idx file: its magic number is {zero:04x}{kind:02x}{count:02x}")
        if kind != UNSIGNED_BYTE:
            raise MalformedError(f"{path}: an idx file of {TYPES[kind]}, only unsigned bytes are read")
        if count != dims:
            raise MalformedError(f"{path}: an idx file of {count} dimensions, {dims} are needed")
        shape = struct.unpack(f">{dims}I", read_exactly(file, 4 * dims, path, "the sizes"))
        check_size(path, shape[0], math.prod(shape[1:]))
        data = read_exactly(file, math.prod(shape), path, f"an array of {'x'.join(map(str, shape))}")
        if file.read(1):
            raise MalformedError(f"{path}: bytes follow its {'x'.join(map(str, shape))} values")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
