"""What a miner answered, on the disk before it leaves: after a kill -9 it still knows what a round's line must say.

``<folder>/<pool>/<task>.sent`` is a journal of rounds and examples, beside the book of receipts (contributions.py). A note
says that an answer was about to leave. The pool has a line for everybody whom it asked, so a round without one, or with
another count, is objected to whether or not the kill came before the answer was out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from core.codec import U32, U64, decode, encode
from core.errors import LimitError
from core.ids import AccountId, TaskId
from services.storage.journal import Journal

__all__ = ["KEPT_FILES", "KEPT_OPEN", "SentRounds", "make_room"]

KEPT_FILES: Final = 256
"""Books of past tasks that stay on disk."""
KEPT_OPEN: Final = 4
KEPT_SECONDS: Final = 86_400.0
"""No younger book is removed: a pool that makes up tasks does not make its miner forget a real one."""
MOST_FILES: Final = 4_096
"""Of one pool within KEPT_SECONDS."""


@dataclass(frozen=True, slots=True)
class _Note:
    round: Annotated[int, U32]
    examples: Annotated[int, U64]


class _Open:
    def __init__(self, path: Path) -> None:
        self.journal = Journal(path)
        notes = [decode(_Note, record) for record in self.journal.found]
        self.journal.found.clear()
        self.rounds = {note.round: note.examples for note in notes}


class SentRounds:
    """Safe to use from several threads. Every call blocks on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[tuple[bytes, bytes], _Open] = {}
        self._lock = threading.Lock()

    def note(self, pool: AccountId, task_id: TaskId, round_number: int, examples: int) -> None:
        """Call it before the answer leaves: on the disk when it returns. Raises StorageError, LimitError, CorruptError."""
        with self._lock:
            kept = self._get(pool, task_id)
            if kept.rounds.get(round_number) != examples:
                kept.journal.append([encode(_Note(round_number, examples))])
                kept.rounds[round_number] = examples

    def rounds(self, pool: AccountId, task_id: TaskId) -> Mapping[int, int]:
        """Examples by round, also of processes before this one. Raises StorageError, CorruptError."""
        with self._lock:
            if (pool, task_id) not in self._open and not self._path(pool, task_id).exists():
                return {}
            return dict(self._get(pool, task_id).rounds)

    def _get(self, pool: AccountId, task_id: TaskId) -> _Open:
        kept = self._open.get((pool, task_id))
        if kept is None:
            path = self._path(pool, task_id)
            make_room(path)
            kept = self._open[pool, task_id] = _Open(path)
            for old in list(self._open)[:-KEPT_OPEN]:
                self._open.pop(old).journal.close()
        return kept

    def _path(self, pool: AccountId, task_id: TaskId) -> Path:
        return self._folder / pool.hex() / f"{task_id.hex()}.sent"


def make_room(path: Path) -> None:
    """Before the file of a task is made: remove the oldest of its kind beyond KEPT_FILES, but none of the last day.

    Raises LimitError when there are MOST_FILES of those: no pool has as many tasks.
    """
    if path.exists():
        return
    now = time.time()
    ages = sorted((now - other.stat().st_mtime, other) for other in path.parent.glob(f"[0-9a-f]*{path.suffix}"))
    for age, old in ages[KEPT_FILES - 1 :]:
        if age > KEPT_SECONDS:
            old.unlink(missing_ok=True)
    young = sum(age <= KEPT_SECONDS for age, _ in ages)
    if young >= MOST_FILES:
        raise LimitError(f"{path.parent} has books of {young} tasks within a day: this pool makes up tasks, leave it")
