"""A file that only grows: records that are on the disk when ``append`` returns, and are found again after a kill -9.

::

    file   = "POFLJNL1" record*
    record = length (4 bytes) ‖ first 8 bytes of SHA-256(length ‖ data) ‖ data

A kill may leave part of the last batch behind: what does not check at the end is cut off. What does not check and is
followed by a record that does was damaged later, and is an error. A record's length may be what is damaged, so the last
record is looked for from the end: it ends where the file does.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np

from core.errors import CorruptError, LimitError, StorageError, StorageFullError
from services.runtime.durable import sync_folder

__all__ = ["Journal", "read_journal"]

MAGIC: Final = b"POFLJNL1"
HEADER: Final = 12
MAX_RECORD: Final = 4 << 20
MAX_FILE: Final = 4 << 30
MOST_TRIED: Final = 64


class Journal:
    """One process writes a journal at a time; others may read it meanwhile. Safe to append to from several threads."""

    def __init__(self, path: Path) -> None:
        """Opens the file or makes it (0600); ``found`` holds the records that were in it.

        Raises CorruptError naming file and byte, StorageFullError, StorageError.
        """
        self.path = path
        self._lock = threading.Lock()
        self._failed = ""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise _storage_error(path, error) from error
        try:
            self.found, self._size = _parse(path, _read(path))
            # A file without its first eight bytes was killed in the making.
            os.ftruncate(self._descriptor, self._size)
            if not self._size:
                self._write(MAGIC)
                sync_folder(path.parent)
        except OSError as error:
            self.close()
            raise _storage_error(path, error) from error
        except BaseException:
            self.close()
            raise

    def append(self, records: Iterable[bytes]) -> None:
        """All of them, in one write. After a failure nothing of them counts.

        Raises LimitError for a record longer than MAX_RECORD, StorageFullError, StorageError.
        """
        data = b"".join(_framed(record) for record in records)
        with self._lock:
            if self._failed:
                raise StorageError(f"{self.path} takes no more records: {self._failed}")
            try:
                self._write(data)
            except OSError as error:
                try:
                    os.ftruncate(self._descriptor, self._size)
                except OSError:
                    self._failed = f"an earlier write failed half way ({error.strerror or error})"
                raise _storage_error(self.path, error) from error

    def close(self) -> None:
        """Idempotent. An ``append`` after it raises StorageError."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
                self._failed = "it is closed"

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        os.fsync(self._descriptor)
        self._size += len(data)


def read_journal(path: Path) -> list[bytes]:
    """The whole records of a journal that another process may be writing; none if there is no file. Raises as Journal."""
    try:
        return _parse(path, _read(path))[0]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _storage_error(path, error) from error


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise LimitError(f"{path} is larger than {MAX_FILE} bytes")
    return data


def _parse(path: Path, data: bytes) -> tuple[list[bytes], int]:
    """The records, and where the last good one ends."""
    if len(data) < len(MAGIC):
        return [], 0
    if not data.startswith(MAGIC):
        raise CorruptError(f"{path} is no journal: it begins with {data[:8]!r}")
    records: list[bytes] = []
    place = len(MAGIC)
    while (record := _record_at(data, place)) is not None:
        records.append(record)
        place += HEADER + len(record)
    length = int.from_bytes(data[place : place + 4], "big")
    if place < len(data) and (_record_at(data, place + HEADER + length) is not None or _ends_whole(data, place + 1)):
        raise CorruptError(f"{path} is damaged at byte {place}: whole records follow one whose checksum does not hold")
    return records, place


def _ends_whole(data: bytes, start: int) -> bool:
    """Whether a record that begins at ``start`` or later ends where the file does."""
    start = max(start, len(data) - HEADER - MAX_RECORD)
    most = len(data) - start - HEADER  # the length of one that begins at ``start``
    if most < 0:
        return False
    tail = np.frombuffer(data, dtype=np.uint8, offset=start).astype(np.uint32)
    lengths = tail[: most + 1] << 24 | tail[1 : most + 2] << 16 | tail[2 : most + 3] << 8 | tail[3 : most + 4]
    fitting = np.flatnonzero(lengths == most - np.arange(most + 1))
    # A record's content may be a peer's, and look like many records: so few are tried that it costs no time.
    return any(_record_at(data, start + int(place)) is not None for place in fitting[:MOST_TRIED])


def _record_at(data: bytes, place: int) -> bytes | None:
    length = int.from_bytes(data[place : place + 4], "big")
    end = place + HEADER + length
    if place + HEADER > len(data) or length > MAX_RECORD or end > len(data):
        return None
    record = data[place + HEADER : end]
    return record if _framed(record)[4:HEADER] == data[place + 4 : place + HEADER] else None


def _framed(record: bytes) -> bytes:
    if len(record) > MAX_RECORD:
        raise LimitError(f"a record of {len(record)} bytes, at most {MAX_RECORD}")
    length = len(record).to_bytes(4, "big")
    return length + hashlib.sha256(length + record).digest()[:8] + record


def _storage_error(path: Path, error: OSError) -> StorageError:
    if error.errno == errno.ENOSPC:
        return StorageFullError(f"no space left for {path}: free some, or set data_dir elsewhere")
    return StorageError(f"cannot use {path}: {error.strerror or error}")
