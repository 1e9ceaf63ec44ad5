"""Whose Flower key is whose, also after a kill: a round that was trained before it is paid for after it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from core.errors import CorruptError
from core.ids import AccountId
from pool.flower.keys import NODE_KEY_BYTES
from pool.manager.members import MAX_KEYS
from services.runtime.logging import logger
from services.storage.journal import Journal, read_journal

__all__ = ["KeyOwners"]

log = logger(__name__)

RECORD: Final = NODE_KEY_BYTES + 32
MOST_TIMES: Final = 4
"""The file is shortened when it holds this many times the keys that count."""


class KeyOwners:
    """A journal of node key ‖ account. Blocks: for a thread. Raises StorageError, naming the file."""

    def __init__(self, path: Path) -> None:
        try:
            records = read_journal(path)[-MAX_KEYS:]
        except CorruptError as error:
            log.warning("former members' Flower keys are not known any more; begun anew", error=error)
            path.replace(path.with_suffix(".damaged"))
            records = []
        self.owners = dict(_pair(record) for record in records if len(record) == RECORD)
        self._path, self._lock, self._added = path, threading.Lock(), 0
        if path.is_file() and path.stat().st_size > MOST_TIMES * MAX_KEYS * RECORD:
            self._shorten()
        self._journal = Journal(path)
        self._journal.found.clear()

    def remember(self, node_key: bytes, miner: AccountId) -> None:
        """On the disk when this returns. The file stays bounded while the pool runs."""
        with self._lock:
            self._journal.append([node_key + miner])
            self.owners[node_key] = miner
            while len(self.owners) > MAX_KEYS:
                del self.owners[next(iter(self.owners))]
            self._added += 1
            if self._added < (MOST_TIMES - 1) * MAX_KEYS:
                return
            self._shorten()
            former, self._journal, self._added = self._journal, Journal(self._path), 0
            self._journal.found.clear()
            former.close()

    def _shorten(self) -> None:
        new = self._path.with_suffix(".new")
        # What a kill left half written there is no part of it.
        new.unlink(missing_ok=True)
        shorter = Journal(new)
        shorter.append(key + account for key, account in self.owners.items())
        shorter.close()
        new.replace(self._path)


def _pair(record: bytes) -> tuple[bytes, AccountId]:
    return record[:NODE_KEY_BYTES], AccountId(record[NODE_KEY_BYTES:])
