"""Files that somebody else made, read within bounds: plain or gzip, never more than was allowed, whatever they claim."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from core.errors import LimitError, MalformedError, NotFoundError

__all__ = ["MAX_BYTES", "MAX_CELL", "MAX_KEY", "MAX_LINE", "MAX_ROWS", "Lines", "check_size", "opened", "read_exactly"]

MAX_BYTES: Final = 4 << 30
"""Of one data set, unpacked; and of its features in memory."""
MAX_ROWS: Final = 1 << 24
MAX_LINE: Final = 1 << 20
"""Bytes of a line of text, and characters of a row in quotes over many lines."""
MAX_CELL: Final = 1 << 17
"""Characters of a cell of a table."""
MAX_KEY: Final = 256
"""Characters of a row's natural key."""
STEP: Final = 1 << 20


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, unpacked if its name ends in .gz. Raises NotFoundError, MalformedError naming the file."""
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise MalformedError(f"{path}: not a whole gzip file: {error}") from None
    except OSError as error:
        raise MalformedError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_exactly(file: IO[bytes], size: int, path: Path, what: str) -> bytes:
    """``size`` bytes, taken as they come: a file that only claims to be large costs no memory. Raises MalformedError."""
    data = bytearray()
    while len(data) < size:
        part = file.read(min(STEP, size - len(data)))
        if not part:
            raise MalformedError(f"{path}: {what} should be {size} bytes, the file ends after {len(data)}", size=len(data))
        data += part
    return bytes(data)


def check_size(path: Path, rows: int, row_bytes: int) -> None:
    """Raises LimitError before anything of that size is made."""
    if rows > MAX_ROWS or rows * row_bytes > MAX_BYTES:
        raise LimitError(
            f"{path}: {rows} rows of {row_bytes} bytes; at most {MAX_ROWS} rows and {MAX_BYTES} bytes are read", rows=rows
        )


class Lines:
    """Lines of UTF-8 text, ended by ``\\n`` alone, without their end. ``number`` is the last one's, from 1.

    Raises LimitError (a line, or all of them, too long), MalformedError (not UTF-8, a zero byte).
    """

    def __init__(self, file: IO[bytes], path: Path, limit: int = MAX_BYTES) -> None:
        self._file = file
        self._path = path
        self._left = limit
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_LINE + 1):
            self.number += 1
            self._left -= len(line)
            if len(line) > MAX_LINE:
                raise LimitError(f"{self._path}: line {self.number} is longer than {MAX_LINE} bytes", line=self.number)
            if self._left < 0:
                raise LimitError(f"{self._path}: more than {MAX_BYTES} bytes unpacked", line=self.number)
            if b"\0" in line:
                raise MalformedError(f"{self._path}: line {self.number} has a zero byte: this is no text", line=self.number)
            try:
                text = line.decode("utf-8-sig" if self.number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise MalformedError(
                    f"{self._path}: line {self.number}, byte {error.start + 1}: not UTF-8 text", line=self.number
                ) from None
            yield text.removesuffix("\n").removesuffix("\r")
