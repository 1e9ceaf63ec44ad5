"""The store on disk."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import plyvel

from core import codec
from core.errors import ConfigError, CorruptError, LockedError, PoflError, StorageError, StorageFullError
from services.storage.interface import RESERVED, StoreMeta, check_key, closed

__all__ = ["LevelDb"]

META_KEY = RESERVED + b"meta"
WRITE_BUFFER = 8 * 1024 * 1024
CACHE = 16 * 1024 * 1024
OPEN_FILES = 128


class LevelDb:
    """KeyValueStore in a folder that one process has to itself."""

    def __init__(self, folder: Path, meta: StoreMeta) -> None:
        """Opens the folder, or makes it.

        Raises LockedError (another process has it), WrongChainError (it belongs to something other than ``meta``),
        CorruptError, StorageFullError, ConfigError (the folder cannot be made).
        """
        self._folder = folder
        self._lock = threading.Lock()
        try:
            # The requester's coins and the models that did not win are in here.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StorageFullError(f"no space left for {folder}: free some, or set data_dir elsewhere") from error
            raise ConfigError(f"cannot make the data folder {folder}: {error.strerror or error}") from error
        with self._translated():
            # Paranoid checks end the process at the first damaged block; without them a damaged tail is dropped
            # silently. A tail that a kill cut off is no damage, and is dropped either way.
            self._db: Any = plyvel.DB(
                str(folder), create_if_missing=True, paranoid_checks=True, write_buffer_size=WRITE_BUFFER,
                lru_cache_size=CACHE, max_open_files=OPEN_FILES,
            )  # fmt: skip
        try:
            self._claim(meta)
        except BaseException:
            self.close()
            raise

    def get(self, key: bytes) -> bytes | None:
        check_key(key)
        with self._translated():
            value: bytes | None = self._db.get(key, verify_checksums=True)
            return value

    def put_batch(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = (), sync: bool = True) -> None:
        for key in puts:
            check_key(key)
        removed = [check_key(key) for key in deletes]
        self._write(puts, removed, sync)

    def iterate(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        with self._translated():
            bounds = {"prefix": prefix} if prefix else {"start": RESERVED + b"\xff" * 8}
            # The snapshot is taken here, not when the caller asks for the first entry.
            entries = self._db.iterator(verify_checksums=True, **bounds)
        return self._entries(entries)

    def close(self) -> None:
        with self._lock:
            if not self._db.closed:
                self._db.close()

    def _entries(self, entries: Any) -> Iterator[tuple[bytes, bytes]]:
        with entries:
            while True:
                with self._translated():
                    entry = next(entries, None)
                if entry is None:
                    return
                if not entry[0].startswith(RESERVED):
                    yield entry

    def _write(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes], sync: bool) -> None:
        # Without transaction=True a batch that an exception cut short is written as far as it got.
        with self._translated(), self._db.write_batch(transaction=True, sync=sync) as batch:
            for key in deletes:
                batch.delete(key)
            for key, value in puts.items():
                batch.put(key, value)

    def _claim(self, meta: StoreMeta) -> None:
        with self._translated():
            stored = self._db.get(META_KEY, verify_checksums=True)
            occupied = stored is None and next(self._db.iterator(include_value=False), None) is not None
        if occupied:
            raise CorruptError(f"{self._folder} holds data but does not say whose: set data_dir to another folder")
        if stored is None:
            self._write({META_KEY: codec.encode(meta)}, (), sync=True)
            return
        try:
            found = codec.decode(StoreMeta, stored)
        except PoflError as error:
            raise CorruptError(f"{self._folder} has a damaged header ({error.message}): restore it or resync") from error
        meta.require(found, str(self._folder))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """LevelDB's errors as ours. It tells most of them apart by text only."""
        try:
            yield
        except plyvel.CorruptionError as error:
            raise CorruptError(f"{self._folder} is damaged ({_text(error)}): restore it, or remove it and resync") from error
        except plyvel.IOError as error:
            text = _text(error)
            if "lock" in text.lower() or "Resource temporarily unavailable" in text:
                raise LockedError(
                    f"{self._folder} is in use by another process: stop that process, or set data_dir elsewhere"
                ) from error
            if "No space left" in text or "Disk quota" in text:
                raise StorageFullError(f"no space left for {self._folder}: free some and start again") from error
            if "orruption" in text or "checksum" in text:
                raise CorruptError(f"{self._folder} is damaged ({text}): restore it, or remove it and resync") from error
            raise StorageError(f"{self._folder} cannot be read or written: {text}") from error
        except plyvel.Error as error:
            raise StorageError(f"{self._folder}: {_text(error)}") from error
        except RuntimeError as error:
            # plyvel's answer to any use after close.
            raise closed(str(self._folder)) from error


def _text(error: BaseException) -> str:
    raw = error.args[0] if error.args else ""
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)
