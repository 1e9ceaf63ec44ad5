"""A task's instants for a pool, and whether it may play: what the chain's rules say, before the chain says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.errors import NotFoundError
from core.ids import AccountId, Milliseconds, short
from services.rpc.views import TaskView

__all__ = ["Windows", "is_admitted"]

MARGIN_MS: Final = 1_000
"""Between the end of training and the last instant at which a commit is sure to reach a block."""


@dataclass(frozen=True, slots=True)
class Windows:
    """A task's instants, block time."""

    entry_close_ms: Milliseconds
    training_end_ms: Milliseconds
    commit_close_ms: Milliseconds
    claim_close_ms: Milliseconds

    @classmethod
    def of(cls, view: TaskView, min_window_ms: int) -> Windows:
        """Training ends one shortest window and a second before commits close: that commit reaches a block.

        Raises NotFoundError while T0 is unknown.
        """
        if view.entry_close_ms is None or view.commit_close_ms is None or view.claim_close_ms is None:
            raise NotFoundError(f"task {short(view.task_id)} has no windows yet")
        end = Milliseconds(view.commit_close_ms - min_window_ms - MARGIN_MS)
        return cls(view.entry_close_ms, end, view.commit_close_ms, view.claim_close_ms)


def is_admitted(view: TaskView, pool: AccountId, max_pools: int) -> bool:
    """Whether the pool is among the ``max_pools`` highest bonds, ties to the earlier. For views before claims close, whose
    entries are in order of entry."""
    bonds = sorted(range(len(view.entries)), key=lambda i: (-view.entries[i].bond, i))
    return any(view.entries[i].pool == pool for i in bonds[:max_pools])
