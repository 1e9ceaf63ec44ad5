"""Archives of arrays (.npz) that somebody else made: what to check before numpy reads one, and what reading one may raise."""

from __future__ import annotations

import lzma
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Final

from numpy.lib import format as npy

from core.errors import LimitError, MalformedError

__all__ = ["UNREADABLE", "check_archive"]

UNREADABLE: Final = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, OSError, EOFError, KeyError, RuntimeError, MemoryError,
    OverflowError, tokenize.TokenError,
)  # fmt: skip
"""What reading an archive that somebody made to do harm raises: besides a broken one, encryption, an unknown compression,
an array said to be larger than memory, a header that its parser does not get through."""


def check_archive(path: Path, limit: int) -> None:
    """Checks the size of what is inside, as the archive and as each array states it, before numpy makes room for it.

    Raises:
        LimitError: more than ``limit`` bytes.
        MalformedError: an array's stated shape and its bytes differ.
        one of UNREADABLE: not an archive of arrays.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > limit:
            raise LimitError(f"{path}: {unpacked} bytes unpacked, at most {limit}", size=unpacked)
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                continue
            with archive.open(entry) as file:
                read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(file)
                wanted = file.tell() + math.prod(shape) * dtype.itemsize
            if not dtype.hasobject and wanted != entry.file_size:
                raise MalformedError(
                    f"{path}: not an .npz file of plain arrays: {entry.filename} says {dtype} of {shape}, {wanted} bytes with "
                    f"its header, and has {entry.file_size}"
                )
