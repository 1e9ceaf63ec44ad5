"""Whose Flower key is whose, also after a kill: a round that was trained before it is paid for after it."""

from __future__ import annotations

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
        if path.is_file() and path.stat().st_size > 4 * MAX_KEYS * RECORD:
            shorter = Journal(path.with_suffix(".new"))
            shorter.append(key + account for key, account in self.owners.items())
            shorter.close()
            shorter.path.replace(path)
        self._journal = Journal(path)
        self._journal.found.clear()

    def remember(self, node_key: bytes, miner: AccountId) -> None:
        """On the disk when this returns."""
        self._journal.append([node_key + miner])


def _pair(record: bytes) -> tuple[bytes, AccountId]:
    return record[:NODE_KEY_BYTES], AccountId(record[NODE_KEY_BYTES:])
