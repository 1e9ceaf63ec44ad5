"""Transactions that wait, as this node holds them: core.chain.mempool, and why others were refused lately."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from core.chain import mempool
from core.chain.mempool import Mempool
from core.chain.state import State
from core.chain.transaction import SignedTransaction
from core.errors import LimitError, TransactionError
from core.ids import AccountId, TxId
from core.ports import Clock
from node.signal import Signal

__all__ = ["Pending"]

MAX_REFUSED: Final = 4_096
"""Refused transactions whose reason is kept for those who ask."""


class Pending:
    """The mempool on the tip of the chain."""

    def __init__(self, clock: Clock, limit: int) -> None:
        self._clock = clock
        self._limit = limit
        self._pool = Mempool()
        self._ids: set[TxId] = set()
        self._refused: OrderedDict[TxId, str] = OrderedDict()
        self._is_due = False
        self._looked: State | None = None
        """The tip on which all that wait were looked at for one that a block takes."""
        self.arrived = Signal()

    def __len__(self) -> int:
        return len(self._pool)

    def __contains__(self, tx_id: TxId) -> bool:
        return tx_id in self._ids

    def refusal(self, tx_id: TxId) -> str | None:
        """Why a transaction was refused, or dropped after it had waited."""
        return self._refused.get(tx_id)

    def next_nonce(self, state: State, account: AccountId) -> int:
        return mempool.next_nonce(self._pool, state, account)

    def add(self, state: State, signed: SignedTransaction, note: bool = True) -> bool:
        """Whether it is new. Raises TransactionError, whose text is kept for those who ask if ``note``."""
        tx_id = signed.tx_id
        if tx_id in self._ids:
            return False
        try:
            self._take(mempool.add(self._pool, state, signed, self._clock.now_ms(), self._limit), tx_id)
        except TransactionError as error:
            if note:
                self._note(tx_id, error.message)
            raise
        self._refused.pop(tx_id, None)
        if self._looked is state and not self._is_due:
            self._is_due = mempool.is_candidate(state, signed)
        self.arrived.notify()
        return True

    def is_due(self, state: State) -> bool:
        """Whether a block on ``state`` would take one. It stays so until the next block, and until one comes in that a block
        takes it stays not so: thousands that are too early are looked at once, not with each that comes."""
        if not self._is_due and self._looked is not state:
            self._looked, self._is_due = state, mempool.has_candidates(self._pool, state)
        return self._is_due

    def candidates(self, state: State) -> tuple[SignedTransaction, ...]:
        return mempool.candidates(self._pool, state)

    def drop(self, tx_id: TxId, reason: str) -> None:
        """One that did not apply in a block, and will not."""
        kept = {place: w for place, w in self._pool.waiting.items() if w.tx_id != tx_id}
        self._take(Mempool(kept, sum(w.size for w in kept.values())))
        self._note(tx_id, reason)

    async def advance(self, state: State) -> None:
        """Onto a new tip: every signature and rule is checked anew, away from the event loop."""
        before = self._pool
        pool, dropped = await asyncio.to_thread(mempool.after_block, before, state, self._clock.now_ms())
        late = [w.signed for place, w in self._pool.waiting.items() if before.waiting.get(place) is not w]
        self._take(pool)
        self._is_due, self._looked = False, None
        for tx_id, reason in dropped:
            self._note(tx_id, reason)
        for signed in late:
            try:
                self._take(mempool.add(self._pool, state, signed, self._clock.now_ms(), self._limit))
            except (TransactionError, LimitError) as error:
                self._note(signed.tx_id, error.message)

    def _take(self, pool: Mempool, added: TxId | None = None) -> None:
        if pool is self._pool:
            return
        if added is not None and len(pool) == len(self._pool) + 1:
            self._ids.add(added)
        else:
            self._ids = {w.tx_id for w in pool.waiting.values()}
        self._pool = pool

    def _note(self, tx_id: TxId, reason: str) -> None:
        self._refused[tx_id] = reason
        while len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)
