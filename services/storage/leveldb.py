"""The store on disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import plyvel

from core import codec
from core.errors import ConfigError, CorruptError, LockedError, NotFoundError, PoflError, StorageError, StorageFullError
from services.storage.interface import RESERVED, StoreMeta, check_key, closed
from services.storage.tail import folder_fault

__all__ = ["LevelDb"]

META_KEY = RESERVED + b"meta"
WRITE_BUFFER = 2 * 1024 * 1024
"""LevelDB holds two of these before it writes a table. A node that is idle for most of the time fills them over hours."""
CACHE = 8 * 1024 * 1024
OPEN_FILES = 128
ADVICE = "restore it from a backup"


class LevelDb:
    """KeyValueStore in a folder that one process has to itself."""

    def __init__(self, folder: Path, meta: StoreMeta | None, advice: str = ADVICE) -> None:
        """Opens the folder, or makes it; with None for ``meta`` it opens what is there, for whomever it is.

        Raises LockedError (another process has it), WrongChainError (it belongs to something other than ``meta``),
        CorruptError, StorageFullError, ConfigError (the folder cannot be made), NotFoundError (without ``meta``: it holds
        no store). ``advice`` is what to do about damage.
        """
        self._folder = folder
        self._advice = advice
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._failed: StorageError | None = None
        """Why nothing is written any more: what LevelDB writes behind a record that failed is lost at the next opening."""
        if meta is None and not any(folder.glob("*")):
            raise NotFoundError(f"{folder} holds no stored data: give the data_dir of a node that ran")
        try:
            # The requester's coins and the models that did not win are in here.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StorageFullError(f"no space left for {folder}: free some, or set data_dir elsewhere") from error
            raise ConfigError(f"cannot make the data folder {folder}: {error.strerror or error}") from error
        fault = folder_fault(folder)
        if fault is not None:
            raise self._damaged(fault)
        with self._translated():
            # Paranoid checks end the process at the first damaged block; without them a damaged tail is dropped
            # silently. A tail that a kill cut off is no damage, and is dropped either way.
            self._db: Any = plyvel.DB(
                str(folder), create_if_missing=meta is not None, paranoid_checks=True, write_buffer_size=WRITE_BUFFER,
                lru_cache_size=CACHE, max_open_files=OPEN_FILES,
            )  # fmt: skip
        try:
            self.meta = self._claim(meta)
        except BaseException:
            self.close()
            raise

    @property
    def folder(self) -> Path:
        return self._folder

    @staticmethod
    def salvage(folder: Path, target: Path, meta: StoreMeta | None = None, advice: str = ADVICE) -> LevelDb:
        """What can still be read of a damaged folder, as a store in ``target``, which is overwritten.

        Nothing in ``folder`` is changed. Older values of a key, and keys that were deleted, may come back. ``meta`` says
        whose it is if that cannot be read either. Raises CorruptError if nothing can be read, LockedError, StorageFullError,
        StorageError.
        """
        shutil.rmtree(target, ignore_errors=True)
        try:
            with (folder / "LOCK").open("a") as lock:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _in_use(folder) from error
        except OSError as error:
            raise StorageError(f"{folder} cannot be read or written: {error.strerror or error}") from error
        try:
            shutil.copytree(folder, target)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StorageFullError(f"no space left for a copy of {folder}: free as much as it takes") from error
            raise StorageError(f"cannot copy {folder} to {target}: {error.strerror or error}") from error
        for name in ("CURRENT", "LOCK"):
            (target / name).unlink(missing_ok=True)
        try:
            plyvel.repair_db(str(target))
            with contextlib.closing(plyvel.DB(str(target))) as repaired:
                if repaired.get(META_KEY) is None:
                    if meta is None:
                        raise CorruptError(f"of {folder} not even whose it is can be read: {advice}")
                    repaired.put(META_KEY, codec.encode(meta))
        except plyvel.Error as error:
            raise CorruptError(f"nothing can be read in {folder} ({_text(error)}): {advice}") from error
        return LevelDb(target, meta, advice)

    def compact(self) -> None:
        """Give the room of deleted entries back to the disk."""
        with self._translated():
            self._db.compact_range()

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
        with self._writing:
            if self._failed is not None:
                raise type(self._failed)(self._failed.message)
            try:
                # Without transaction=True a batch that an exception cut short is written as far as it got.
                with self._translated(), self._db.write_batch(transaction=True, sync=sync) as batch:
                    for key in deletes:
                        batch.delete(key)
                    for key, value in puts.items():
                        batch.put(key, value)
            except StorageError as error:
                # A full disk leaves half a record. LevelDB would go on behind it when there is room again, and say that it is
                # synced; reading stops at the half record. One writer at a time, so that no other thread's record comes next.
                self._failed = error
                raise

    def _damaged(self, what: str) -> CorruptError:
        return CorruptError(f"{self._folder} is damaged ({what}): {self._advice}")

    def _claim(self, meta: StoreMeta | None) -> StoreMeta:
        with self._translated():
            stored = self._db.get(META_KEY, verify_checksums=True)
            occupied = stored is None and next(self._db.iterator(include_value=False), None) is not None
        if occupied:
            raise CorruptError(f"{self._folder} holds data but does not say whose: set data_dir to another folder")
        if stored is None:
            if meta is None:
                raise self._damaged("it does not say whose it is")
            self._write({META_KEY: codec.encode(meta)}, (), sync=True)
            return meta
        try:
            found = codec.decode(StoreMeta, stored)
        except PoflError as error:
            raise self._damaged(f"its header: {error.message}") from error
        if meta is not None:
            meta.require(found, str(self._folder))
        return found

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """LevelDB's errors as ours. It tells most of them apart by text only."""
        try:
            yield
        except plyvel.CorruptionError as error:
            raise self._damaged(_text(error)) from error
        except plyvel.IOError as error:
            text = _text(error)
            if "lock" in text.lower() or "Resource temporarily unavailable" in text:
                raise _in_use(self._folder) from error
            if "No space left" in text or "Disk quota" in text:
                raise StorageFullError(f"no space left for {self._folder}: free some and start again") from error
            # A file that another one names and that is not there: what else can be missing is made.
            if "orruption" in text or "checksum" in text or "No such file" in text:
                raise self._damaged(text) from error
            raise StorageError(f"{self._folder} cannot be read or written: {text}") from error
        except plyvel.Error as error:
            raise StorageError(f"{self._folder}: {_text(error)}") from error
        except RuntimeError as error:
            # plyvel's answer to any use after close.
            raise closed(str(self._folder)) from error


def _in_use(folder: Path) -> LockedError:
    return LockedError(f"{folder} is in use by another process: stop that process, or set data_dir elsewhere")


def _text(error: BaseException) -> str:
    raw = error.args[0] if error.args else ""
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)
